//! The rules under a lock: what is tested here is the suite itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use dogpile::ManualClock;
use dogpile_fleet::{
    Acquire, Epoch, Invalidation, MemoryStore, Poll, Publication, Publish, RefreshStore, Request, StoreError,
    Token, Version, conformance,
};

#[test]
fn it_conforms() {
    let clock = ManualClock::new();
    conformance::check(&MemoryStore::with_clock(clock.clone()), |time| clock.advance(time));
}

/// A store with one fault.
struct Faulty {
    store: MemoryStore<ManualClock>,
    fault: Fault,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    PublishesWhatIsInvalidated,
    ForgetsTheTag,
    GrantsTwoLeases,
    InvalidatesSoftlyOnly,
    PausesNobody,
    RenewsNothing,
    IgnoresWhatIsRefused,
}

impl RefreshStore for Faulty {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        self.store.poll(name, known)
    }
    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        if let Fault::GrantsTwoLeases = self.fault {
            let request = Request { lease: Duration::from_micros(1), ..*request };
            return self.store.acquire(name, &request);
        }
        if let Fault::IgnoresWhatIsRefused = self.fault {
            return self.store.acquire(name, &Request { refuse: None, ..*request });
        }
        self.store.acquire(name, request)
    }
    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        let entry = self.store.entry(name);
        let token = match self.fault {
            Fault::PublishesWhatIsInvalidated => Token { epoch: entry.epoch, ..*token },
            _ => *token,
        };
        let tag = if let Fault::ForgetsTheTag = self.fault { None } else { publication.tag };
        self.store.publish(name, &token, &Publication { tag, ..*publication })
    }
    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        self.store.unchanged(name, token, soft, hard)
    }
    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        let pause = if let Fault::PausesNobody = self.fault { Duration::ZERO } else { pause };
        self.store.fail(name, token, pause)
    }
    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        if let Fault::RenewsNothing = self.fault {
            return Ok(true);
        }
        self.store.renew(name, token, lease)
    }
    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        let how = if let Fault::InvalidatesSoftlyOnly = self.fault { Invalidation::Soft } else { how };
        self.store.invalidate(name, how)
    }
}

#[test]
fn the_suite_notices_a_store_with_a_fault() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let unnoticed: Vec<Fault> = [
        Fault::PublishesWhatIsInvalidated,
        Fault::ForgetsTheTag,
        Fault::GrantsTwoLeases,
        Fault::InvalidatesSoftlyOnly,
        Fault::PausesNobody,
        Fault::RenewsNothing,
        Fault::IgnoresWhatIsRefused,
    ]
    .into_iter()
    .filter(|fault| {
        let clock = ManualClock::new();
        let store = Faulty { store: MemoryStore::with_clock(clock.clone()), fault: *fault };
        let pass_time = |time| clock.advance(time);
        catch_unwind(AssertUnwindSafe(|| conformance::check(&store, pass_time))).is_ok()
    })
    .collect();
    std::panic::set_hook(hook);
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
