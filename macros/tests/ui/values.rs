//! Values are shared by threads, and errors by callers.

use dogpile::dogpile;
use std::cell::Cell;
use std::rc::Rc;

#[dogpile(ttl = "60s")]
fn not_sync() -> Cell<u32> {
    Cell::new(7)
}

#[dogpile(ttl = "60s")]
fn not_send() -> Rc<u32> {
    Rc::new(7)
}

#[dogpile(ttl = "60s")]
fn not_sync_or_an_error() -> Result<Rc<u32>, String> {
    Ok(Rc::new(7))
}

#[derive(Debug)]
struct NoError;

#[dogpile(ttl = "60s")]
fn no_error() -> Result<u32, NoError> {
    Err(NoError)
}

#[dogpile(ttl = "60s")]
fn not_to_be_shared() -> Result<u32, Box<dyn std::error::Error>> {
    Ok(7)
}

#[dogpile(ttl = "60s")]
async fn no_error_later() -> Result<u32, ()> {
    Err(())
}

#[dogpile(ttl = "60s")]
fn borrowed() -> &str {
    "7"
}

fn main() {}
