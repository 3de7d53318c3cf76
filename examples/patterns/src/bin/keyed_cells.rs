//! Many keys: a `moka` cache of cells. The cache bounds how many there are, no caller waits while a cell rebuilds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dogpile::DogpileCell;
use moka::sync::Cache;

type Profile = String;

static BUILDS: AtomicU32 = AtomicU32::new(0);

struct Profiles {
    cells: Cache<u64, Arc<DogpileCell<Profile>>>,
}

impl Profiles {
    fn new() -> Self {
        Self { cells: Cache::builder().max_capacity(10_000).time_to_idle(Duration::from_secs(3600)).build() }
    }

    fn cell(&self, user: u64) -> Arc<DogpileCell<Profile>> {
        self.cells.get_with(user, || Arc::new(DogpileCell::new(Duration::from_secs(60))))
    }

    fn get(&self, user: u64) -> Arc<Profile> {
        self.cell(user).get_or_refresh(|| {
            BUILDS.fetch_add(1, Ordering::Relaxed);
            format!("profile of {user}")
        })
    }
}

fn main() {
    let profiles = Profiles::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for user in 0..100 {
                    assert_eq!(*profiles.get(user), format!("profile of {user}"));
                }
            });
        }
    });
    println!("800 requests for 100 users: {} builds", BUILDS.load(Ordering::Relaxed));

    profiles.cell(7).invalidate(); // user 7 has changed something
    profiles.get(7);
    println!("after one of them has changed: {} builds", BUILDS.load(Ordering::Relaxed));
}
