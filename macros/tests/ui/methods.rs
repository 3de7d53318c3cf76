//! A method has no one value, and an `impl` block has no place for the type of the function's name.

use dogpile::dogpile;

#[derive(Clone)]
struct Source;

impl Source {
    #[dogpile(ttl = "60s")]
    fn with_self(&self) -> u32 {
        7
    }

    #[dogpile(ttl = "60s")]
    fn returns_self() -> Vec<Self> {
        Vec::new()
    }
}

fn main() {}
