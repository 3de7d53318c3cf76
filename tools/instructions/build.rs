//! Remembers what the program is compiled with: its counts are comparable only with those of the same.

use std::env;
use std::process::Command;

fn main() {
    let rustc = env::var("RUSTC").expect("cargo says which compiler it uses");
    let version =
        Command::new(rustc).arg("--version").output().expect("the compiler tells its version").stdout;
    let version = String::from_utf8(version).expect("a version is text");
    let target = env::var("TARGET").expect("cargo says for which machine it compiles");
    let level = env::var("OPT_LEVEL").expect("cargo says how it compiles");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().replace('\x1f', " ");
    println!("cargo::rustc-env=COMPILED_WITH={} for {target}, level {level} {flags}", version.trim());
    println!("cargo::rustc-env=COMPILED_AT_LEVEL={level}");
}
