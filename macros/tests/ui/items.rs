//! Only a function with a body will do.

use dogpile::dogpile;

#[dogpile(ttl = "60s")]
struct Rates;

#[dogpile(ttl = "60s")]
pub static RATES: u32 = 7;

trait Source {
    #[dogpile(ttl = "60s")]
    fn rates() -> f64;
}

fn main() {}
