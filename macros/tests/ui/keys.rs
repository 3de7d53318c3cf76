//! What cannot be a key, and what a map needs to know.

use dogpile_map::dogpile;
use std::borrow::Cow;

#[dogpile(ttl = "60s")]
fn without_max_entries(id: u64, name: &str) -> u64 {
    id + name.len() as u64
}

#[dogpile(ttl = "60s", max_entries = 0)]
fn no_entries(id: u64) -> u64 {
    id
}

#[dogpile(ttl = "60s", max_entries = "many")]
fn textual_entries(id: u64) -> u64 {
    id
}

const NONE: usize = 0;

#[dogpile(ttl = "60s", max_entries = NONE)]
fn no_entries_known_to_the_compiler(id: u64) -> u64 {
    id
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn no_arguments() -> u64 {
    7
}

#[dogpile(ttl = "60s", max_entries = 100, ahead = "5s")]
fn ahead(id: u64) -> u64 {
    id
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn a_float(place: u32, price: f64) -> f64 {
    f64::from(place) + price
}

struct Id(u64);

#[dogpile(ttl = "60s", max_entries = 100)]
fn no_key(id: &Id) -> u64 {
    id.0
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn mutable(id: &mut u64) -> u64 {
    *id
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn borrowed_inside(name: Option<&str>, names: &[&str], text: Cow<'_, str>) -> usize {
    name.map_or(names.len(), str::len) + text.len()
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn hidden_borrow(text: Cow<str>) -> usize {
    text.len()
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn of_a_lifetime<'a>(name: &'a str) -> &'a str {
    name
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn returns_a_borrow(name: &str) -> &str {
    name
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn some_type(name: impl AsRef<str>) -> usize {
    name.as_ref().len()
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn generic<T: Into<u64>>(id: T) -> u64 {
    id.into()
}

#[dogpile(ttl = "60s", max_entries = 100)]
fn conditional(id: u64, #[cfg(debug_assertions)] tenant: u64) -> u64 {
    id + tenant
}

fn main() {}
