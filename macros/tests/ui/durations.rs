//! A duration is parsed when it is compiled, and the error is at the literal.

use dogpile::dogpile;
use std::time::Duration;

#[dogpile(ttl = "soon")]
fn no_duration() -> u32 {
    7
}

#[dogpile(ttl = "60")]
fn without_a_unit() -> u32 {
    7
}

#[dogpile(ttl = "60 fortnights")]
fn unknown_unit() -> u32 {
    7
}

#[dogpile(ttl = "")]
fn empty() -> u32 {
    7
}

#[dogpile(ttl = "-1s")]
fn negative() -> u32 {
    7
}

#[dogpile(ttl = "99999999999999999999y")]
fn too_long() -> u32 {
    7
}

#[dogpile(ttl = 60)]
fn number() -> u32 {
    7
}

#[dogpile(ttl = -60)]
fn negative_number() -> u32 {
    7
}

#[dogpile(ttl = "60s", stale_if_error = "1 hour and a half", retry_backoff = ("x", "1s"))]
fn several() -> u32 {
    7
}

#[dogpile(ttl = "60s", retry_backoff = "1s")]
fn no_pair() -> u32 {
    7
}

#[dogpile(ttl = "60s", retry_backoff = ("10s", "1s"))]
fn wrong_order() -> u32 {
    7
}

#[dogpile(ttl = "60s", retry_backoff = ("0s", "1s"))]
fn first_is_zero() -> u32 {
    7
}

#[dogpile(ttl = "60s", lease_timeout = "0s")]
fn timeout_is_zero() -> u32 {
    7
}

#[dogpile(ttl = "60s", ahead = "60s")]
fn not_ahead() -> u32 {
    7
}

#[dogpile(never_expires, ahead = "5s")]
fn never_due() -> u32 {
    7
}

#[dogpile(ttl = "60s", ahead = "5s")]
async fn asynchronous() -> u32 {
    7
}

const _: Duration = Duration::ZERO;

fn main() {}
