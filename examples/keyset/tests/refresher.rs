//! The `Refresher`, the issuer and readers together, on a clock that the test moves. Real time is a guard against hangs.

use dogpile::{Clock, DogpileCell, Freshness, ManualClock, Policy, RefreshError, Refreshed, Refresher};
use keyset::issuer::{Asked, Issuer};
use keyset::{KeySet, agent, fetch};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_nanos(1);
const TTL: Duration = Duration::from_secs(10);
const AHEAD: Duration = Duration::from_secs(2);
/// The age at which a key set is fetched again: at `TTL` it is still fresh.
const DUE: Duration = Duration::from_nanos(8_000_000_001);
const POLICY: Policy = Policy::ttl(TTL).retry_backoff(SECOND, Duration::from_secs(4));
const PATIENCE: Duration = Duration::from_secs(30);

type Cell = Arc<DogpileCell<KeySet, ManualClock>>;

/// A refresher that fetches when the test lets it.
struct Run {
    // Dropped before the refresher, which waits for its fetch.
    go: Sender<()>,
    refresher: Refresher,
    issuer: Issuer,
    clock: ManualClock,
    cell: Cell,
    /// When each fetch began, on the clock.
    begun: Receiver<Duration>,
}

impl Run {
    fn start() -> Self {
        let issuer = Issuer::start().unwrap();
        Self::with_url(&issuer.url(), issuer)
    }

    fn with_url(url: &str, issuer: Issuer) -> Self {
        let clock = ManualClock::new();
        let cell = Arc::new(DogpileCell::with_clock(POLICY, clock.clone()));
        let (teller, begun) = channel();
        let (go, gone) = channel();
        let (agent, url, own) = (agent(), url.to_owned(), clock.clone());
        let build = move |previous: Option<Arc<KeySet>>| {
            teller.send(Duration::from_nanos(own.now().as_nanos())).unwrap();
            // An error: the test is over.
            gone.recv().ok();
            fetch(&agent, &url, previous)
        };
        let refresher = Refresher::spawn(&cell, AHEAD, build).unwrap();
        Self { go, refresher, issuer, clock, cell, begun }
    }

    /// Waits for a fetch to begin; returns when that was.
    #[track_caller]
    fn begins(&self) -> Duration {
        self.begun.recv_timeout(PATIENCE).expect("a fetch begins")
    }

    /// Lets it go on, until it is published.
    #[track_caller]
    fn succeeds(&self) {
        let generation = self.cell.generation();
        self.go.send(()).unwrap();
        until("published", || self.cell.generation() == generation + 1);
    }

    /// Lets it go on, until it has failed.
    #[track_caller]
    fn fails(&self) {
        let failures = self.refresher.consecutive_failures();
        self.go.send(()).unwrap();
        until("failed", || self.refresher.consecutive_failures() == failures + 1);
    }

    /// The `If-None-Match` of the latest request, and the answer's status.
    fn last_asked(&self) -> (Option<String>, u16) {
        let Asked { if_none_match, status } = self.issuer.log().pop().expect("a request");
        (if_none_match, status)
    }
}

#[allow(clippy::unnecessary_wraps)] // as it is in the log
fn etag(number: u32) -> Option<String> {
    Some(format!("\"{number}\""))
}

/// Waits for something that happens elsewhere without a signal.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::yield_now();
    }
}

/// Threads that read all the time, and never build.
struct Readers {
    stop: Arc<AtomicBool>,
    /// How often each has read.
    reads: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Readers {
    fn start(cell: &Cell) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let reads = vec![Arc::default(), Arc::default()];
        let read = |reads: &Arc<AtomicU64>| {
            let (cell, stop, reads) = (Arc::clone(cell), Arc::clone(&stop), Arc::clone(reads));
            thread::spawn(move || {
                let mut seen = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let set = cell.get_or_refresh(|| panic!("a reader builds"));
                    let kid = &set.keys[0].kid;
                    if seen.last() != Some(kid) {
                        seen.push(kid.clone());
                    }
                    reads.fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                }
                seen
            })
        };
        let threads = reads.iter().map(read).collect();
        Self { stop, reads, threads }
    }

    /// Returns when each has begun and ended some reads since the call.
    #[track_caller]
    fn go_on_reading(&self) {
        let before: Vec<u64> = self.reads.iter().map(|reads| reads.load(Ordering::SeqCst)).collect();
        until("the readers are served", || {
            self.reads.iter().zip(&before).all(|(reads, before)| reads.load(Ordering::SeqCst) > before + 20)
        });
    }

    /// The different keys that each reader has seen, one after the other.
    fn stop(self) -> Vec<Vec<String>> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().map(|reader| reader.join().expect("a reader's panic")).collect()
    }
}

#[test]
fn an_unmodified_key_set_is_renewed_and_a_rotated_one_replaced() {
    let run = Run::start();
    assert_eq!(run.begins(), Duration::ZERO);
    run.succeeds();
    assert_eq!(run.last_asked(), (None, 200));
    let first = run.cell.get().unwrap();
    assert_eq!((&*first.keys[0].kid, first.etag.as_deref()), ("key-1", Some("\"1\"")));
    let readers = Readers::start(&run.cell);
    readers.go_on_reading();

    run.clock.advance(DUE);
    assert_eq!(run.begins(), DUE);
    readers.go_on_reading();
    run.succeeds();
    assert_eq!(run.last_asked(), (etag(1), 304));
    let renewed = run.cell.snapshot().unwrap();
    assert!(Arc::ptr_eq(&first, &renewed.value), "the same keys, nothing copied");
    assert_eq!((renewed.generation, renewed.age, renewed.freshness), (2, Duration::ZERO, Freshness::Fresh));

    run.issuer.rotate();
    run.clock.advance(DUE);
    run.begins();
    readers.go_on_reading();
    run.succeeds();
    assert_eq!(run.last_asked(), (etag(1), 200));
    readers.go_on_reading();

    run.clock.advance(DUE);
    run.begins();
    run.succeeds();
    assert_eq!(run.last_asked(), (etag(2), 304));

    for seen in readers.stop() {
        assert_eq!(seen, ["key-1", "key-2"]);
    }
    assert_eq!(run.issuer.log().len(), 4, "nothing is asked for twice");
    let stats = run.cell.stats();
    assert_eq!((stats.builds, stats.published, stats.waits), (4, 4, 0));
}

#[test]
fn while_the_issuer_is_down_it_is_asked_after_longer_and_longer_pauses_and_readers_are_served() {
    let run = Run::start();
    run.begins();
    run.succeeds();
    let readers = Readers::start(&run.cell);
    assert!(run.refresher.last_error().is_none());

    run.issuer.set_down(true);
    run.clock.advance(DUE);
    let mut last = run.begins();
    run.fails();
    for (failures, pause) in [(1, 1), (2, 2), (3, 4), (4, 4)] {
        assert_eq!(run.refresher.consecutive_failures(), failures);
        let error = run.refresher.last_error().expect("an error");
        assert!(matches!(error.downcast_ref(), Some(ureq::Error::StatusCode(503))), "{error}");

        let pause = pause * SECOND;
        run.clock.advance(pause - TICK);
        // Time enough for an attempt that comes too early.
        readers.go_on_reading();
        run.clock.advance(TICK);
        let begun = run.begins();
        assert_eq!(begun - last, pause, "after {failures} failures");
        last = begun;
        run.fails();
        assert_eq!(run.last_asked(), (etag(1), 503));
    }
    assert_eq!(run.cell.freshness(), Freshness::Stale);
    readers.go_on_reading();

    run.issuer.set_down(false);
    run.issuer.rotate();
    run.clock.advance(4 * SECOND);
    assert_eq!(run.begins() - last, 4 * SECOND);
    run.succeeds();
    assert_eq!(run.last_asked(), (etag(1), 200));
    until("the success is noted", || run.refresher.consecutive_failures() == 0);
    assert!(run.refresher.last_error().is_none());
    readers.go_on_reading();
    for seen in readers.stop() {
        assert_eq!(seen, ["key-1", "key-2"]);
    }
    let statuses: Vec<u16> = run.issuer.log().iter().map(|asked| asked.status).collect();
    assert_eq!(statuses, [200, 503, 503, 503, 503, 503, 200]);
    assert_eq!(run.cell.stats().failed, 5);
}

#[test]
fn an_invalidated_key_set_is_fetched_at_once() {
    let run = Run::start();
    run.begins();
    run.succeeds();
    let readers = Readers::start(&run.cell);
    readers.go_on_reading();
    run.issuer.rotate();

    run.cell.invalidate();
    assert_eq!(run.begins(), Duration::ZERO, "the clock has not moved");
    assert_eq!(run.cell.freshness(), Freshness::Stale);
    readers.go_on_reading();
    run.succeeds();
    assert_eq!(run.last_asked(), (etag(1), 200));
    assert_eq!(run.cell.freshness(), Freshness::Fresh);
    readers.go_on_reading();
    for seen in readers.stop() {
        assert_eq!(seen, ["key-1", "key-2"]);
    }
}

#[test]
fn without_an_issuer_from_the_start_readers_get_the_reason() {
    // Nothing listens there.
    let run = Run::with_url("http://127.0.0.1:1/keys", Issuer::start().unwrap());
    run.begins();
    run.fails();
    let error = run.refresher.last_error().expect("an error");
    assert!(
        matches!(error.downcast_ref(), Some(ureq::Error::Io(error)) if error.kind() == ErrorKind::ConnectionRefused),
        "{error}"
    );

    let build = || -> Result<KeySet, ureq::Error> { panic!("the retry pause runs: nobody builds") };
    match run.cell.try_get_or_refresh(build) {
        Err(RefreshError::Build(shared)) => assert!(shared.ptr_eq(&error)),
        other => panic!("expected the refresher's error, got {:?}", other.map(drop)),
    }
    assert!(run.issuer.log().is_empty());
}

#[test]
fn an_answer_that_is_no_key_set_is_an_error() {
    let issuer = Issuer::start().unwrap();
    let agent = agent();
    assert!(matches!(fetch(&agent, &issuer.url(), None), Ok(Refreshed::New(_))));

    let page = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", page.local_addr().unwrap());
    let asked = Mutex::new(String::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::{BufRead, BufReader, Write};
            let (mut stream, _) = page.accept().unwrap();
            for line in
                BufReader::new(&stream).lines().map(Result::unwrap).take_while(|line| !line.is_empty())
            {
                asked.lock().unwrap().push_str(&line);
            }
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<html>Log in</html>").unwrap();
        });
        let answer = fetch(&agent, &url, None);
        assert!(matches!(answer, Err(ureq::Error::Json(_))), "{answer:?}");
    });
    assert!(asked.into_inner().unwrap().starts_with("GET / HTTP/1.1"));
}
