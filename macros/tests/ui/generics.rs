//! A generic function has no one value.

use dogpile::dogpile;

#[dogpile(ttl = "60s")]
fn of_a_type<T: Default>() -> T {
    T::default()
}

#[dogpile(ttl = "60s")]
fn of_a_lifetime<'a>() -> &'a str {
    "7"
}

#[dogpile(ttl = "60s")]
fn of_a_constant<const N: usize>() -> [u32; N] {
    [7; N]
}

#[dogpile(ttl = "60s")]
fn with_where() -> String
where
    String: Clone,
{
    String::new()
}

fn main() {}
