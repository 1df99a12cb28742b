//! The Isthmus hypervisor.
fn main() {}
