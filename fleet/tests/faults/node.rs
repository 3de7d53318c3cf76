//! A node process: four threads that read all the time, and a dialogue with the test over standard input and output.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{BufRead, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dogpile::Freshness;
use dogpile_fleet::{
    BuildContext, CodecError, FileStore, FleetCell, FleetPolicy, Functions, PostgresStore, RedisStore,
    RefreshStore, Refreshed, Version,
};

pub(crate) const SETTINGS: &str = "DOGPILE_FLEET_NODE";
/// Before each line that is meant for the test, since the test harness writes to the same pipe.
pub(crate) const MARK: &str = "@@ ";
pub(crate) const NAME: &str = "value";
const THREADS: usize = 4;

/// How a node is set up; written to the environment as one line.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) store: String,
    /// The file with the number that is the source of all values.
    pub(crate) source: String,
    pub(crate) ttl: u64,
    pub(crate) lease: u64,
    pub(crate) poll: u64,
    pub(crate) schema: u32,
    pub(crate) timeout: u64,
}

impl Settings {
    pub(crate) fn write(&self) -> String {
        let Self { store, source, ttl, lease, poll, schema, timeout } = self;
        format!("{store} {source} {ttl} {lease} {poll} {schema} {timeout}")
    }

    fn read(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<u64>().unwrap();
        Self {
            store: words[0].to_owned(),
            source: words[1].to_owned(),
            ttl: number(2),
            lease: number(3),
            poll: number(4),
            schema: u32::try_from(number(5)).unwrap(),
            timeout: number(6),
        }
    }
}

pub(crate) fn open_store(address: &str, timeout: Duration) -> Box<dyn RefreshStore> {
    if address.starts_with("redis:") {
        Box::new(RedisStore::new(address).unwrap().timeout(timeout))
    } else if address.starts_with("postgres:") {
        Box::new(PostgresStore::new(address).unwrap().timeout(timeout))
    } else {
        Box::new(FileStore::open(address).unwrap().timeout(timeout))
    }
}

/// Where builds are held up.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

#[derive(Default)]
struct Reader {
    reads: AtomicU64,
    builds: AtomicBool,
}

struct Node {
    cell: FleetCell<u64>,
    settings: Settings,
    gate: Gate,
    readers: [Reader; THREADS],
    running: AtomicBool,
    violations: Mutex<Vec<String>>,
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The test may be gone.
    let _ = writeln!(out, "{MARK}{line}");
    let _ = out.flush();
}

pub(crate) fn run(settings: &str) {
    let settings = Settings::read(settings);
    let millis = Duration::from_millis;
    let policy = FleetPolicy::ttl(millis(settings.ttl))
        .lease(millis(settings.lease))
        .poll(millis(settings.poll))
        .patience(millis(20))
        .breaker(millis(50), millis(400));
    let codec = Functions::new(
        |value: &u64| Ok(value.to_le_bytes().to_vec()),
        |bytes: &[u8]| Ok(u64::from_le_bytes(bytes.try_into().map_err(CodecError::new)?)),
    )
    .schema(settings.schema);
    let store = open_store(&settings.store, millis(settings.timeout));
    let node = Arc::new(Node {
        cell: FleetCell::new(NAME, store, codec, policy),
        settings,
        gate: Gate::default(),
        readers: std::array::from_fn(|_| Reader::default()),
        running: AtomicBool::new(true),
        violations: Mutex::default(),
    });
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let node = Arc::clone(&node);
            std::thread::spawn(move || node.read_all_the_time(number))
        })
        .collect();
    say("ready");
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let (command, argument) = line.split_once(' ').unwrap_or((&line, "0"));
        let argument: u64 = argument.parse().unwrap_or(0);
        match command {
            "hold" => *node.gate.closed.lock().unwrap() = true,
            "release" => {
                *node.gate.closed.lock().unwrap() = false;
                node.gate.opened.notify_all();
            }
            "progress" => node.await_progress(argument),
            "await" => Node::wait_until(|| node.source() >= Some(argument) && node.is_fresh()),
            "stale" => Node::wait_until(|| node.cell.freshness() == Freshness::Stale),
            "polled" => {
                let before = node.cell.stats().polls;
                Node::wait_until(|| node.cell.stats().polls >= before + 2);
                let fresh = node.cell.snapshot().is_some_and(|snapshot| {
                    snapshot.freshness == Freshness::Fresh && *snapshot.value < argument
                });
                say(if fresh { "polled older" } else { "polled newer" });
                continue;
            }
            "report" => {
                say(&node.report());
                continue;
            }
            "quit" => break,
            other => panic!("{other}?"),
        }
        say("done");
    }
    node.running.store(false, Ordering::SeqCst);
    *node.gate.closed.lock().unwrap() = false;
    node.gate.opened.notify_all();
    for thread in threads {
        thread.join().unwrap();
    }
    say("bye");
}

impl Node {
    fn read_all_the_time(&self, number: usize) {
        let me = &self.readers[number];
        let mut last: Option<(u64, Option<Version>)> = None;
        while self.running.load(Ordering::SeqCst) {
            drop(self.cell.try_get_with(|context| {
                me.builds.store(true, Ordering::SeqCst);
                let built = self.build(context);
                me.builds.store(false, Ordering::SeqCst);
                Ok::<_, Infallible>(built)
            }));
            if let Some(snapshot) = self.cell.snapshot() {
                let now = (*snapshot.value, snapshot.version);
                if let Some((value, version)) = last {
                    let older = |old: Version, new: Version| {
                        old.incarnation == new.incarnation && new.number < old.number
                    };
                    if (now.0, now.1) != (value, version) {
                        self.note(&format!("thread {number} sees {now:?}"));
                    }
                    if now.0 < value || version.zip(now.1).is_some_and(|(old, new)| older(old, new)) {
                        self.violations.lock().unwrap().push(format!("{now:?} after {last:?}"));
                    }
                }
                // A version that is not known says nothing about the next one.
                last = Some((now.0, now.1.or(last.and_then(|(_, version)| version))));
            }
            me.reads.fetch_add(1, Ordering::SeqCst);
            // Thirty-two threads share a processor or two.
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    fn build(&self, context: &BuildContext<'_, u64>) -> Refreshed<u64> {
        let source = read_source(&self.settings.source);
        self.note(&format!("{:?} builds from {source}", context.fence()));
        let mut closed = self.gate.closed.lock().unwrap();
        if *closed {
            say(&format!("held {}", context.fence().map_or(0, |fence| fence.number)));
            while *closed {
                closed = self.gate.opened.wait(closed).unwrap();
            }
        }
        source.into()
    }

    /// Adds a line to the history of the fleet, to be shown when a test fails.
    fn note(&self, what: &str) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let path = format!("{}.history", self.settings.source);
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        let line = format!("{}.{:06} {} {what}\n", now.tv_sec, now.tv_nsec / 1000, std::process::id());
        file.write_all(line.as_bytes()).unwrap();
    }

    fn source(&self) -> Option<u64> {
        self.cell.snapshot().map(|snapshot| *snapshot.value)
    }

    fn is_fresh(&self) -> bool {
        self.cell.freshness() == Freshness::Fresh
    }

    fn wait_until(condition: impl Fn() -> bool) {
        while !condition() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until each thread that does not build has read so many times more.
    fn await_progress(&self, reads: u64) {
        let before: Vec<u64> =
            self.readers.iter().map(|reader| reader.reads.load(Ordering::SeqCst)).collect();
        Self::wait_until(|| {
            self.readers.iter().zip(&before).all(|(reader, before)| {
                reader.builds.load(Ordering::SeqCst) || reader.reads.load(Ordering::SeqCst) >= before + reads
            })
        });
    }

    fn report(&self) -> String {
        let stats = self.cell.stats();
        let mut report = format!(
            "report fleet_builds={} local_builds={} published={} superseded={} invalidated={} damaged={} foreign={} \
             store_errors={} adopted={} violations={}",
            stats.fleet_builds,
            stats.local_builds,
            stats.published,
            stats.superseded,
            stats.invalidated,
            stats.damaged,
            stats.foreign,
            stats.store_errors,
            stats.adopted,
            self.violations.lock().unwrap().len()
        );
        for violation in self.violations.lock().unwrap().iter() {
            let _ = write!(report, " [{violation}]");
        }
        report
    }
}

pub(crate) fn read_source(path: &str) -> u64 {
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}
