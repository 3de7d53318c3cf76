//! Errors of the body are where they are.

use dogpile::dogpile;

#[dogpile(ttl = "60s")]
fn rates() -> f64 {
    "1.07"
}

#[dogpile(ttl = "60s")]
fn number() -> Result<u32, std::num::ParseIntError> {
    let text = "7".into_string();
    text.parse()
}

fn main() {
    let _: f64 = rates();
}
