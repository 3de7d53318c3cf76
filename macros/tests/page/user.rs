use dogpile::RefreshError;
use dogpile_map::dogpile;
use std::io;
use std::sync::Arc;

pub struct User {
    name: String,
}

/// Asks the database.
#[dogpile(ttl = "60s", max_entries = 10_000)]
pub fn user(id: u64, region: &str) -> Result<User, io::Error> {
    Ok(User { name: format!("user {id} of {region}") }) // slow
}

fn main() -> Result<(), RefreshError> {
    let found: Arc<User> = user(7, "north")?;
    assert_eq!(found.name, "user 7 of north");
    assert_eq!(user::with(7, "north", |user| user.name.len())?, 15);
    user::map().invalidate(&(7, "north".to_owned()));
    Ok(())
}
