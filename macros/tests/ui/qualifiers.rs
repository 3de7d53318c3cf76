//! The function that is called is another one than the one that is written.

use dogpile::dogpile;

#[dogpile(ttl = "60s")]
unsafe fn not_safe() -> u32 {
    7
}

#[dogpile(ttl = "60s")]
const fn constant() -> u32 {
    7
}

#[dogpile(ttl = "60s")]
extern "C" fn external() -> u32 {
    7
}

#[dogpile(ttl = "60s")]
#[unsafe(no_mangle)]
fn exported() -> u32 {
    7
}

fn main() {}
