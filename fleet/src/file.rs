//! A store in a directory: for the processes of one host.
//!
//! # Protocol
//!
//! Each name has two files. `<name>.lock` is never written: whoever changes the entry holds the operating system's lock
//! on it, which the system takes back when the process ends, however it ends. `<name>.state` holds the entry: a header
//! of fixed size, then tag and payload. It is never written either, but replaced: the new one is written beside it under
//! the lock, flushed, and renamed into place. So at any instant there is one whole entry, the old one or the new one, and
//! who only looks needs no lock.
//!
//! Header and body have checksums. What does not match is moved aside to `<name>.damaged`, counted, and treated as lost;
//! if only the body is damaged, fences and epochs go on counting.
//!
//! Times are those of the host since it was started (Linux), which all its processes share and nobody sets. After a
//! restart of the host leases and pauses are void and values are due. Elsewhere it is the time of day.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogpile::{Clock, Tick};

use crate::draw;
use crate::rules::{Entry, Micros, Stored};
use crate::store::{
    Acquire, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError, Token, Version,
};

/// A [`RefreshStore`] in a directory, for the processes of one host. Needs no server.
///
/// The directory has to be on a local file system: what network file systems make of locks and renames is not relied on.
/// Every change rewrites the whole value, so this is for values of some megabytes at most.
///
/// A `kill -9` at any instant leaves the entry whole; a crash of the host too, as far as its file system keeps what has
/// been flushed.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{Acquire, FileStore, RefreshStore, Request};
/// use std::time::Duration;
///
/// let directory = tempfile::tempdir()?;
/// let store = FileStore::open(directory.path())?;
/// let request = Request { lease: Duration::from_secs(5), known: None, refuse: None };
/// assert!(matches!(store.acquire("rates", &request)?, Acquire::Won { .. }));
///
/// let another_process = FileStore::open(directory.path())?;
/// assert!(matches!(another_process.acquire("rates", &request)?, Acquire::Busy { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FileStore<C = HostClock> {
    directory: PathBuf,
    clock: C,
    era: u64,
    timeout: Duration,
    damaged: AtomicU64,
}

/// The clock that all processes of a host share.
///
/// On Linux the time since the host was started, suspended or not; elsewhere the time of day.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

impl Clock for HostClock {
    #[cfg(target_os = "linux")]
    fn now(&self) -> Tick {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        Tick::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    #[cfg(not(target_os = "linux"))]
    fn now(&self) -> Tick {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Tick::from_nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Tells the starts of the host apart, where its clock begins anew with each.
fn era() -> u64 {
    let id = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u64::from(crc32fast::hash(&id))
}

impl FileStore {
    /// Opens the store in `directory`, which is made if it is missing.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<Self> {
        Self::at(directory.into(), HostClock, era())
    }
}

impl<C: Clock> FileStore<C> {
    /// As [`open`](FileStore::open), with a clock that all users of the directory must share.
    pub fn with_clock(directory: impl Into<PathBuf>, clock: C) -> io::Result<Self> {
        Self::at(directory.into(), clock, 0)
    }

    fn at(directory: PathBuf, clock: C, era: u64) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory, clock, era, timeout: Duration::from_secs(2), damaged: AtomicU64::new(0) })
    }

    /// How long an operation waits for the lock, which others hold for the writing of one file. Default: two seconds.
    ///
    /// A process that is stopped (`SIGSTOP`) while it holds the lock keeps all others out until it goes on or ends; for
    /// them the store is down meanwhile.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many damaged entries this handle has come across. They have been treated as lost.
    pub fn damaged(&self) -> u64 {
        // Relaxed: a statistic orders nothing.
        self.damaged.load(Ordering::Relaxed)
    }

    fn now(&self) -> Micros {
        self.clock.now().as_nanos() / 1000
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        let mut file = String::with_capacity(name.len() + 8);
        for byte in name.bytes() {
            // No capitals: there are file systems that do not tell them from small letters.
            if byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-' {
                file.push(char::from(byte));
            } else {
                file.extend(['%', hex(byte >> 4), hex(byte & 15)]);
            }
        }
        self.directory.join(format!("{file}.{extension}"))
    }

    /// Changes an entry under its lock. `operation` returns whether there is anything to be written.
    fn change<R>(
        &self,
        name: &str,
        operation: impl FnOnce(&mut Entry, Micros) -> (bool, R),
    ) -> Result<R, StoreError> {
        let lock = self.lock(name)?;
        let (mut entry, damaged) = self.read(name)?;
        if damaged {
            // For whoever wants to find out what happened. Renamed, not copied: it is damaged only once.
            let _ = fs::rename(self.path(name, "state"), self.path(name, "damaged"));
            self.damaged.fetch_add(1, Ordering::Relaxed);
        }
        // The clock under the lock: what one holder sees is not before what the last one saw.
        let (changed, answer) = operation(&mut entry, self.now());
        if changed || damaged {
            self.write(name, &entry).map_err(StoreError::new)?;
        }
        drop(lock);
        Ok(answer)
    }

    fn lock(&self, name: &str) -> Result<File, StoreError> {
        let path = self.path(name, "lock");
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open().or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            // Somebody has removed the whole directory.
            fs::create_dir_all(&self.directory)?;
            open()
        });
        let file = file.map_err(StoreError::new)?;
        // Not a lock that waits: its holder may have been stopped for good.
        let give_up = Instant::now() + self.timeout;
        let mut pause = Duration::from_micros(50);
        loop {
            match fs4::FileExt::try_lock(&file) {
                Ok(()) => return Ok(file),
                Err(error) if !is_taken(&error) => return Err(StoreError::new(io::Error::from(error))),
                Err(_) if Instant::now() >= give_up => {
                    return Err(StoreError::new("the lock of the entry is held for too long"));
                }
                Err(_) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }

    /// The entry, and whether some of it has been lost.
    fn read(&self, name: &str) -> Result<(Entry, bool), StoreError> {
        match self.open_state(name)? {
            None => Ok((Entry::default(), false)),
            Some(mut file) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).map_err(StoreError::new)?;
                let Some(header) = Header::decode(&bytes) else { return Ok((Entry::default(), true)) };
                let body = header.body(&bytes[Header::LENGTH..]);
                let damaged = header.has_value && body.is_none();
                Ok((header.entry(body, self.era), damaged))
            }
        }
    }

    fn open_state(&self, name: &str) -> Result<Option<File>, StoreError> {
        match File::open(self.path(name, "state")) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::new(error)),
        }
    }

    fn write(&self, name: &str, entry: &Entry) -> io::Result<()> {
        let new = self.path(name, "new");
        let mut file = File::create(&new)?;
        file.write_all(&Header::encode(entry, self.era))?;
        if let Some(value) = &entry.value {
            file.write_all(value.tag.as_deref().unwrap_or_default().as_bytes())?;
            file.write_all(&value.payload)?;
        }
        file.sync_all()?;
        fs::rename(&new, self.path(name, "state"))?;
        // The rename itself has to last too.
        #[cfg(unix)]
        File::open(&self.directory)?.sync_all()?;
        Ok(())
    }
}

/// Whether the lock could not be had because somebody else has it.
fn is_taken(error: &fs4::TryLockError) -> bool {
    matches!(error, fs4::TryLockError::WouldBlock)
}

impl<C: Clock> RefreshStore for FileStore<C> {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        let lost = Entry::default().poll(0, known);
        let Some(mut file) = self.open_state(name)? else { return Ok(lost) };
        let mut bytes = [0; Header::LENGTH];
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(lost),
            Err(error) => return Err(StoreError::new(error)),
        }
        let Some(header) = Header::decode(&bytes) else { return Ok(lost) };
        let mut body = (String::new(), Vec::new());
        let version = Version { incarnation: header.numbers[1], number: header.numbers[4] };
        if header.has_value && known != Some(version) {
            let mut rest = Vec::new();
            file.read_to_end(&mut rest).map_err(StoreError::new)?;
            let Some(whole) = header.body(&rest) else {
                return Ok(header.entry(None, self.era).poll(self.now(), known));
            };
            body = whole;
        }
        Ok(header.entry(Some(body), self.era).poll(self.now(), known))
    }

    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        self.change(name, |entry, now| {
            let incarnation = entry.incarnation;
            let answer = entry.acquire(now, request, draw::incarnation());
            let changed = entry.incarnation != incarnation || matches!(answer, Acquire::Won { .. });
            (changed, answer)
        })
    }

    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        self.change(name, |entry, now| {
            let answer = entry.publish(now, token, publication);
            (matches!(answer, Publish::Stored(_)), answer)
        })
    }

    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        self.change(name, |entry, now| {
            let answer = entry.unchanged(now, token, soft, hard);
            (matches!(answer, Publish::Stored(_)), answer)
        })
    }

    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        self.change(name, |entry, now| {
            let heard = entry.fail(now, token, pause);
            (heard, heard)
        })
    }

    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        self.change(name, |entry, now| {
            let lives = entry.renew(now, token, lease);
            (lives, lives)
        })
    }

    fn invalidate(&self, name: &str, how: Invalidation) -> Result<(), StoreError> {
        self.change(name, |entry, now| {
            entry.invalidate(now, how, draw::incarnation());
            (true, ())
        })
    }
}

impl<C> fmt::Debug for FileStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}

fn hex(digit: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(digit)])
}

/// The beginning of a state file. All numbers are little-endian.
struct Header {
    /// Era, incarnation, epoch, fence, version, lease, pause, elected, began, soft, hard, length of the payload.
    numbers: [u64; 12],
    failures: u32,
    has_value: bool,
    has_tag: bool,
    cleared: bool,
    tag_length: u32,
    body_checksum: u32,
}

const MAGIC: &[u8; 8] = b"dogpile1";

impl Header {
    const NUMBERS: usize = 8 + 12 * 8;
    const LENGTH: usize = Self::NUMBERS + 5 * 4;

    fn encode(entry: &Entry, era: u64) -> Vec<u8> {
        let value = entry.value.as_ref();
        let tag = value.and_then(|value| value.tag.as_deref());
        let payload = value.map_or(&[][..], |value| &value.payload);
        let numbers = [
            era,
            entry.incarnation,
            entry.epoch,
            entry.fence,
            entry.version,
            entry.lease_until,
            entry.retry_at,
            entry.elected,
            value.map_or(0, |value| value.began),
            value.map_or(0, |value| value.soft_until),
            value.map_or(0, |value| value.hard_until),
            payload.len() as u64,
        ];
        let flags =
            u32::from(value.is_some()) | u32::from(tag.is_some()) << 1 | u32::from(entry.cleared) << 2;
        let tag = tag.unwrap_or_default().as_bytes();
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(tag);
        checksum.update(payload);
        let mut bytes = MAGIC.to_vec();
        for number in numbers {
            bytes.extend(number.to_le_bytes());
        }
        let tag_length = u32::try_from(tag.len()).unwrap_or(u32::MAX);
        for number in [entry.failures, flags, tag_length, checksum.finalize()] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// `None` if it is damaged.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (bytes, rest) = bytes.get(..Self::LENGTH)?.split_at(Self::LENGTH - 4);
        if !bytes.starts_with(MAGIC) || crc32fast::hash(bytes).to_le_bytes() != rest {
            return None;
        }
        let mut numbers = [0; 12];
        for (number, bytes) in numbers.iter_mut().zip(bytes[8..Self::NUMBERS].chunks_exact(8)) {
            *number = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        let mut small = [0; 4];
        for (number, bytes) in small.iter_mut().zip(bytes[Self::NUMBERS..].chunks_exact(4)) {
            *number = u32::from_le_bytes(bytes.try_into().ok()?);
        }
        let [failures, flags, tag_length, body_checksum] = small;
        Some(Self {
            numbers,
            failures,
            has_value: flags & 1 != 0,
            has_tag: flags & 2 != 0,
            cleared: flags & 4 != 0,
            tag_length,
            body_checksum,
        })
    }

    /// Tag and payload. `None` if they are damaged.
    fn body(&self, bytes: &[u8]) -> Option<(String, Vec<u8>)> {
        let length = u64::from(self.tag_length).checked_add(self.numbers[11])?;
        if bytes.len() as u64 != length || crc32fast::hash(bytes) != self.body_checksum {
            return None;
        }
        let (tag, payload) = bytes.split_at(self.tag_length as usize);
        Some((String::from_utf8(tag.to_vec()).ok()?, payload.to_vec()))
    }

    fn entry(&self, body: Option<(String, Vec<u8>)>, now_era: u64) -> Entry {
        let [era, incarnation, epoch, fence, version, lease_until, retry_at, elected, began, soft, hard, _] =
            self.numbers;
        // Times of another era say nothing.
        let time = |time: Micros| if era == now_era { time } else { 0 };
        let value = body.filter(|_| self.has_value).map(|(tag, payload)| Stored {
            payload,
            tag: self.has_tag.then_some(tag),
            began: time(began),
            soft_until: time(soft),
            hard_until: time(hard),
        });
        Entry {
            incarnation,
            epoch,
            fence,
            elected: time(elected),
            version,
            value,
            cleared: self.cleared,
            lease_until: time(lease_until),
            retry_at: time(retry_at),
            failures: self.failures,
        }
    }
}
