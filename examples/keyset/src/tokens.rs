//! Tokens whose key ids are known, made up or new.

use dogpile::ManualClock;
use keyset::{Keys, issuer::Issuer};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Shows how often the issuer is asked. The clock stands still, so that minutes take no time.
pub(crate) fn show() -> anyhow::Result<()> {
    let (issuer, clock) = (Issuer::start()?, ManualClock::new());
    let keys = Keys::new(issuer.url(), clock.clone());
    let find = |kid: &str| -> anyhow::Result<()> {
        let found = if keys.find(kid)?.is_some() { "found" } else { "unknown" };
        println!("    {kid}: {found}; fetches so far: {}", issuer.log().len());
        Ok(())
    };
    println!("\nA token names its key:");
    find("key-1")?;

    println!("A minute later a thousand tokens name keys that do not exist:");
    clock.advance(60 * SECOND);
    for number in 0..1_000 {
        assert!(keys.find(&format!("made-up-{number}"))?.is_none());
    }
    find("made-up-1000")?;

    println!("The issuer rotates its keys. For 30 seconds after that fetch the new key is not looked for:");
    issuer.rotate();
    find("key-2")?;
    println!("After that it is found at once:");
    clock.advance(31 * SECOND);
    find("key-2")
}
