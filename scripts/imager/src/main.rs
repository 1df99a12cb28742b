//! Checks a system description and packs it into one image.

fn main() {}
