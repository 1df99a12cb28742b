//! Counts the lines of code that an image is made of.
//!
//! ```text
//! lines CRATE...            CRATE is a crate's folder
//! lines --each CRATE...     one line per file besides
//! ```
//!
//! Counted is every line that holds a token of Rust or an instruction of assembly in a module that the
//! compiler reaches from `src/lib.rs` or `src/main.rs` when it builds for the image: blank lines, comments,
//! documentation and items that a `cfg` leaves out (tests, the host's twins) are not. Inside macros the
//! source counts, not what it becomes. The second figure is the part of these lines that lies in `unsafe`
//! blocks.

#![forbid(unsafe_code)]

mod count;
mod token;

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let each = arguments.first().is_some_and(|first| first == "--each");
    if each {
        arguments.remove(0);
    }
    if arguments.is_empty() {
        bail!("usage: lines [--each] CRATE...");
    }
    let (mut code, mut in_unsafe) = (0, 0);
    for folder in &arguments {
        for file in count::of_crate(Path::new(folder))? {
            code += file.code;
            in_unsafe += file.in_unsafe;
            if each {
                println!(
                    "{:6} {:6} {}",
                    file.code,
                    file.in_unsafe,
                    file.path.display()
                );
            }
        }
    }
    println!("code {code}");
    println!("unsafe {in_unsafe}");
    Ok(())
}
