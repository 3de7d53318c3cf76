//! What only the compiler knows is checked by the compiler.

use dogpile::dogpile;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const SECONDS: u64 = 60;

#[dogpile(ttl = SECONDS)]
fn not_a_duration() -> u32 {
    7
}

#[dogpile(ttl = MINUTE, ahead = MINUTE)]
fn not_ahead() -> u32 {
    7
}

#[dogpile(ttl = MINUTE, lease_timeout = Duration::ZERO)]
fn timeout_is_zero() -> u32 {
    7
}

fn main() {}
