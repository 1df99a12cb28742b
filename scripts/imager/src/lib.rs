//! Turns a system file into an image of the hypervisor.
//!
//! ```text
//!   default.toml --load--> System --plan--> Plan --pack--> image
//!        |                   |               |
//!     form, types      files, names    Manifest::check
//!        +-------------------+---------------+
//!                            v
//!         default.toml:12:9: what is wrong; what to write instead
//! ```
//!
//! Loading knows TOML and the fields of a system file, planning finds files and makes a
//! [`manifest::Manifest`] of it, whose own check has the last word, and packing lays everything out as
//! `kernel/docs/manifest.md` describes. Each mistake carries the place in the file that it is about.

pub mod image;
mod plan;
pub mod qemu;
mod report;
mod source;
mod system;
mod values;

pub use plan::{Folders, Plan};
pub use report::Report;
pub use system::System;
