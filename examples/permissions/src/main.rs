//! A thousand users, three roles, one revocation.
//! `cargo run --release -p permissions`

use std::time::{Duration, Instant};

use dogpile::SystemClock;
use permissions::{Directory, Guard};

fn main() {
    let directory = Directory::default();
    for number in 0..1_000 {
        directory.assign(&format!("user {number}"), ["reader", "editor", "admin"][number % 3]);
    }
    for (role, action) in
        [("reader", "read"), ("editor", "read"), ("editor", "publish"), ("admin", "publish")]
    {
        directory.allow(role, action);
    }
    let guard = Guard::new(directory, Duration::from_secs(300), SystemClock);
    let publishers = || (0..1_000).filter(|number| guard.may(&format!("user {number}"), "publish")).count();
    println!("{} users may publish, after {} lookups.", publishers(), guard.directory().lookups());
    println!("{} users may publish, after {} lookups.", publishers(), guard.directory().lookups());
    let start = Instant::now();
    guard.revoke("editor", "publish");
    println!("Editors may not any more: that took {:?}.", start.elapsed());
    println!("{} users may publish, after {} lookups.", publishers(), guard.directory().lookups());
}
