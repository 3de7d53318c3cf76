//! What is right compiles, under the lints of a library.
#![deny(warnings, missing_docs, unreachable_pub, unused_qualifications, rust_2018_idioms, clippy::all, clippy::pedantic)]
#![forbid(unsafe_code)]

use dogpile::dogpile;

mod inside {
    use super::dogpile;

    /// The rates.
    #[dogpile(ttl = "60s", ahead = "5s")]
    pub(crate) fn rates() -> std::io::Result<f64> {
        Ok(1.07)
    }

    /// The limit.
    #[dogpile(ttl = "60s")]
    pub(super) async fn limit() -> u32 {
        7
    }
}

/// The word.
#[dogpile(never_expires)]
pub fn word() -> String {
    String::from("word")
}

fn main() {
    let _ = inside::rates();
    drop(inside::limit());
    word();
}
