//! Notifications by the operating system, as far as they can be had.
//!
//! What is watched follows from the trails, and these change while they are followed. So a *look* walks the trails, watches
//! the folders on them, and walks again, until the second walk finds what the first one did: a change after that is notified.
//!
//! A folder that is moved or removed takes its watch along, and another one may stand in its place, even with the same inode.
//! So after a change of a folder itself all folders are watched anew. Not after each change of a file: the notifier's thread
//! watches a folder between two events only, and has no time for that while a file is written all the time.
//!
//! None of `notify`'s debouncers is used. A state has to settle without notifications too ([`super::reading`]), so that is
//! where the wait for quiet is. And `notify-debouncer-mini` (0.7) drops the event of a queue that has overflowed, since that
//! has no path; `notify-debouncer-full` (0.7) has a thread that wakes four times in each debounce time, whether or not there
//! are events.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;

use super::changes::Changes;
use super::trail::{Print, Trail};

/// A walk that finds another trail each time is given up after so many; the notification of the last change is still to come.
const MAX_WALKS: u32 = 10;

/// So many watchers whose thread has ended are replaced. Each leaves a descriptor behind, since it cannot be dropped.
const MAX_LOST: u32 = 8;

pub(super) struct Notifier {
    paths: Vec<PathBuf>,
    changes: Arc<Changes>,
    watcher: Option<Threaded>,
    /// How many watchers have lost their thread.
    lost: u32,
    is_wanted: bool,
    watched: HashMap<PathBuf, Option<u64>>,
    /// Shared with the handler.
    names: Arc<Mutex<Names>>,
    /// The number of [`Names::folder_changes`] after which the folders were watched.
    seen: Option<u64>,
    failure: Option<String>,
}

/// The names whose changes matter.
#[derive(Default)]
struct Names {
    all: HashSet<PathBuf>,
    folders: HashSet<PathBuf>,
    /// How often one of the folders was replaced, or may have been.
    folder_changes: u64,
}

impl Notifier {
    /// `paths` are absolute.
    pub(super) fn new(paths: Vec<PathBuf>, is_wanted: bool, changes: Arc<Changes>) -> Self {
        let failure = (!is_wanted).then(|| "notifications are switched off".to_owned());
        Self {
            paths,
            changes,
            watcher: None,
            lost: 0,
            is_wanted,
            watched: HashMap::new(),
            names: Arc::default(),
            seen: None,
            failure,
        }
    }

    /// Why changes are found by polling only.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Where the paths lead now. Changes after this look are notified.
    pub(super) fn look(&mut self) -> Vec<Print> {
        let mut trails = self.walk();
        if self.is_wanted {
            self.failure = None;
            self.start();
            for _ in 0..MAX_WALKS {
                self.watch(&trails);
                let again = self.walk();
                let is_same = again == trails;
                trails = again;
                if is_same {
                    break;
                }
            }
        }
        trails.into_iter().map(|trail| trail.print).collect()
    }

    fn walk(&self) -> Vec<Trail> {
        self.paths.iter().map(|path| Trail::walk(path)).collect()
    }

    fn start(&mut self) {
        if self.watcher.as_ref().is_some_and(Threaded::has_ended) {
            self.watcher = None;
            self.lost += 1;
        }
        if self.watcher.is_some() {
            return;
        }
        // Those of a watcher that is lost are lost too.
        self.watched.clear();
        if self.lost >= MAX_LOST {
            let error = notify::Error::generic("the thread of `notify` has ended too often");
            return self.fails(None, &error);
        }
        let (changes, names) = (Arc::clone(&self.changes), Arc::clone(&self.names));
        // Runs on the notifier's thread, which serves `watch` too: it must not wait for a look.
        let handler = move |event: notify::Result<notify::Event>| {
            if matters(event, &mut names.lock()) {
                changes.add();
            }
        };
        match Threaded::start(handler) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => self.fails(None, &error),
        }
    }

    fn watch(&mut self, trails: &[Trail]) {
        let folder_changes = {
            let mut names = self.names.lock();
            names.all = trails.iter().flat_map(|trail| trail.names.iter().cloned()).collect();
            names.folders = trails.iter().flat_map(|trail| trail.folders.iter().cloned()).collect();
            names.folder_changes
        };
        let Some(mut watcher) = self.watcher.take() else { return };
        let has_changed = self.seen.replace(folder_changes) != Some(folder_changes);

        let needed: HashSet<&PathBuf> = trails.iter().flat_map(|trail| &trail.folders).collect();
        let useful: HashSet<&PathBuf> = trails.iter().flat_map(|trail| &trail.parents).collect();
        let mut gone: Vec<PathBuf> = self.watched.keys().cloned().collect();
        gone.retain(|folder| !needed.contains(folder) && !useful.contains(folder));
        for folder in gone {
            let _ = watcher.unwatch(&folder);
            self.watched.remove(&folder);
        }
        for &folder in needed.union(&useful) {
            let identity = identity(folder);
            let known = self.watched.get(folder);
            if known == Some(&identity) && !has_changed {
                continue;
            }
            if known.is_some_and(|known| *known != identity) {
                // Its watch would stay with the folder that was here before.
                let _ = watcher.unwatch(folder);
            }
            match watcher.watch(folder) {
                Ok(()) => {
                    self.watched.insert(folder.clone(), identity);
                }
                Err(error) => {
                    self.watched.remove(folder);
                    // A folder that is no longer there is found out by the next walk.
                    if needed.contains(folder) && folder.is_dir() {
                        self.fails(Some(folder), &error);
                    }
                }
            }
        }
        self.watcher = Some(watcher);
    }

    fn fails(&mut self, folder: Option<&Path>, error: &notify::Error) {
        let mut text = match folder {
            Some(folder) => format!("{} cannot be watched: {error}", folder.display()),
            None => format!("nothing can be watched: {error}"),
        };
        match &error.kind {
            notify::ErrorKind::MaxFilesWatch => text += " (fs.inotify.max_user_watches)",
            // Those of the process, or of inotify: they have the same error.
            notify::ErrorKind::Io(error) if folder.is_none() && is_too_many(error) => {
                text += " (fs.inotify.max_user_instances, or ulimit -n)";
            }
            _ => {}
        }
        self.failure.get_or_insert(text);
    }
}

/// A watcher, and whether its thread is there.
///
/// On Linux a watcher of notify 8.2 does nothing by itself: its methods, and its drop, send a message to its thread. They
/// panic if that has ended, or never was: `notify::recommended_watcher` returns no error if it cannot be started. And a panic
/// of the drop during that of a method aborts the process. So the watcher is called and dropped only if its thread is there.
struct Threaded {
    /// `None` only while it is dropped.
    watcher: Option<RecommendedWatcher>,
    /// The handler has the other share. It is dropped with the thread, or with the attempt to start that. (Where it belongs to
    /// the watcher itself, as on macOS, `watch` returns an error instead of panicking.)
    thread: Weak<()>,
}

impl Threaded {
    fn start(
        mut handler: impl FnMut(notify::Result<notify::Event>) + Send + 'static,
    ) -> notify::Result<Self> {
        // Where no thread can be started, nothing is left behind in this way.
        if let Err(error) = thread::Builder::new().spawn(|| {}).map(thread::JoinHandle::join) {
            return Err(notify::Error::generic(&format!("no thread can be started: {error}")));
        }
        let share = Arc::new(());
        let thread = Arc::downgrade(&share);
        let watcher = notify::recommended_watcher(move |event| {
            let _ = &share;
            handler(event);
        })?;
        Ok(Self { watcher: Some(watcher), thread })
    }

    fn has_ended(&self) -> bool {
        self.thread.strong_count() == 0
    }

    fn watch(&mut self, folder: &Path) -> notify::Result<()> {
        self.there()?.watch(folder, RecursiveMode::NonRecursive)
    }

    fn unwatch(&mut self, folder: &Path) -> notify::Result<()> {
        self.there()?.unwatch(folder)
    }

    fn there(&mut self) -> notify::Result<&mut RecommendedWatcher> {
        let has_ended = self.has_ended();
        let watcher = self.watcher.as_mut().filter(|_| !has_ended);
        watcher.ok_or_else(|| {
            notify::Error::generic("the thread of `notify` could not be started, or has ended")
        })
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        if self.has_ended() {
            std::mem::forget(self.watcher.take());
        }
    }
}

fn is_too_many(error: &io::Error) -> bool {
    #[cfg(target_os = "linux")]
    {
        error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = error;
        false
    }
}

/// Whether an event is a reason to look.
fn matters(event: notify::Result<notify::Event>, names: &mut Names) -> bool {
    let (matters, is_of_folder) = match event {
        // The queue has overflowed: the events that were lost may have mattered.
        Ok(event) if event.need_rescan() || event.paths.is_empty() => (true, true),
        // Reading a file opens it, too.
        Ok(event) if is_read(event.kind) => (false, false),
        Ok(event) => {
            let is_in = |names: &HashSet<PathBuf>| event.paths.iter().any(|path| names.contains(path));
            (is_in(&names.all), is_in(&names.folders))
        }
        Err(_) => (true, true),
    };
    names.folder_changes += u64::from(is_of_folder);
    matters
}

fn is_read(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
}

/// Tells two folders of the same name apart, as far as the file system does.
fn identity(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        std::fs::symlink_metadata(folder).ok().map(|metadata| metadata.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::Event;
    use notify::event::{DataChange, Flag, ModifyKind, RemoveKind};

    /// Its thread has ended: by a panic of its handler, since that cannot be done to it from outside.
    #[cfg(target_os = "linux")]
    fn lost_watcher(folder: &Path) -> Threaded {
        let mut watcher = Threaded::start(|_| panic!("this panic is part of the test")).unwrap();
        watcher.watch(folder).unwrap();
        std::fs::write(folder.join("file"), "").unwrap();
        let start = std::time::Instant::now();
        while !watcher.has_ended() {
            assert!(start.elapsed().as_secs() < 60, "hangs: the thread ends");
            thread::yield_now();
        }
        watcher
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_watcher_whose_thread_has_ended_is_neither_called_nor_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let mut lost = lost_watcher(&folder);
        assert!(lost.watch(&folder).is_err() && lost.unwatch(&folder).is_err());
        drop(lost);

        // It is replaced, and what it has watched is watched again.
        let mut notifier = Notifier::new(vec![folder.join("file")], true, Arc::default());
        notifier.look();
        let watched = notifier.watched.clone();
        assert_eq!((notifier.failure(), watched.len()), (None, 2));
        notifier.watcher = Some(lost_watcher(&folder));
        notifier.look();
        assert!(notifier.watcher.as_ref().is_some_and(|watcher| !watcher.has_ended()));
        assert_eq!((notifier.failure(), &notifier.watched), (None, &watched));
        notifier.changes.cover(notifier.changes.count());
        std::fs::write(folder.join("file"), "changed").unwrap();
        notifier.changes.wait(None).unwrap();

        // But not for ever.
        notifier.lost = MAX_LOST - 1;
        notifier.watcher = Some(lost_watcher(&folder));
        for _ in 0..2 {
            notifier.look();
            assert!(notifier.watcher.is_none());
            let failure = notifier.failure().unwrap();
            assert!(failure.starts_with("nothing can be watched: the thread of `notify` "), "{failure}");
        }
    }

    // by hand | a queue that overflows is an event without a path
    #[test]
    fn lost_events_and_errors_are_reasons_to_look_and_reads_and_other_files_are_not() {
        let mut names = Names {
            all: HashSet::from(["/folder", "/folder/file"].map(PathBuf::from)),
            folders: HashSet::from([PathBuf::from("/folder")]),
            folder_changes: 0,
        };
        let event = |kind, path: &str| Ok(Event::new(kind).add_path(path.into()));
        let write = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        for (event, expected) in [
            (Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)), (true, 1)),
            (Err(notify::Error::generic("")), (true, 1)),
            (event(EventKind::Remove(RemoveKind::Folder), "/folder"), (true, 1)),
            (event(write, "/folder/file"), (true, 0)),
            (event(closed, "/folder/file"), (true, 0)),
            (event(write, "/folder/other"), (false, 0)),
            (event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "/folder/file"), (false, 0)),
            (event(EventKind::Access(AccessKind::Close(AccessMode::Read)), "/folder/file"), (false, 0)),
        ] {
            let before = names.folder_changes;
            let matters = matters(event, &mut names);
            assert_eq!((matters, names.folder_changes - before), expected);
        }
    }
}
