//! What does not compile, and what the compiler says then.
//!
//! The kept messages are those of one release of the compiler, Rust 1.95; another one may word its own differently. Some show lines of
//! the standard library, if its source is there: `rustup component add rust-src`.
//! `TRYBUILD=overwrite cargo test -p dogpile-macros --test compile` writes the messages anew.

#[test]
fn messages_are_those_that_are_kept() {
    let tests = trybuild::TestCases::new();
    tests.pass("tests/ui/shown.rs");
    tests.pass("tests/ui/warnings.rs");
    for case in [
        "arguments",
        "body",
        "constants",
        "durations",
        "generics",
        "hidden_result",
        "in_impl",
        "items",
        "keys",
        "methods",
        "qualifiers",
        "returns",
        "settings",
        "spawn",
        "values",
    ] {
        tests.compile_fail(format!("tests/ui/{case}.rs"));
    }
}
