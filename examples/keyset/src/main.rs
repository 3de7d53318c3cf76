//! A `Refresher` keeps a key set up to date while its issuer has nothing new, rotates its keys, is down and comes back.
//! `cargo run --release -p keyset` prints every fetch, and what a reader has seen of it.

use dogpile::{DogpileCell, Policy, Refreshed, Refresher};
use keyset::{KeySet, agent, fetch, issuer::Issuer};
use std::sync::{Arc, mpsc};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const TTL: Duration = Duration::from_millis(500);
const AHEAD: Duration = Duration::from_millis(100);
const POLICY: Policy = Policy::ttl(TTL).retry_backoff(AHEAD, Duration::from_millis(400));
static KEYS: DogpileCell<KeySet> = DogpileCell::with_policy(POLICY).named("keys");

fn main() -> anyhow::Result<()> {
    let issuer = Issuer::start()?;
    let (agent, url, start) = (agent(), issuer.url(), Instant::now());
    let (tell, fetches) = mpsc::channel();
    let build = move |previous: Option<&Arc<KeySet>>| {
        let result = fetch(&agent, &url, previous);
        let what = match &result {
            Ok(Refreshed::NotModified) => "304: as it was".to_owned(),
            Ok(Refreshed::New(set) | Refreshed::NewFor(set, _)) => format!("200: {}", set.keys[0].kid),
            Err(error) => format!("failed: {error}"),
        };
        println!("{:6} ms  {what}", start.elapsed().as_millis());
        tell.send(what).ok();
        result
    };
    let next = |start| while !fetches.recv().expect("it goes on fetching").starts_with(start) {};

    println!("The first fetch; then every 400 ms, 100 ms before the key set is out of date.");
    let refresher = Refresher::spawn(&KEYS, AHEAD, build)?;
    next("200");
    while KEYS.generation() == 0 {
        sleep(MS);
    }
    let (stop, stopped) = mpsc::channel::<()>();
    let reader = thread::spawn(move || read(&stopped));
    (0..2).for_each(|_| next("304"));

    println!("The issuer rotates its keys.");
    issuer.rotate();
    next("200");

    println!("The issuer is down. Each pause is twice as long as the one before, up to 400 ms.");
    issuer.set_down(true);
    (0..5).for_each(|_| next("failed"));
    let error = refresher.last_error().and_then(|error| error.downcast::<ureq::Error>().ok());
    println!("           last error: {}; the cell: {:?}", error.expect("a failure"), KEYS.freshness());

    println!("It is back.");
    issuer.set_down(false);
    next("304");
    sleep(100 * MS);

    println!("{:6} ms  Somebody calls `invalidate`: fetched at once.", start.elapsed().as_millis());
    KEYS.invalidate();
    next("304");

    drop((refresher, stop));
    let (reads, seen) = reader.join().expect("the reader's panic");
    println!("A reader asked {reads} times, got an answer each time, and saw {}.", seen.join(", then "));
    let stats = KEYS.stats();
    println!("{} fetches, {} of them failed; {} reads waited.", stats.builds, stats.failed, stats.waits);
    Ok(())
}

/// How often it has read, and the key sets in the order in which they were there. The refresher builds, not the reader.
fn read(stopped: &mpsc::Receiver<()>) -> (u64, Vec<String>) {
    let (mut reads, mut seen) = (0, Vec::new());
    while stopped.recv_timeout(MS) == Err(mpsc::RecvTimeoutError::Timeout) {
        seen.push(KEYS.get_or_refresh(|| unreachable!("there is always one")).keys[0].kid.clone());
        seen.dedup();
        reads += 1;
    }
    (reads, seen)
}
