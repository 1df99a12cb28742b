//! Replays the corpus: what the fuzzer has found worth keeping stays found.

use std::fs;
use std::path::Path;

#[test]
fn instruction() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/instruction");
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        arch_fuzz::instruction(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}
