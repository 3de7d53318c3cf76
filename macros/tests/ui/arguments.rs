//! A function with arguments has many values, which are kept by another crate. The message says what to add.

use dogpile::dogpile;

#[dogpile(ttl = "60s")]
fn rates(currency: &str, year: u32) -> f64 {
    let _ = (currency, year);
    1.07
}

#[dogpile(ttl = "60s", max_entries = 1_000)]
fn with_max_entries(year: u32) -> f64 {
    f64::from(year)
}

#[dogpile(ttl = "60s", max_entries = 1_000)]
fn without_arguments() -> f64 {
    1.07
}

fn main() {
    rates("EUR", 2026);
}
