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
//! Heart-beats do not write the value again: a lease that is prolonged is noted in a third file, `<name>.lease`, of a few dozen
//! bytes. It counts only together with a header of the same fence whose lease has not been given back.
//!
//! Header and body have checksums. What does not match is moved aside to `<name>.damaged`, counted, and treated as lost;
//! if only the body is damaged, fences and epochs go on counting.
//!
//! # Other users of the host
//!
//! The directory is made for its owner alone (0700), and so are the files (0600); one that others may write to is refused. Files
//! are opened without following links and without waiting for the other end of a pipe, and must be regular ones of the owner;
//! new ones must not exist before. So nothing that is planted is read, written or waited for, and no other user can open the
//! lock, let alone hold it.
//!
//! # Time
//!
//! Times are those of the host since it was started (Linux), which all its processes share and nobody sets. After a
//! restart of the host leases and pauses are void and values are due. Elsewhere it is the time of day.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogpile::{Clock, Tick};

use crate::entry::Header;
use crate::operations;
use crate::rules::{Entry, Micros};
use crate::store::{
    Acquire, Epoch, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError, Token,
    Version,
};

/// A [`RefreshStore`] in a directory, for the processes of one host. Needs no server.
///
/// The directory has to be on a local file system: what network file systems make of locks and renames is not relied on.
/// An election and a publication rewrite the whole value, a heart-beat does not; so this is for values of some megabytes at most.
///
/// [`open`](FileStore::open) is for the processes of one user, and other users of the host have no access.
/// [`open_for_group`](FileStore::open_for_group) is for those of one group, which have to trust each other.
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
/// let request = Request::new(Duration::from_secs(5));
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
    access: Access,
}

/// Which users share the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Owner,
    Group,
}

impl Access {
    /// The mode of files; that of directories has the bits for entering too.
    #[cfg(unix)]
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o660,
        }
    }

    #[cfg(unix)]
    fn make_directory(self, directory: &Path) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        if directory.is_dir() {
            return Ok(());
        }
        let mode = self.mode() | (self.mode() >> 2) & 0o110;
        fs::DirBuilder::new().recursive(true).mode(mode).create(directory)?;
        if self == Self::Group {
            // Which the process's mask may have kept out.
            fs::set_permissions(directory, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    #[cfg(not(unix))]
    fn make_directory(self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)
    }

    /// Whether others could put something into the directory.
    #[cfg(unix)]
    fn check_directory(self, directory: &Path) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let found = fs::metadata(directory)?;
        let refused = |why: &str| {
            let text = format!("{}: the directory of the store {why}", directory.display());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        };
        let is_own = [rustix::process::geteuid().as_raw(), 0].contains(&found.uid());
        match self {
            _ if found.mode() & 0o002 != 0 => {
                refused("can be written to by all users: take that right away (chmod 700)")
            }
            Self::Owner if found.mode() & 0o020 != 0 => {
                refused("can be written to by a group: chmod 700, or `FileStore::open_for_group`")
            }
            Self::Owner if !is_own => {
                refused("belongs to another user: use one of your own, or `FileStore::open_for_group`")
            }
            _ => Ok(()),
        }
    }

    #[cfg(not(unix))]
    fn check_directory(self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Opens a file, which has to be a regular one.
    fn open(self, path: &Path, options: &mut OpenOptions) -> io::Result<File> {
        #[cfg(unix)]
        {
            use rustix::fs::OFlags;
            use std::os::unix::fs::OpenOptionsExt;
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            options.mode(self.mode()).custom_flags(flags.bits().cast_signed());
        }
        let file = options.open(path).map_err(|error| of(path, &error))?;
        #[cfg(unix)]
        self.check_file(path, &file)?;
        Ok(file)
    }

    #[cfg(unix)]
    fn check_file(self, path: &Path, file: &File) -> io::Result<()> {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let found = file.metadata()?;
        let refused = |why: &str| {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: {why}", path.display())))
        };
        if !found.is_file() {
            return refused("is no regular file, so it is not the store's: remove it");
        }
        let own = rustix::process::geteuid().as_raw();
        if self == Self::Owner && ![own, 0].contains(&found.uid()) {
            return refused("belongs to another user, so it is not the store's: remove it");
        }
        if found.uid() == own && found.mode() & 0o777 != self.mode() {
            file.set_permissions(fs::Permissions::from_mode(self.mode()))?;
        }
        Ok(())
    }
}

/// The error, with the path.
fn of(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
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
    /// Opens the store in `directory`, for the processes of one user. It is made if it is missing, for its owner alone (0700).
    ///
    /// # Errors
    ///
    /// If it cannot be made, belongs to another user, or can be written to by others.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<Self> {
        Self::at(directory.into(), HostClock, era(), Access::Owner)
    }

    /// As [`open`](FileStore::open), for the processes of a group, whose members could do anything to the store. The directory
    /// and the files can be written to by the group that they belong to (0770, 0660).
    ///
    /// # Errors
    ///
    /// If the directory cannot be made, or can be written to by all users.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FileStore, Invalidation, RefreshStore};
    ///
    /// let directory = tempfile::tempdir()?;
    /// let store = FileStore::open_for_group(directory.path().join("shared"))?;
    /// store.invalidate("rates", Invalidation::Soft)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open_for_group(directory: impl Into<PathBuf>) -> io::Result<Self> {
        Self::at(directory.into(), HostClock, era(), Access::Group)
    }
}

impl<C: Clock> FileStore<C> {
    /// As [`open`](FileStore::open), with a clock that all users of the directory must share.
    pub fn with_clock(directory: impl Into<PathBuf>, clock: C) -> io::Result<Self> {
        Self::at(directory.into(), clock, 0, Access::Owner)
    }

    fn at(directory: PathBuf, clock: C, era: u64, access: Access) -> io::Result<Self> {
        access.make_directory(&directory).map_err(|error| of(&directory, &error))?;
        access.check_directory(&directory)?;
        Ok(Self {
            directory,
            clock,
            era,
            timeout: Duration::from_secs(2),
            damaged: AtomicU64::new(0),
            access,
        })
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
        let open = || {
            self.access.open(&path, OpenOptions::new().read(true).write(true).create(true).truncate(false))
        };
        let file = open().or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            // Somebody has removed the whole directory.
            self.access.make_directory(&self.directory)?;
            open()
        });
        let file = file.map_err(StoreError::new)?;
        // Not a lock that waits: its holder may have been stopped for good.
        let give_up = Instant::now() + self.timeout;
        let mut pause = Duration::from_micros(50);
        loop {
            match fs4::FileExt::try_lock(&file) {
                Ok(()) => return Ok(file),
                Err(error) if !is_taken(&error) => {
                    return Err(StoreError::new(of(&path, &io::Error::from(error))));
                }
                Err(_) if Instant::now() >= give_up => {
                    let (path, timeout, holder) = (path.display(), self.timeout, holder(&file));
                    return Err(StoreError::busy(format!(
                        "{path}: the lock was held for longer than the timeout of {timeout:?}, by {holder}"
                    )));
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
                let header = self.prolonged(name, header)?;
                let body = header.body(&bytes[Header::LENGTH..]);
                let damaged = header.has_value && body.is_none();
                Ok((header.entry(body, self.era), damaged))
            }
        }
    }

    fn open_state(&self, name: &str) -> Result<Option<File>, StoreError> {
        self.open_file(name, "state")
    }

    fn open_file(&self, name: &str, extension: &str) -> Result<Option<File>, StoreError> {
        match self.access.open(&self.path(name, extension), OpenOptions::new().read(true)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::new(error)),
        }
    }

    /// The header, with the end of its lease as the heart-beats have left it.
    fn prolonged(&self, name: &str, mut header: Header) -> Result<Header, StoreError> {
        if header.numbers[Header::LEASE] == 0 {
            return Ok(header);
        }
        let Some(mut file) = self.open_file(name, "lease")? else { return Ok(header) };
        let mut bytes = [0; Prolonged::LENGTH];
        // Damaged, or of another fence: then the lease ends when it said at first.
        if file.read_exact(&mut bytes).is_ok()
            && let Some(prolonged) = Prolonged::decode(&bytes)
            && prolonged.is_of(&header)
        {
            header.numbers[Header::LEASE] = prolonged.until;
        }
        Ok(header)
    }

    /// A file that did not exist before, to be written and renamed.
    fn create(&self, path: &Path) -> io::Result<File> {
        // Left by a process that was killed; nobody else writes it now, because the lock is held.
        let _ = fs::remove_file(path);
        self.access.open(path, OpenOptions::new().write(true).create_new(true))
    }

    /// Not flushed: after a crash of the host no lease counts.
    fn write_lease(&self, name: &str, prolonged: &Prolonged) -> io::Result<()> {
        let new = self.path(name, "lease-new");
        let written = self.create(&new)?.write_all(&prolonged.encode());
        written.and_then(|()| fs::rename(&new, self.path(name, "lease"))).map_err(|error| of(&new, &error))
    }

    fn write(&self, name: &str, entry: &Entry) -> io::Result<()> {
        let new = self.path(name, "new");
        let mut file = self.create(&new)?;
        let mut write = || {
            file.write_all(&Header::encode(entry, self.era))?;
            if let Some(value) = &entry.value {
                file.write_all(value.tag.as_deref().unwrap_or_default().as_bytes())?;
                file.write_all(&value.payload)?;
            }
            file.sync_all()?;
            fs::rename(&new, self.path(name, "state"))
        };
        write().map_err(|error| {
            // Half a file takes up what may be missing.
            let _ = fs::remove_file(&new);
            of(&new, &error)
        })?;
        // The rename itself has to last too.
        #[cfg(unix)]
        File::open(&self.directory)?.sync_all()?;
        Ok(())
    }
}

/// The process that holds a lock, as far as the system tells.
fn holder(file: &File) -> String {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt;
        let inode = file.metadata().map(|found| format!(":{} ", found.ino())).unwrap_or_default();
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let line =
            locks.lines().find(|line| !inode.is_empty() && line.contains(&inode) && !line.contains("->"));
        if let Some(process) = line.and_then(|line| line.split_ascii_whitespace().nth(4)) {
            let program = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            return format!("process {process} ({})", program.trim());
        }
    }
    let _ = file;
    "a process that the system does not name".to_owned()
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
        let header = self.prolonged(name, header)?;
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
        self.change(name, operations::acquire(request))
    }

    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        self.change(name, operations::publish(token, publication))
    }

    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        self.change(name, operations::unchanged(token, soft, hard))
    }

    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        self.change(name, operations::fail(token, pause))
    }

    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        let _lock = self.lock(name)?;
        let Some(mut file) = self.open_state(name)? else { return Ok(false) };
        let mut bytes = [0; Header::LENGTH];
        if let Err(error) = file.read_exact(&mut bytes) {
            return if error.kind() == io::ErrorKind::UnexpectedEof {
                Ok(false)
            } else {
                Err(StoreError::new(error))
            };
        }
        // What is damaged the next change will deal with.
        let Some(header) = Header::decode(&bytes) else { return Ok(false) };
        let mut entry = header.entry(None, self.era);
        let lives = entry.renew(self.now(), token, lease);
        if lives {
            let prolonged = Prolonged {
                era: self.era,
                incarnation: entry.incarnation,
                fence: entry.fence,
                until: entry.lease_until,
            };
            self.write_lease(name, &prolonged).map_err(StoreError::new)?;
        }
        Ok(lives)
    }

    /// The lock's file stays, and is empty: another process may have opened it already.
    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let lock = self.lock(name)?;
        for extension in ["state", "lease", "damaged"] {
            let path = self.path(name, extension);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::new(of(&path, &error)));
                }
                _ => {}
            }
        }
        drop(lock);
        Ok(())
    }

    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        self.change(name, operations::invalidate(how))
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

/// What a heart-beat writes: until when the lease of a fence lasts.
struct Prolonged {
    era: u64,
    incarnation: u64,
    fence: u64,
    until: Micros,
}

impl Prolonged {
    const LENGTH: usize = 4 * 8 + 4;

    fn encode(&self) -> Vec<u8> {
        let numbers = [self.era, self.incarnation, self.fence, self.until];
        let mut bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let (bytes, checksum) = bytes.split_at(Self::LENGTH - 4);
        if crc32fast::hash(bytes).to_le_bytes() != checksum {
            return None;
        }
        let mut numbers =
            bytes.chunks_exact(8).filter_map(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        let mut next = || numbers.next();
        Some(Self { era: next()?, incarnation: next()?, fence: next()?, until: next()? })
    }

    fn is_of(&self, header: &Header) -> bool {
        [self.era, self.incarnation, self.fence] == [header.numbers[0], header.numbers[1], header.numbers[3]]
    }
}
