//! The crate's feature `macros` is not for the models.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(feature, values(\"macros\"))");
    println!("cargo::rerun-if-changed=build.rs");
}
