//! A function with arguments has many values.

use dogpile::dogpile;

#[dogpile(ttl = "60s")]
fn rates(currency: &str, year: u32) -> f64 {
    let _ = (currency, year);
    1.07
}

fn main() {}
