//! A `Refresher` keeps a key set up to date while its issuer has nothing new, rotates its keys, is down and comes back. Then
//! a thousand tokens with made-up key ids come, and one with a new key.
//! `cargo run --release -p keyset` prints every fetch, and what a reader has seen of it.

mod tokens;

use dogpile::{DogpileCell, Policy, Refreshed, Refresher};
use keyset::{KeySet, agent, fetch, issuer::Issuer};
use std::sync::{Arc, mpsc};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const AHEAD: Duration = Duration::from_millis(100);
const POLICY: Policy =
    Policy::ttl(Duration::from_millis(500)).retry_backoff(AHEAD, Duration::from_millis(400));
static KEYS: DogpileCell<KeySet> = DogpileCell::with_policy(POLICY).named("keys");

fn main() -> anyhow::Result<()> {
    let issuer = Issuer::start()?;
    let (agent, url, start) = (agent(), issuer.url(), Instant::now());
    let (tell, fetches) = mpsc::channel();
    let build = move |previous: Option<Arc<KeySet>>| {
        let result = fetch(&agent, &url, previous);
        let what = match &result {
            Ok(Refreshed::New(set)) => format!("200: {}", set.keys[0].kid),
            Ok(_) => "304: as it was".to_owned(),
            Err(error) => format!("failed: {error}"),
        };
        println!("{:6} ms  {what}", start.elapsed().as_millis());
        tell.send(what).ok();
        result
    };
    let next = |start| while !fetches.recv().expect("it goes on fetching").starts_with(start) {};

    println!("The first fetch; then every 400 ms, 100 ms before the key set is out of date.");
    let refresher = Refresher::spawn(&KEYS, AHEAD, build)?;
    assert!(refresher.wait_ready(10_000 * MS));
    let waits = KEYS.stats().waits;
    let (stop, stopped) = mpsc::channel::<()>();
    let reader = thread::spawn(move || read(&stopped));
    (0..2).for_each(|_| next("304"));
    println!("The issuer rotates its keys.");
    issuer.rotate();
    next("200: key-2");
    println!("The issuer is down. Each pause is twice as long as the one before, up to 400 ms.");
    issuer.set_down(true);
    (0..5).for_each(|_| next("failed"));
    let error = refresher.last_error().expect("a failure");
    println!("           last error: {error}; the cell: {:?}", KEYS.freshness());
    println!("It is back.");
    issuer.set_down(false);
    next("304");
    sleep(100 * MS);
    println!("{:6} ms  `invalidate` is called: fetched at once.", start.elapsed().as_millis());
    KEYS.invalidate();
    next("304");

    drop((refresher, stop));
    let mut seen = reader.join().expect("the reader's panic");
    let reads = seen.len();
    seen.dedup();
    println!("A reader asked {reads} times, got an answer each time, and saw {}.", seen.join(", then "));
    let stats = KEYS.stats();
    let (fetches, failed, waited) = (stats.builds, stats.failed, stats.waits - waits);
    println!("{fetches} fetches, {failed} of them failed; {waited} reads waited.");
    tokens::show()
}

/// What it has read, in that order. The refresher builds, not the reader.
fn read(stopped: &mpsc::Receiver<()>) -> Vec<String> {
    let mut seen = Vec::new();
    while stopped.recv_timeout(MS) == Err(mpsc::RecvTimeoutError::Timeout) {
        seen.push(KEYS.get_or_refresh(|| unreachable!("there is always one")).keys[0].kid.clone());
    }
    seen
}
