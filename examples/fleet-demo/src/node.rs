//! One of the processes.

use std::error::Error;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dogpile::DogpileCell;
use dogpile_fleet::{
    CodecError, FileStore, FleetCell, FleetPolicy, Functions, PostgresStore, RedisStore, RefreshStore,
};

use crate::log::{Writer, now};

pub(crate) const THREADS: usize = 4;
pub(crate) const TTL: Duration = Duration::from_millis(400);
pub(crate) const BUILD: Duration = Duration::from_millis(60);
const LEASE: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Alone,
    Fleet,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        if self == Self::Alone { "alone" } else { "fleet" }
    }
}

pub(crate) struct Settings {
    pub(crate) store: String,
    pub(crate) mode: Mode,
    pub(crate) log: PathBuf,
    pub(crate) name: String,
}

impl Settings {
    pub(crate) fn words(&self) -> [String; 4] {
        [self.store.clone(), self.mode.name().to_owned(), self.log.display().to_string(), self.name.clone()]
    }

    pub(crate) fn parse(words: &[String]) -> Result<Self, Box<dyn Error>> {
        let [store, mode, log, name] = words else { return Err("a node has four settings".into()) };
        let mode = if mode == "alone" { Mode::Alone } else { Mode::Fleet };
        Ok(Self { store: store.clone(), mode, log: log.into(), name: name.clone() })
    }
}

/// The value: when it was read from its source, in microseconds since 1970.
type Value = u64;

pub(crate) fn open_store(store: &str) -> Result<Box<dyn RefreshStore>, Box<dyn Error>> {
    Ok(if store.starts_with("redis") {
        Box::new(RedisStore::new(store)?)
    } else if store.starts_with("postgres") {
        Box::new(PostgresStore::new(store)?)
    } else {
        Box::new(FileStore::open(store)?)
    })
}

fn fleet_cell(settings: &Settings) -> Result<FleetCell<Value>, Box<dyn Error>> {
    let policy = FleetPolicy::ttl(TTL).lease(LEASE).poll(Duration::from_millis(100));
    let codec = Functions::new(
        |value: &Value| Ok(value.to_le_bytes().to_vec()),
        |bytes: &[u8]| Ok(Value::from_le_bytes(bytes.try_into().map_err(CodecError::new)?)),
    );
    Ok(FleetCell::new(&*settings.name, open_store(&settings.store)?, codec, policy))
}

/// Reads with all threads until the standard input ends.
pub(crate) fn run(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let writer = Writer::open(&settings.log)?;
    let build = || {
        writer.write("begin", 0);
        let value = now();
        std::thread::sleep(BUILD);
        writer.write("end", 0);
        value
    };
    let fleet = fleet_cell(settings)?;
    let alone = DogpileCell::new(TTL);
    let read = || -> Arc<Value> {
        match settings.mode {
            Mode::Alone => alone.get_or_refresh(build),
            Mode::Fleet => fleet.get_or_refresh(build),
        }
    };
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut oldest = 0;
                while running.load(Ordering::Relaxed) {
                    let value = *read();
                    let age = now().saturating_sub(value);
                    if age > oldest {
                        oldest = age;
                        writer.write("age", age);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let mut nothing = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut nothing);
        running.store(false, Ordering::Relaxed);
    });
    Ok(())
}
