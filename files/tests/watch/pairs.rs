//! Several files that are one value.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dogpile::{DogpileCell, Policy};
use dogpile_files::{FileError, Files, Watch};

use super::support::{eventually, number};

type Pair = (u64, u64);

fn pair(files: &Files) -> Result<Pair, FileError> {
    Ok((files.parse(0, str::parse)?, files.parse(1, str::parse)?))
}

fn write(path: &Path, number: u64) {
    let new = path.with_extension("new");
    fs::write(&new, number.to_string()).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn two_files_changed_50_ms_apart_are_never_mixed() {
    const DEBOUNCE: Duration = Duration::from_millis(400);
    let folder = tempfile::tempdir().unwrap();
    let [cert, key] = ["cert", "key"].map(|name| folder.path().join(name));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let cell: Arc<DogpileCell<Pair>> = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    write(&cert, 0);
    write(&key, 0);
    let watch = {
        let seen = Arc::clone(&seen);
        Watch::files([&cert, &key])
            .debounce(DEBOUNCE)
            // Polls all the time, so that looks fall between the two writes.
            .poll_every(Duration::from_millis(1))
            .spawn(&cell, move |files: &Files| {
                let pair = pair(files)?;
                seen.lock().unwrap().push(pair);
                Ok::<_, FileError>(pair)
            })
            .unwrap()
    };
    eventually("the first pair", || cell.get().as_deref() == Some(&(0, 0)));
    // What a busy machine makes of 50 ms.
    let mut gaps = vec![Duration::ZERO];
    for number in 1..=number("DOGPILE_FILES_PAIRS", 5) {
        let start = Instant::now();
        write(&cert, number);
        std::thread::sleep(Duration::from_millis(50));
        watch.reload_now();
        write(&key, number);
        gaps.push(start.elapsed());
        eventually("the pair", || cell.get().as_deref() == Some(&(number, number)));
    }
    let apart = seen.lock().unwrap().iter().filter(|(cert, key)| cert != key).copied().collect::<Vec<_>>();
    for (cert, key) in apart {
        let gap = gaps[usize::try_from(cert.max(key)).unwrap()];
        assert!(gap >= DEBOUNCE, "({cert}, {key}) was read, of files written {gap:?} apart");
    }
}

#[test]
fn links_that_are_swapped_one_after_the_other_are_never_mixed_either() {
    const DEBOUNCE: Duration = Duration::from_millis(400);
    // As certbot has them: `live/cert -> ../archive/cert1`, `live/key -> ../archive/key1`.
    let folder = tempfile::tempdir().unwrap();
    let live = |name: &str| folder.path().join("live").join(name);
    for name in ["live", "archive"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    for number in 0..4 {
        for name in ["cert", "key"] {
            fs::write(folder.path().join(format!("archive/{name}{number}")), number.to_string()).unwrap();
        }
    }
    let link = |name: &str, number: u64| {
        symlink(format!("../archive/{name}{number}"), live("new")).unwrap();
        fs::rename(live("new"), live(name)).unwrap();
    };
    link("cert", 0);
    link("key", 0);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let cell: Arc<DogpileCell<Pair>> = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let watch = Watch::files([live("cert"), live("key")])
        .debounce(DEBOUNCE)
        .poll_every(Duration::from_millis(1))
        .spawn(&cell, move |files: &Files| {
            let pair = pair(files)?;
            kept.lock().unwrap().push(pair);
            Ok::<_, FileError>(pair)
        })
        .unwrap();
    let mut gaps = vec![Duration::ZERO];
    eventually("the first pair", || cell.get().as_deref() == Some(&(0, 0)));
    for number in 1..4 {
        let start = Instant::now();
        link("cert", number);
        std::thread::sleep(Duration::from_millis(50));
        link("key", number);
        gaps.push(start.elapsed());
        eventually("the pair", || cell.get().as_deref() == Some(&(number, number)));
    }
    for (cert, key) in seen.lock().unwrap().iter().filter(|(cert, key)| cert != key) {
        let gap = gaps[usize::try_from(*cert.max(key)).unwrap()];
        assert!(gap >= DEBOUNCE, "({cert}, {key}) was read, of links swapped {gap:?} apart");
    }
    drop(watch);
}

#[test]
fn a_file_that_need_not_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let [base, local] = ["base", "local"].map(|name| folder.path().join(name));
    write(&base, 1);
    let cell: Arc<DogpileCell<(u64, Option<u64>)>> =
        Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let watch = Watch::files([&base, &local])
        .debounce(Duration::from_millis(50))
        .spawn(&cell, |files: &Files| {
            let local = match files.read(1) {
                Err(error) if error.kind() == Some(std::io::ErrorKind::NotFound) => None,
                _ => Some(files.parse(1, str::parse)?),
            };
            Ok::<_, FileError>((files.parse(0, str::parse)?, local))
        })
        .unwrap();
    eventually("without it", || cell.get().as_deref() == Some(&(1, None)));
    write(&local, 2);
    eventually("with it", || cell.get().as_deref() == Some(&(1, Some(2))));
    fs::remove_file(&local).unwrap();
    eventually("without it again", || cell.get().as_deref() == Some(&(1, None)));
    assert!(watch.last_error().is_none());
}

#[test]
fn files_are_numbered_as_they_were_given() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    write(&a, 1);
    write(&b, 2);
    let cell: Arc<DogpileCell<Pair>> = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let (path_a, path_b) = (a.clone(), b.clone());
    let watch = Watch::files([&b, &a])
        .spawn(&cell, move |files: &Files| {
            assert_eq!((files.len(), files.is_empty()), (2, false));
            assert_eq!((files.path(0), files.path(1)), (&*path_b, &*path_a));
            assert!(files.open(0).unwrap_err().to_string().contains("only_open"));
            pair(files)
        })
        .unwrap();
    eventually("the pair", || cell.get().as_deref() == Some(&(2, 1)));
    drop(watch);

    let watch = Watch::files([&a]).spawn(&cell, pair).unwrap();
    eventually("the error", || watch.last_error().is_some());
    assert!(
        watch
            .last_error()
            .unwrap()
            .to_string()
            .contains("no file has the number 1: `Watch::files` was given 1"),
        "{:?}",
        watch.last_error()
    );
}
