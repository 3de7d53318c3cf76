//! A method has no one value.

use dogpile::dogpile;

#[derive(Clone)]
struct Source;

impl Source {
    #[dogpile(ttl = "60s")]
    fn with_self(&self) -> u32 {
        7
    }

    #[dogpile(ttl = "60s")]
    fn with_self_and_more(self, id: u32) -> u32 {
        id
    }

    #[dogpile(ttl = "60s")]
    fn returns_self() -> Vec<Self> {
        Vec::new()
    }
}

fn main() {}
