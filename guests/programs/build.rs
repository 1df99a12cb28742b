//! Tells the linker how a bare-metal guest is laid out.

fn main() {
    let script = "../runtime/link.ld";
    println!("cargo:rerun-if-changed={script}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let arguments = [
        &format!("-T{folder}/{script}"),
        "-pie",
        "--no-dynamic-linker",
        // The prebuilt core library has absolute pointers in its constants.
        "-znotext",
        "-znorelro",
        "-zmax-page-size=4096",
        "--fix-cortex-a53-843419",
    ];
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
