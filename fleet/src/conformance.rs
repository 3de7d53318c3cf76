//! What every store must do, as checks that any store can be run through.
//!
//! [`check`] goes through the rules one by one. [`replay`] runs a list of operations on a store and on the
//! [rules](crate::rules) side by side and compares each answer; feed it with what a property-testing library draws.
//!
//! Both panic where the store differs, as tests do.

use std::collections::HashMap;
use std::time::Duration;

use dogpile::{Clock, ManualClock};

use crate::draw;
use crate::rules::{Entry, Micros};
use crate::store::{
    Acquire, Current, Epoch, Fence, Invalidation, LONGEST, Poll, Publication, Publish, RefreshStore, Request,
    Seen, Token, Value, Version,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Checks a store against each rule, with names that begin with `conformance-`. `pass_time` has to return when at
/// least so much time has passed by the store's clock: [`std::thread::sleep`] will do, and takes less than two seconds.
///
/// # Panics
///
/// If the store does not keep a rule.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{MemoryStore, conformance};
///
/// conformance::check(&MemoryStore::new(), std::thread::sleep);
/// ```
pub fn check(store: &dyn RefreshStore, pass_time: impl Fn(Duration)) {
    let run = draw::incarnation();
    for (what, check) in CHECKS {
        let name = format!("conformance-{run:x}-{what}");
        check(&Subject { store, name: &name, pass_time: &pass_time });
    }
}

struct Subject<'a> {
    store: &'a dyn RefreshStore,
    name: &'a str,
    pass_time: &'a dyn Fn(Duration),
}

/// An answer that the rules do not allow.
macro_rules! differs {
    ($subject:expr, $answer:expr) => {
        panic!("{}: unexpected answer: {:?}", $subject.name, $answer)
    };
}

impl Subject<'_> {
    fn poll(&self, known: Option<Version>) -> Poll {
        self.store.poll(self.name, known).expect("poll")
    }

    fn acquire(&self, lease: Duration, known: Option<Version>) -> Acquire {
        self.store.acquire(self.name, &Request { known, ..Request::new(lease) }).expect("acquire")
    }

    fn win(&self, lease: Duration) -> Token {
        match self.acquire(lease, None) {
            Acquire::Won { token, .. } => token,
            other => differs!(self, other),
        }
    }

    fn publish(&self, token: &Token, payload: &[u8], soft: Duration, hard: Duration) -> Publish {
        let publication = Publication { payload, tag: Some("tag"), soft, hard };
        self.store.publish(self.name, token, &publication).expect("publish")
    }

    fn store(&self, payload: &[u8], soft: Duration, hard: Duration) -> Version {
        let token = self.win(HOUR);
        self.stored(self.publish(&token, payload, soft, hard))
    }

    fn stored(&self, answer: Publish) -> Version {
        match answer {
            Publish::Stored(version) => version,
            other => differs!(self, other),
        }
    }

    fn invalidate(&self, how: Invalidation) {
        let epoch = self.store.invalidate(self.name, how).expect("invalidate");
        assert_eq!(epoch, self.poll(None).epoch, "{}: the epoch that begins with an invalidation", self.name);
    }

    fn value(&self, current: Current) -> Value {
        match current {
            Current::Newer(value) => value,
            other => differs!(self, other),
        }
    }
}

type Check = fn(&Subject<'_>);

const CHECKS: &[(&str, Check)] = &[
    ("empty", |s| {
        let poll = s.poll(None);
        let empty = Current::Nothing { cleared: false };
        let (epoch, zero) = (Epoch::default(), Duration::ZERO);
        assert_eq!(poll, Poll { current: empty, epoch, lease_left: zero, retry_left: zero });
        let nobody = Token { fence: Fence { incarnation: 0, number: 0 }, epoch: 0 };
        assert_eq!(s.publish(&nobody, b"x", HOUR, HOUR), Publish::Invalidated, "{}: nobody's", s.name);
        let token = Token { fence: Fence { incarnation: 7, number: 1 }, epoch: 0 };
        assert_eq!(s.publish(&token, b"x", HOUR, HOUR), Publish::Invalidated, "{}: made up", s.name);
        assert!(!s.store.fail(s.name, &token, HOUR).unwrap());
        assert!(!s.store.renew(s.name, &token, HOUR).unwrap());
    }),
    ("one-lease", |s| {
        let first = s.win(HOUR);
        match s.acquire(HOUR, None) {
            Acquire::Busy { left, current: Current::Nothing { cleared: false } } => {
                assert!(left > HOUR / 2 && left <= HOUR, "{}: {left:?}", s.name);
            }
            other => differs!(s, other),
        }
        assert!(s.poll(None).lease_left > HOUR / 2);
        assert_eq!(first.fence.number, 1, "{}: fences count from one", s.name);
    }),
    ("publish", |s| {
        let token = s.win(HOUR);
        let version = s.stored(s.publish(&token, b"\0value\xff", HOUR, 2 * HOUR));
        assert_eq!(version, Version { incarnation: token.fence.incarnation, number: 1 });
        let poll = s.poll(None);
        assert_eq!((poll.lease_left, poll.retry_left), (Duration::ZERO, Duration::ZERO));
        let value = s.value(poll.current);
        assert_eq!(
            (value.version, &*value.payload, value.tag.as_deref()),
            (version, &b"\0value\xff"[..], Some("tag"))
        );
        assert!(value.soft_left > HOUR / 2 && value.soft_left <= HOUR);
        assert!(value.hard_left > 3 * HOUR / 2 && value.hard_left <= 2 * HOUR);
        assert!(value.age < HOUR / 2);
        match s.poll(Some(version)).current {
            Current::Same { soft_left, .. } => assert!(soft_left > HOUR / 2),
            other => differs!(s, other),
        }
        match s.acquire(HOUR, Some(version)) {
            Acquire::Fresh(Current::Same { .. }) => {}
            other => differs!(s, other),
        }
        match s.acquire(HOUR, None) {
            Acquire::Fresh(Current::Newer(value)) => assert_eq!(value.version, version),
            other => differs!(s, other),
        }
        let again = s.stored(s.publish(&token, b"", HOUR, HOUR));
        assert_eq!(again.number, 2, "{}: a builder may repeat itself", s.name);
        assert_eq!(s.value(s.poll(Some(version)).current).payload, b"");
    }),
    ("expiry", |s| {
        let version = s.store(b"value", Duration::from_millis(20), HOUR);
        (s.pass_time)(Duration::from_millis(25));
        match s.acquire(HOUR, Some(version)) {
            Acquire::Won { token, tag, failures, current: Current::Same { soft_left, hard_left } } => {
                assert_eq!((token.fence.number, tag.as_deref(), failures), (2, Some("tag"), 0));
                assert!(soft_left.is_zero() && hard_left > HOUR / 2);
            }
            other => differs!(s, other),
        }
        let version = s.poll(None).current;
        assert!(s.value(version).age >= Duration::from_millis(25));
    }),
    ("hard-expiry", |s| {
        s.store(b"value", Duration::from_millis(10), Duration::from_millis(20));
        (s.pass_time)(Duration::from_millis(25));
        let value = s.value(s.poll(None).current);
        assert!(value.soft_left.is_zero() && value.hard_left.is_zero());
    }),
    ("lapsed-lease", |s| {
        let slow = s.win(Duration::from_millis(20));
        (s.pass_time)(Duration::from_millis(25));
        let quick = s.win(HOUR);
        assert_eq!(quick.fence.number, slow.fence.number + 1);
        assert_eq!(s.publish(&slow, b"slow", HOUR, HOUR), Publish::Superseded);
        assert!(!s.store.fail(s.name, &slow, HOUR).unwrap());
        assert!(!s.store.renew(s.name, &slow, HOUR).unwrap());
        s.stored(s.publish(&quick, b"quick", HOUR, HOUR));
        assert_eq!(s.publish(&slow, b"slow", HOUR, HOUR), Publish::Superseded);
        assert_eq!(s.value(s.poll(None).current).payload, b"quick");
    }),
    ("slow-but-alone", |s| {
        let token = s.win(Duration::from_millis(20));
        (s.pass_time)(Duration::from_millis(25));
        assert!(s.poll(None).lease_left.is_zero());
        s.stored(s.publish(&token, b"late", HOUR, HOUR));
        let age = s.value(s.poll(None).current).age;
        assert!(age >= Duration::from_millis(25), "{}: a value is as old as its build: {age:?}", s.name);
    }),
    ("heart-beat", |s| {
        let token = s.win(Duration::from_millis(20));
        assert!(s.store.renew(s.name, &token, HOUR).unwrap());
        (s.pass_time)(Duration::from_millis(25));
        assert!(matches!(s.acquire(HOUR, None), Acquire::Busy { .. }));
        s.stored(s.publish(&token, b"value", HOUR, HOUR));
        assert!(!s.store.renew(s.name, &token, HOUR).unwrap(), "{}: the build is over", s.name);
        assert!(s.poll(None).lease_left.is_zero());
    }),
    ("invalidated-build", |s| {
        for how in [Invalidation::Soft, Invalidation::Hard] {
            let early = s.win(HOUR);
            s.invalidate(how);
            assert_eq!(s.publish(&early, b"early", HOUR, HOUR), Publish::Invalidated);
            assert_eq!(s.store.unchanged(s.name, &early, HOUR, HOUR).unwrap(), Publish::Invalidated);
            assert!(!s.store.renew(s.name, &early, HOUR).unwrap());
            let late = s.win(HOUR);
            assert_eq!(s.publish(&early, b"early", HOUR, HOUR), Publish::Invalidated);
            s.stored(s.publish(&late, b"late", HOUR, HOUR));
            s.invalidate(Invalidation::Hard);
        }
    }),
    ("soft-invalidation", |s| {
        let version = s.store(b"value", HOUR, 2 * HOUR);
        s.invalidate(Invalidation::Soft);
        match s.poll(Some(version)).current {
            Current::Same { soft_left, hard_left } => {
                assert!(soft_left.is_zero() && hard_left > HOUR);
            }
            other => differs!(s, other),
        }
        assert!(matches!(s.acquire(HOUR, None), Acquire::Won { current: Current::Newer(_), .. }));
    }),
    ("hard-invalidation", |s| {
        let version = s.store(b"value", HOUR, 2 * HOUR);
        s.invalidate(Invalidation::Hard);
        for known in [None, Some(version)] {
            assert_eq!(s.poll(known).current, Current::Nothing { cleared: true });
        }
        let token = s.win(HOUR);
        assert_eq!(token.epoch, 1);
        assert_eq!(s.stored(s.publish(&token, b"new", HOUR, HOUR)).number, 2);
        assert_eq!(s.value(s.poll(Some(version)).current).payload, b"new");
    }),
    ("unchanged", |s| {
        let version = s.store(b"value", Duration::from_millis(10), HOUR);
        (s.pass_time)(Duration::from_millis(15));
        let token = s.win(HOUR);
        let answer = s.store.unchanged(s.name, &token, HOUR, 2 * HOUR).unwrap();
        assert_eq!(answer, Publish::Stored(version), "{}: the version stays", s.name);
        match s.poll(Some(version)).current {
            Current::Same { soft_left, hard_left } => {
                assert!(soft_left > HOUR / 2 && hard_left > HOUR);
            }
            other => differs!(s, other),
        }
        let value = s.value(s.poll(None).current);
        assert_eq!(value.payload, b"value");
        assert!(value.age < HOUR / 2);
    }),
    ("epoch", |s| {
        let token = s.win(HOUR);
        let before = s.poll(None).epoch;
        assert_eq!(before, token.epoch(), "{}: an election is of the present epoch", s.name);
        s.stored(s.publish(&token, b"value", HOUR, HOUR));
        assert_eq!(s.poll(None).epoch, before, "{}: a publication begins no epoch", s.name);
        for (number, how) in [(1, Invalidation::Soft), (2, Invalidation::Soft), (3, Invalidation::Hard)] {
            s.invalidate(how);
            assert_eq!(s.poll(None).epoch, Epoch { number, ..before });
        }
        assert_eq!(s.win(HOUR).epoch(), s.poll(None).epoch);
    }),
    ("backoff", |s| {
        let token = s.win(HOUR);
        assert!(s.store.fail(s.name, &token, HOUR).unwrap());
        match s.acquire(HOUR, None) {
            Acquire::Backoff { left, epoch, .. } => {
                assert!(left > HOUR / 2);
                assert_eq!(epoch, token.epoch());
            }
            other => differs!(s, other),
        }
        assert!(s.poll(None).retry_left > HOUR / 2);
        assert!(s.poll(None).lease_left.is_zero());
    }),
    ("failures", |s| {
        for failures in 0..3 {
            match s.acquire(HOUR, None) {
                Acquire::Won { token, failures: counted, .. } => {
                    assert_eq!(counted, failures, "{}", s.name);
                    assert!(s.store.fail(s.name, &token, Duration::from_millis(5)).unwrap());
                }
                other => differs!(s, other),
            }
            (s.pass_time)(Duration::from_millis(10));
        }
        let token = s.win(HOUR);
        assert!(s.store.fail(s.name, &token, Duration::ZERO).unwrap());
        let token = match s.acquire(HOUR, None) {
            Acquire::Won { token, failures, .. } => {
                assert_eq!(failures, 3, "{}: a build that is given back is no failure", s.name);
                token
            }
            other => differs!(s, other),
        };
        s.stored(s.publish(&token, b"value", HOUR, HOUR));
        s.invalidate(Invalidation::Soft);
        match s.acquire(HOUR, None) {
            Acquire::Won { failures: 0, .. } => {}
            other => differs!(s, other),
        }
    }),
    ("refused-version", |s| {
        let version = s.store(b"damaged", HOUR, HOUR);
        let request = |refuse| Request { refuse, ..Request::new(HOUR) };
        let older = Version { number: version.number - 1, ..version };
        assert!(matches!(s.store.acquire(s.name, &request(Some(older))).unwrap(), Acquire::Fresh(_)));
        assert!(matches!(s.store.acquire(s.name, &request(Some(version))).unwrap(), Acquire::Won { .. }));
        assert!(matches!(s.store.acquire(s.name, &request(Some(version))).unwrap(), Acquire::Busy { .. }));
    }),
    ("gone-back-in-time", |s| {
        let version = s.store(b"value", HOUR, HOUR);
        let lost = Version { number: version.number + 5, ..version };
        assert_eq!(s.poll(Some(lost)).current, Current::Nothing { cleared: false });
        let token = match s.acquire(HOUR, Some(lost)) {
            Acquire::Won { token, current: Current::Nothing { cleared: false }, .. } => token,
            other => differs!(s, other),
        };
        assert_ne!(token.fence.incarnation, version.incarnation);
        assert!(s.stored(s.publish(&token, b"new", HOUR, HOUR)).number > lost.number);
    }),
    ("delete", |s| {
        let version = s.store(b"value", HOUR, HOUR);
        let token =
            match s.store.acquire(s.name, &Request { ahead: HOUR, ..Request::new(HOUR) }).expect("acquire") {
                Acquire::Won { token, .. } => token,
                other => differs!(s, other),
            };
        s.store.delete(s.name).expect("delete");
        assert!(
            matches!(s.poll(Some(version)).current, Current::Nothing { .. }),
            "{}: it is still there",
            s.name
        );
        assert_eq!(s.publish(&token, b"late", HOUR, HOUR), Publish::Invalidated, "{}: begun before", s.name);
        s.store.delete(s.name).expect("delete what is deleted");
        assert_ne!(s.store(b"new", HOUR, HOUR), version, "{}: another value of the same version", s.name);
    }),
    ("ahead", |s| {
        let version = s.store(b"value", HOUR, 2 * HOUR);
        let request = |ahead| Request { ahead, known: Some(version), ..Request::new(HOUR) };
        let acquire = |ahead| s.store.acquire(s.name, &request(ahead)).expect("acquire");
        assert!(matches!(acquire(HOUR / 2), Acquire::Fresh(Current::Same { .. })), "{}: not due yet", s.name);
        let token = match acquire(HOUR) {
            Acquire::Won { token, current: Current::Same { soft_left, .. }, .. } => {
                assert!(soft_left > HOUR / 2, "{}: it is fresh all the same", s.name);
                token
            }
            other => differs!(s, other),
        };
        // To a node that is content with it, it is fresh; to another one that refreshes ahead, it is being built.
        assert!(matches!(s.acquire(HOUR, Some(version)), Acquire::Fresh(Current::Same { .. })));
        assert!(matches!(acquire(HOUR), Acquire::Busy { current: Current::Same { .. }, .. }));
        let newer = s.stored(s.publish(&token, b"newer", 3 * HOUR, 3 * HOUR));
        assert_eq!(newer.number, version.number + 1);
        assert!(matches!(acquire(HOUR), Acquire::Fresh(Current::Newer(_))));
    }),
    ("an-epoch-that-has-gone-back", |s| {
        let version = s.store(b"value", HOUR, HOUR);
        let epoch = s.poll(None).epoch;
        let seen = |epochs, versions| {
            let epoch = Epoch { number: epoch.number + epochs, ..epoch };
            let seen = Some(Seen { epoch, version: version.number + versions });
            Request { seen, ..Request::new(HOUR) }
        };
        assert!(matches!(s.store.acquire(s.name, &seen(0, 0)).unwrap(), Acquire::Fresh(_)));
        let token = match s.store.acquire(s.name, &seen(7, 0)).unwrap() {
            Acquire::Won { token, current: Current::Nothing { cleared: false }, .. } => token,
            other => differs!(s, other),
        };
        assert_ne!(token.fence.incarnation, version.incarnation);
        assert!(token.epoch > epoch.number + 7, "{}: what was invalidated before stays so", s.name);
        let newer = s.stored(s.publish(&token, b"new", HOUR, HOUR));
        assert!(newer.number > version.number);
        // Of an incarnation that is gone it says nothing.
        assert!(matches!(s.store.acquire(s.name, &seen(9, 9)).unwrap(), Acquire::Fresh(_)));
        let seen = Seen { epoch: token.epoch(), version: newer.number + 5 };
        let request = Request { seen: Some(seen), ..Request::new(HOUR) };
        let token = match s.store.acquire(s.name, &request).unwrap() {
            Acquire::Won { token, .. } => token,
            other => differs!(s, other),
        };
        assert!(s.stored(s.publish(&token, b"newest", HOUR, HOUR)).number > newer.number + 5);
    }),
    ("forever", |s| {
        let version = s.store(b"value", Duration::MAX, Duration::MAX);
        assert!(s.poll(Some(version)).current.soft_left() > LONGEST / 2);
    }),
    ("names-\u{fc} %/..", |s| {
        s.store(b"value", HOUR, HOUR);
        for other in [format!("{}%", s.name), s.name.to_uppercase(), s.name.replace('/', ".")] {
            let poll = s.store.poll(&other, None).expect("poll");
            assert_eq!(poll.current, Current::Nothing { cleared: false }, "{other}: names are mixed up");
        }
    }),
];

/// An operation for [`replay`]. Tokens and versions are those of earlier answers, by number; the number wraps around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Time passes.
    Advance(Duration),
    /// [`RefreshStore::poll`].
    Poll {
        /// Which version is known.
        known: Option<usize>,
    },
    /// [`RefreshStore::acquire`].
    Acquire {
        /// The lease.
        lease: Duration,
        /// Which version is known.
        known: Option<usize>,
        /// Which version is refused.
        refuse: Option<usize>,
        /// Of which token the incarnation and the epoch were seen, how much further the epoch was, and which version.
        seen: Option<(usize, u64, u64)>,
        /// How long ahead of expiry a value counts as due.
        ahead: Duration,
    },
    /// [`RefreshStore::publish`].
    Publish {
        /// Whose token.
        token: usize,
        /// The bytes.
        payload: Vec<u8>,
        /// The tag.
        tag: Option<String>,
        /// How long it is fresh.
        soft: Duration,
        /// How long it may be served.
        hard: Duration,
    },
    /// [`RefreshStore::unchanged`].
    Unchanged {
        /// Whose token.
        token: usize,
        /// How long it is fresh.
        soft: Duration,
        /// How long it may be served.
        hard: Duration,
    },
    /// [`RefreshStore::fail`].
    Fail {
        /// Whose token.
        token: usize,
        /// The pause.
        pause: Duration,
    },
    /// [`RefreshStore::renew`].
    Renew {
        /// Whose token.
        token: usize,
        /// The lease.
        lease: Duration,
    },
    /// [`RefreshStore::invalidate`].
    Invalidate(Invalidation),
    /// The store loses the entry.
    Lose,
}

/// Runs `operations` on `store` and on the rules, and compares each answer to the microsecond. `clock` must be what the
/// store goes by; `lose` makes it lose the entry.
///
/// # Panics
///
/// At the first answer that differs.
pub fn replay(
    store: &dyn RefreshStore,
    name: &str,
    clock: &ManualClock,
    lose: impl Fn(),
    operations: &[Operation],
) {
    let mut replay = Replay::default();
    for (number, operation) in operations.iter().enumerate() {
        let (got, expected) = replay.step(store, name, clock, &lose, operation);
        assert_eq!(got, expected, "operation {number}, {operation:?}: the store's answer is on the left");
    }
}

/// An answer in which incarnations are numbered in the order of their appearance.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    None,
    Poll(Poll),
    Acquire(Acquire),
    Publish(Publish),
    Heard(bool),
    Epoch(u64),
}

/// Both sides give out tokens and versions; the lists run in parallel.
#[derive(Default)]
struct Replay {
    entry: Entry,
    draws: u64,
    /// The store's incarnations, and what they are called here.
    names: HashMap<u64, u64>,
    tokens: Vec<(Token, Token)>,
    versions: Vec<(Version, Version)>,
}

impl Replay {
    fn step(
        &mut self,
        store: &dyn RefreshStore,
        name: &str,
        clock: &ManualClock,
        lose: &impl Fn(),
        operation: &Operation,
    ) -> (Answer, Answer) {
        let now: Micros = clock.now().as_nanos() / 1000;
        self.draws += 1;
        let draw = self.draws;
        let pair = |token: &usize| {
            let made_up = Token { fence: Fence { incarnation: u64::MAX >> 1, number: 1 }, epoch: 0 };
            if self.tokens.is_empty() { (made_up, made_up) } else { self.tokens[token % self.tokens.len()] }
        };
        let version = |version: &Option<usize>| {
            version
                .filter(|_| !self.versions.is_empty())
                .map(|version| self.versions[version % self.versions.len()])
                .unzip()
        };
        match operation {
            Operation::Advance(by) => {
                clock.advance(*by);
                (Answer::None, Answer::None)
            }
            Operation::Lose => {
                lose();
                self.entry = Entry::default();
                (Answer::None, Answer::None)
            }
            Operation::Poll { known } => {
                let (theirs, ours) = version(known);
                let got = store.poll(name, theirs).expect("poll");
                let expected = self.entry.poll(now, ours);
                self.learn_current(&got.current, &expected.current);
                if got.epoch.incarnation != 0 && expected.epoch.incarnation != 0 {
                    self.names.entry(got.epoch.incarnation).or_insert(expected.epoch.incarnation);
                }
                let epoch = Epoch { incarnation: self.name(got.epoch.incarnation), ..got.epoch };
                (
                    Answer::Poll(Poll { current: self.rename_current(got.current), epoch, ..got }),
                    Answer::Poll(expected),
                )
            }
            Operation::Acquire { lease, known, refuse, seen, ahead } => {
                let seen = seen.map(|(token, later, version)| {
                    let (theirs, ours) = pair(&token);
                    let seen = |token: Token| {
                        let Epoch { incarnation, number } = token.epoch();
                        Seen { epoch: Epoch { incarnation, number: number + later }, version }
                    };
                    (seen(theirs), seen(ours))
                });
                let (their_seen, our_seen) = seen.unzip();
                let ((theirs, ours), (their_refuse, our_refuse)) = (version(known), version(refuse));
                let (lease, ahead) = (*lease, *ahead);
                let request = Request { lease, known: theirs, refuse: their_refuse, seen: their_seen, ahead };
                let got = store.acquire(name, &request).expect("acquire");
                let request = Request { known: ours, refuse: our_refuse, seen: our_seen, ..request };
                let expected = self.entry.acquire(now, &request, draw);
                self.learn_acquire(&got, &expected);
                (Answer::Acquire(self.rename_acquire(got)), Answer::Acquire(expected))
            }
            Operation::Publish { token, payload, tag, soft, hard } => {
                let (theirs, ours) = pair(token);
                let publication = Publication { payload, tag: tag.as_deref(), soft: *soft, hard: *hard };
                let got = store.publish(name, &theirs, &publication).expect("publish");
                let expected = self.entry.publish(now, &ours, &publication);
                self.published(got, expected)
            }
            Operation::Unchanged { token, soft, hard } => {
                let (theirs, ours) = pair(token);
                let got = store.unchanged(name, &theirs, *soft, *hard).expect("unchanged");
                let expected = self.entry.unchanged(now, &ours, *soft, *hard);
                self.published(got, expected)
            }
            Operation::Fail { token, pause } => {
                let (theirs, ours) = pair(token);
                let got = store.fail(name, &theirs, *pause).expect("fail");
                (Answer::Heard(got), Answer::Heard(self.entry.fail(now, &ours, *pause)))
            }
            Operation::Renew { token, lease } => {
                let (theirs, ours) = pair(token);
                let got = store.renew(name, &theirs, *lease).expect("renew");
                (Answer::Heard(got), Answer::Heard(self.entry.renew(now, &ours, *lease)))
            }
            Operation::Invalidate(how) => {
                let got = store.invalidate(name, *how).expect("invalidate");
                let ours = self.entry.invalidate(now, *how, draw);
                (Answer::Epoch(got.number), Answer::Epoch(ours.number))
            }
        }
    }

    fn published(&mut self, got: Publish, expected: Publish) -> (Answer, Answer) {
        let got = match (got, expected) {
            (Publish::Stored(theirs), Publish::Stored(ours)) => {
                self.learn(theirs, ours);
                Publish::Stored(self.rename(theirs))
            }
            _ => got,
        };
        (Answer::Publish(got), Answer::Publish(expected))
    }

    fn learn(&mut self, theirs: Version, ours: Version) {
        self.names.entry(theirs.incarnation).or_insert(ours.incarnation);
        if !self.versions.contains(&(theirs, ours)) {
            self.versions.push((theirs, ours));
        }
    }

    fn learn_current(&mut self, theirs: &Current, ours: &Current) {
        if let (Current::Newer(theirs), Current::Newer(ours)) = (theirs, ours) {
            self.learn(theirs.version, ours.version);
        }
    }

    fn learn_acquire(&mut self, theirs: &Acquire, ours: &Acquire) {
        if let (Acquire::Won { token, .. }, Acquire::Won { token: our_token, .. }) = (theirs, ours) {
            self.names.entry(token.fence.incarnation).or_insert(our_token.fence.incarnation);
            self.tokens.push((*token, *our_token));
        }
        self.learn_current(current_of(theirs), current_of(ours));
    }

    fn rename(&self, version: Version) -> Version {
        Version { incarnation: self.name(version.incarnation), ..version }
    }

    fn name(&self, incarnation: u64) -> u64 {
        self.names.get(&incarnation).copied().unwrap_or(incarnation)
    }

    fn rename_current(&self, current: Current) -> Current {
        match current {
            Current::Newer(value) => Current::Newer(Value { version: self.rename(value.version), ..value }),
            other => other,
        }
    }

    fn rename_acquire(&self, answer: Acquire) -> Acquire {
        match answer {
            Acquire::Fresh(current) => Acquire::Fresh(self.rename_current(current)),
            Acquire::Won { token, tag, failures, current } => {
                let incarnation = self.name(token.fence.incarnation);
                let fence = Fence { incarnation, ..token.fence };
                Acquire::Won {
                    token: Token { fence, ..token },
                    tag,
                    failures,
                    current: self.rename_current(current),
                }
            }
            Acquire::Busy { left, current } => Acquire::Busy { left, current: self.rename_current(current) },
            Acquire::Backoff { left, epoch, current } => {
                let epoch = Epoch { incarnation: self.name(epoch.incarnation), ..epoch };
                Acquire::Backoff { left, epoch, current: self.rename_current(current) }
            }
        }
    }
}

fn current_of(answer: &Acquire) -> &Current {
    match answer {
        Acquire::Fresh(current)
        | Acquire::Won { current, .. }
        | Acquire::Busy { current, .. }
        | Acquire::Backoff { current, .. } => current,
    }
}
