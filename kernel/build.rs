//! Links the EL2 image: position independent, by our own layout.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    for argument in [
        &format!("-T{here}/link.ld"),
        "-pie",
        "--no-dynamic-linker",
        // The prebuilt core library is not position independent: it has pointers in .rodata, which
        // the entry code relocates before that page becomes read-only.
        "-znotext",
        "-zmax-page-size=4096",
        // The softfloat target does not ask for it, while Cortex-A53 needs it.
        "--fix-cortex-a53-843419",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
