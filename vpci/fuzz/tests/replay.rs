//! Replays the corpora: what the fuzzers have found worth keeping stays found.

use std::fs;
use std::path::Path;

fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        body(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}

#[test]
fn config_access() {
    replay("config_access", vpci_fuzz::config_access);
}

#[test]
fn capability_chain() {
    replay("capability_chain", vpci_fuzz::capability_chain);
}

#[test]
fn bar_programming() {
    replay("bar_programming", vpci_fuzz::bar_programming);
}

#[test]
fn msix_table() {
    replay("msix_table", vpci_fuzz::msix_table);
}

#[test]
fn ports() {
    replay("ports", vpci_fuzz::ports);
}
