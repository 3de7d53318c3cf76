//! A `Result` under a name that does not look like one is not kept as a value.

use dogpile::dogpile;
use std::io;

type Fallible<T> = Result<T, io::Error>;

#[dogpile(ttl = "60s")]
fn rates() -> Fallible<f64> {
    Ok(1.07)
}

#[dogpile(ttl = "60s")]
async fn later() -> Fallible<f64> {
    Ok(1.07)
}

mod other {
    pub struct Result<T>(pub T);
}

// A type that is called `Result` and is none is not taken for one.
#[dogpile(ttl = "60s")]
fn no_result() -> other::Result<f64> {
    other::Result(1.07)
}

fn main() {}
