//! What `docs/fork.md` says of a child process: dropping the parent's cells and refreshers there neither panics nor hangs, and
//! those that are made there work.

#![cfg(target_os = "linux")]

use std::io::Read;
use std::os::fd::FromRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dogpile::{
    Clock, DogpileCell, Drain, Freshness, ManualClock, Policy, RefreshError, Refresher, SyncReaderCell,
    SystemClock, TickClock,
};
use dogpile_files::{Files, Persist, Watch};

const HOUR: Duration = Duration::from_secs(3600);
/// Only a hang takes so long.
const HANGS: Duration = Duration::from_secs(20);

/// One test at a time: no other one is doing anything at the moment of a fork.
struct Alone(#[allow(dead_code)] MutexGuard<'static, ()>);

fn alone() -> Alone {
    static ALONE: Mutex<()> = Mutex::new(());
    Alone(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs `in_child` in a forked child, and returns the text that it returns, or that of its panic. Panics if the child hangs.
fn in_child(_: &Alone, in_child: impl FnOnce() -> String) -> String {
    let (mut read, write) = pipe();
    // SAFETY: a child of a process with several threads must not use what another thread may have held in an inconsistent
    // state or locked. Here the other threads wait: those of the harness for a result or to be `Alone`, those that this test has
    // started for what it does not do meanwhile. The allocator of glibc can be used in a child in any case. The child ends by
    // `_exit`, so it runs nothing of the harness.
    #[allow(unsafe_code)]
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork failed");
    if child == 0 {
        let text = catch_unwind(AssertUnwindSafe(in_child)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            format!("panicked: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?"))
        });
        // SAFETY: the buffer is valid for its length, and `_exit` does not return.
        #[allow(unsafe_code)]
        unsafe {
            libc::write(write, text.as_ptr().cast(), text.len());
            libc::_exit(0)
        }
    }
    // SAFETY: this end was opened above, and nothing else in this process uses it.
    #[allow(unsafe_code)]
    unsafe {
        libc::close(write);
    }
    let start = Instant::now();
    while start.elapsed() < HANGS {
        // SAFETY: a null status is allowed; the child is one of this process and has not been waited for.
        #[allow(unsafe_code)]
        let ended = unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) };
        if ended == child {
            let mut text = String::new();
            read.read_to_string(&mut text).unwrap();
            return text;
        }
        thread::sleep(Duration::from_millis(2));
    }
    // SAFETY: as above; it still exists, as it has not been waited for.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    panic!("the child hangs");
}

fn pipe() -> (std::fs::File, i32) {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors; the first one is owned by the file from here on.
    #[allow(unsafe_code)]
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        (std::fs::File::from_raw_fd(ends[0]), ends[1])
    }
}

/// Waits until there are threads of this name, and all of them sleep: until they hold no lock of a cell's, since nothing that
/// they wait for happens meanwhile.
fn until_asleep(name: &str) {
    // The kernel keeps 15 characters.
    let name = name.get(..15).unwrap_or(name);
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let read =
            |task: &std::path::Path, file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let states: Vec<String> = tasks
            .map(|task| task.unwrap().path())
            .filter(|task| read(task, "comm").trim_end() == name)
            // `42 (name) S ...`
            .map(|task| {
                read(&task, "stat")
                    .rsplit(") ")
                    .next()
                    .and_then(|rest| rest.get(..1))
                    .unwrap_or("?")
                    .to_owned()
            })
            .collect();
        if !states.is_empty() && states.iter().all(|state| state == "S") {
            return;
        }
        thread::yield_now();
    }
}

/// Runs for as long as the process does.
fn sleeps_for_ever() -> u32 {
    loop {
        thread::park();
    }
}

fn fresh_cell(clock: &ManualClock) -> Arc<DogpileCell<u32, ManualClock>> {
    Arc::new(DogpileCell::with_clock(Policy::ttl(HOUR), clock.clone()))
}

fn refresher_of(cell: &Arc<DogpileCell<u32, ManualClock>>) -> Refresher {
    let next = |previous: Option<Arc<u32>>| previous.map_or(1, |count| *count + 1);
    let refresher = Refresher::spawn(cell, HOUR / 4, next).unwrap();
    assert!(refresher.wait_ready(HANGS));
    until_asleep("dogpile-refresher");
    refresher
}

#[test]
fn a_refresher_of_the_parent_is_dropped_at_once_and_readers_build_again() {
    let alone = alone();
    let clock = ManualClock::new();
    let cell = fresh_cell(&clock);
    let refresher = refresher_of(&cell);
    let (in_parent, copy) = (cell.generation(), &cell);
    let text = in_child(&alone, move || {
        clock.advance(2 * HOUR);
        // Left to a thread that is not there.
        let before = *copy.get_or_refresh(|| 1000);
        drop(refresher);
        let after = *copy.get_or_refresh(|| 1000);
        format!("{before} {after}")
    });
    assert_eq!(text, "1 1000");
    assert_eq!(cell.generation(), in_parent);
}

#[test]
fn a_refresher_of_the_parent_counts_as_ended() {
    let alone = alone();
    let clock = ManualClock::new();
    let cell = fresh_cell(&clock);
    let refresher = refresher_of(&cell);
    // On a clock that stands still: a wait would not end.
    assert_eq!(in_child(&alone, move || refresher.stop_timeout(HOUR).to_string()), "true");
}

#[test]
fn a_refresher_that_builds_at_the_moment_of_the_fork_is_dropped_at_once() {
    static CELL: DogpileCell<u32> = DogpileCell::new(HOUR);
    let alone = alone();
    let (begun, builds) = mpsc::channel();
    let refresher = Refresher::spawn(&CELL, HOUR / 4, move |_| {
        begun.send(()).unwrap();
        sleeps_for_ever()
    })
    .unwrap();
    builds.recv().unwrap();
    until_asleep("dogpile-refresher");
    let mut refresher = Some(refresher);
    let text = in_child(&alone, || {
        drop(refresher.take());
        // Its build is not there either, but its lease is.
        let refused = CELL.request().wait_at_most(Duration::ZERO).try_get(|| Ok::<u32, String>(1));
        let refused = matches!(refused, Err(RefreshError::WaitTimeout));
        CELL.revoke();
        format!("{refused} {}", CELL.get_or_refresh(|| 2))
    });
    assert_eq!(text, "true 2");
    // It never ends its build.
    std::mem::forget(refresher);
}

#[test]
fn a_refresher_of_the_childs_own_works() {
    let alone = alone();
    let clock = ManualClock::new();
    let cell = fresh_cell(&clock);
    let refresher = refresher_of(&cell);
    let text = in_child(&alone, move || {
        drop(refresher);
        clock.advance(2 * HOUR);
        let own = refresher_of(&cell);
        let start = Instant::now();
        while cell.freshness() != Freshness::Fresh && start.elapsed() < HANGS {
            thread::yield_now();
        }
        drop(own);
        cell.get().unwrap().to_string()
    });
    assert_eq!(text, "2");
}

#[test]
fn a_build_that_runs_at_the_moment_of_the_fork_is_given_up_by_revoke() {
    static CELL: DogpileCell<u32> = DogpileCell::new(HOUR);
    let alone = alone();
    // Asleep in its build, of which it tells by the barrier, it holds no lock.
    let begun = Arc::new(Barrier::new(2));
    let builds = Arc::clone(&begun);
    thread::spawn(move || {
        CELL.get_or_refresh(|| {
            builds.wait();
            sleeps_for_ever()
        })
    });
    begun.wait();
    let text = in_child(&alone, || format!("{} {}", CELL.revoke(), CELL.get_or_refresh(|| 2)));
    assert_eq!(text, "true 2");
}

/// Its finalizer's thread has been started, and waits for a reader.
fn drained_cell(
    finalized: &'static AtomicU32,
    drain: Drain,
) -> (SyncReaderCell<u32>, dogpile::ReaderArc<u32>) {
    let cell = SyncReaderCell::with_policy(Policy::ttl(HOUR), drain, |value| {
        finalized.fetch_add(value, Ordering::Relaxed);
    });
    cell.set(1);
    let reader = cell.get().unwrap();
    cell.set(10);
    until_asleep("dogpile-finalizer");
    (cell, reader)
}

#[test]
fn a_sync_reader_cell_of_the_parent_is_dropped_at_once_and_its_finalizer_does_not_run() {
    static FINALIZED: AtomicU32 = AtomicU32::new(0);
    let alone = alone();
    let (cell, reader) = drained_cell(&FINALIZED, Drain::Background);
    let mut own = Some((cell, reader));
    let text = in_child(&alone, || {
        let (cell, reader) = own.take().unwrap();
        drop(reader);
        cell.set(100);
        let served = *cell.get().unwrap();
        let timed_out = cell.synchronize_timeout(Duration::ZERO).is_err();
        drop(cell);
        format!("{served} {timed_out} {}", FINALIZED.load(Ordering::Relaxed))
    });
    assert_eq!(text, "100 true 0");
    // In the parent it does.
    let (cell, reader) = own.take().unwrap();
    drop(reader);
    drop(cell);
    assert_eq!(FINALIZED.load(Ordering::Relaxed), 1);
}

#[test]
fn a_sync_reader_cell_of_the_childs_own_works() {
    static FINALIZED: AtomicU32 = AtomicU32::new(0);
    let alone = alone();
    let text = in_child(&alone, || {
        let (cell, reader) = drained_cell(&FINALIZED, Drain::Background);
        drop(reader);
        cell.synchronize();
        drop(cell);
        FINALIZED.load(Ordering::Relaxed).to_string()
    });
    assert_eq!(text, "1");
}

#[test]
fn the_exact_clocks_go_on_and_the_tick_clocks_coarse_reading_stands_still() {
    let alone = alone();
    let before = SystemClock.now();
    // Until its thread runs a coarse reading is an exact one, and no two of these are the same.
    while TickClock.coarse_now() != TickClock.coarse_now() {
        thread::yield_now();
    }
    let text = in_child(&alone, move || {
        let coarse = TickClock.coarse_now();
        // Longer than its thread sleeps.
        thread::sleep(Duration::from_millis(30));
        format!(
            "{} {} {}",
            SystemClock.now() > before,
            TickClock.now() > before,
            TickClock.coarse_now() == coarse
        )
    });
    assert_eq!(text, "true true true");
}

#[test]
fn a_watch_of_the_parent_is_dropped_at_once_and_goes_on_in_the_parent() {
    let alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "1").unwrap();
    let cell = Arc::new(DogpileCell::<u32>::with_policy(Policy::never_expires()));
    let watch = |path: &std::path::Path, cell: &Arc<DogpileCell<u32>>| {
        let options = Watch::file(path).debounce(Duration::from_millis(20)).poll_every(Duration::MAX);
        options.spawn(cell, |files: &Files| files.parse(0, str::parse::<u32>)).unwrap()
    };
    let mut of_parent = Some(watch(&path, &cell));
    assert!(of_parent.as_ref().unwrap().wait_ready(HANGS));
    until_asleep("dogpile-refresher");
    until_asleep("dogpile-files");
    until_asleep("notify-rs inotify");
    let text = in_child(&alone, || {
        drop(of_parent.take());
        let before = *cell.get().unwrap();
        cell.clear();
        let own = watch(&path, &cell);
        format!("{before} {}", own.wait_ready(HANGS))
    });
    assert_eq!(text, "1 true");
    std::fs::write(&path, "2").unwrap();
    let start = Instant::now();
    while *cell.get().unwrap() != 2 {
        assert!(start.elapsed() < HANGS, "the child has ended the notifications");
        thread::sleep(Duration::from_millis(2));
    }
    drop(of_parent);
}

#[test]
fn a_persisted_cell_of_the_parent_writes_nothing_in_the_child() {
    let alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let cell = Arc::new(DogpileCell::<u32>::new(HOUR));
    let mut persisted = Some(Persist::json(&path).interval(Duration::MAX).attach(&cell).unwrap());
    cell.set(1);
    persisted.as_ref().unwrap().flush().unwrap();
    until_asleep("dogpile-persist");
    let text = in_child(&alone, || {
        cell.set(2);
        let error = persisted.as_ref().unwrap().flush().unwrap_err().to_string();
        drop(persisted.take());
        error
    });
    assert!(text.ends_with("it is written by the process that this one was forked from"), "{text}");
    assert!(std::fs::read_to_string(&path).unwrap().ends_with("\n1"));
    // The parent's goes on.
    cell.set(3);
    drop(persisted);
    assert!(std::fs::read_to_string(&path).unwrap().ends_with("\n3"));
}
