//! The compiler's own message, at the function's name.

use dogpile::dogpile;

struct Source;

impl Source {
    #[dogpile(ttl = "60s")]
    fn rates() -> f64 {
        1.07
    }
}

fn main() {}
