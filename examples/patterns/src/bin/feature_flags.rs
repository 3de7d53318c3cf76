//! Feature flags from a database: read by every request, changed a few times a day. A change invalidates the cell, after the
//! commit; the fence keeps a build that was under way from being taken for fresh.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, Policy, RefreshError};
use rusqlite::Connection;

type Flags = HashSet<String>;

// A flag of an hour ago is better than none.
const POLICY: Policy =
    Policy::ttl(Duration::from_secs(30)).stale_while_refresh(Duration::from_secs(3600)).jitter(10);

static FLAGS: DogpileCell<Flags> = DogpileCell::with_policy(POLICY).named("flags");

fn read(database: &Connection) -> rusqlite::Result<Flags> {
    println!("asked the database");
    database.prepare("SELECT name FROM flags WHERE enabled")?.query_map([], |row| row.get(0))?.collect()
}

fn is_enabled(database: &Connection, flag: &str) -> Result<bool, RefreshError> {
    let flags: Arc<Flags> = FLAGS.try_get_or_refresh(|| read(database))?;
    Ok(flags.contains(flag))
}

fn set(database: &Connection, flag: &str, enabled: bool) -> rusqlite::Result<()> {
    database.execute("INSERT OR REPLACE INTO flags VALUES (?1, ?2)", (flag, enabled))?;
    FLAGS.invalidate(); // after the commit, never before
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let database = Connection::open_in_memory()?;
    database.execute("CREATE TABLE flags (name TEXT PRIMARY KEY, enabled INTEGER)", ())?;

    set(&database, "new-checkout", true)?;
    for _ in 0..1_000 {
        assert!(is_enabled(&database, "new-checkout")?);
    }
    set(&database, "new-checkout", false)?;
    println!("new-checkout: {}", is_enabled(&database, "new-checkout")?);

    database.execute("ALTER TABLE flags RENAME TO gone", ())?;
    FLAGS.invalidate();
    println!("the table is gone; new-checkout: {}", is_enabled(&database, "new-checkout")?);
    println!("{:?} builds, {} of them failed", FLAGS.stats().builds, FLAGS.stats().failed);
    Ok(())
}
