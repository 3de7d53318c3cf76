//! There must be a value, of a type with a name.

use dogpile::dogpile;
use std::future::Future;

#[dogpile(ttl = "60s")]
fn nothing() {}

#[dogpile(ttl = "60s")]
fn unit() -> () {}

#[dogpile(ttl = "60s")]
fn never() -> ! {
    loop {}
}

#[dogpile(ttl = "60s")]
fn unnamed() -> impl Fn() -> u32 {
    || 7
}

#[dogpile(ttl = "60s")]
fn future() -> impl Future<Output = u32> {
    async { 7 }
}

fn main() {}
