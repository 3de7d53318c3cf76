//! Other users of the host, and what heart-beats write.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use dogpile_fleet::{Acquire, FileStore, Invalidation, Publication, RefreshStore, Request, Token};

use crate::{HOUR, at_once};

const REQUEST: Request = Request::new(HOUR);

fn win(store: &FileStore) -> Token {
    match store.acquire("name", &REQUEST).unwrap() {
        Acquire::Won { token, .. } => token,
        other => panic!("{other:?}"),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn files_were_readable_and_locks_open_to_everybody() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("store")).unwrap();
    let token = win(&store);
    assert!(store.renew("name", &token, HOUR).unwrap());
    assert_eq!(mode(&directory.path().join("store")), 0o700);
    for file in ["name.lock", "name.state", "name.lease"] {
        assert_eq!(mode(&directory.path().join("store").join(file)), 0o600, "{file}");
    }
    // Of an earlier version of the program.
    let lock = directory.path().join("store/name.lock");
    fs::set_permissions(&lock, Permissions::from_mode(0o644)).unwrap();
    store.invalidate("name", Invalidation::Soft).unwrap();
    assert_eq!(mode(&lock), 0o600);

    let shared = FileStore::open_for_group(directory.path().join("shared")).unwrap();
    shared.invalidate("name", Invalidation::Soft).unwrap();
    assert_eq!(mode(&directory.path().join("shared")), 0o770);
    assert_eq!(mode(&directory.path().join("shared/name.lock")), 0o660);
    assert_eq!(mode(&directory.path().join("shared/name.state")), 0o660);
}

#[test]
fn a_directory_that_others_can_write_to_was_used() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    let error = FileStore::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("can be written to by all users") && error.contains("chmod 700"), "{error}");
    FileStore::open_for_group(directory.path()).unwrap_err();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o770)).unwrap();
    let error = FileStore::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("open_for_group"), "{error}");
    FileStore::open_for_group(directory.path()).unwrap();
}

/// What is written through a link overwrites a file that the one who planted it could not write to.
#[test]
fn planted_links_were_followed() {
    for planted in ["name.lock", "name.state", "name.new", "name.lease", "name.lease-new"] {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let store = FileStore::open(directory.path().join("store")).unwrap();
        symlink(&victim, directory.path().join("store").join(planted)).unwrap();
        // Refused, or put aside.
        let outcome = store.acquire("name", &REQUEST).and_then(|won| match won {
            Acquire::Won { token, .. } => store.renew("name", &token, HOUR),
            _ => Ok(true),
        });
        if let Err(error) = &outcome {
            assert!(error.to_string().contains(planted), "{error}");
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{planted}: {outcome:?}");
        assert_eq!(mode(&victim), mode(&victim) & 0o644 | 0o600);
    }
}

#[test]
fn a_pipe_in_place_of_a_file_was_waited_for() {
    for planted in ["name.lock", "name.state", "name.lease"] {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        let token = win(&store);
        let path = directory.path().join(planted);
        let _ = fs::remove_file(&path);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let errors = at_once("an answer", move || {
            let looked = store.poll("name", None).map(drop);
            [
                looked,
                store.renew("name", &token, HOUR).map(drop),
                store.invalidate("name", Invalidation::Soft).map(drop),
            ]
        });
        let said: Vec<String> =
            errors.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
        assert!(!said.is_empty() && said.iter().all(|said| said.contains(planted)), "{planted}: {said:?}");
    }
}

#[test]
fn a_lock_that_is_held_was_a_resource_temporarily_unavailable() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap().timeout(Duration::from_millis(50));
    store.invalidate("name", Invalidation::Soft).unwrap();
    let lock = fs::File::open(directory.path().join("name.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = store.invalidate("name", Invalidation::Soft).unwrap_err();
    assert!(error.is_busy());
    let (said, process) = (error.to_string(), std::process::id());
    assert!(said.contains("name.lock") && said.contains("50ms"), "{said}");
    assert!(said.contains(&format!("by process {process} (")), "{said}");
}

/// 440 MiB for a value of 20 MiB and a build of some seconds.
#[test]
fn a_heart_beat_rewrote_the_value() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    let token = win(&store);
    let payload = vec![b'x'; 1 << 20];
    let publication = Publication { payload: &payload, tag: None, soft: Duration::ZERO, hard: HOUR };
    store.publish("name", &token, &publication).unwrap();
    let token = win(&store);
    let state = directory.path().join("name.state");
    let before = fs::metadata(&state).unwrap();
    for _ in 0..10 {
        assert!(store.renew("name", &token, 2 * HOUR).unwrap());
    }
    let after = fs::metadata(&state).unwrap();
    assert_eq!((before.ino(), before.ctime_nsec()), (after.ino(), after.ctime_nsec()), "it was written");
    assert!(fs::metadata(directory.path().join("name.lease")).unwrap().len() < 100);
    // And the others see it.
    let other = FileStore::open(directory.path()).unwrap();
    assert!(other.poll("name", None).unwrap().lease_left > HOUR);
    let Acquire::Busy { left, .. } = other.acquire("name", &REQUEST).unwrap() else { panic!("not busy") };
    assert!(left > HOUR);
    // What has been given back stays so.
    assert!(store.fail("name", &token, Duration::ZERO).unwrap());
    assert!(other.poll("name", None).unwrap().lease_left.is_zero());
    let next = win(&other);
    assert!(other.poll("name", None).unwrap().lease_left <= HOUR, "of another fence");
    assert!(!store.renew("name", &token, HOUR).unwrap());
    assert!(other.renew("name", &next, HOUR).unwrap());
    // A heart-beat that is damaged is none.
    let lease = directory.path().join("name.lease");
    let mut bytes = fs::read(&lease).unwrap();
    bytes[30] ^= 1;
    fs::write(&lease, bytes).unwrap();
    assert!(other.poll("name", None).unwrap().lease_left <= HOUR);
}

/// Which all processes that use the store would otherwise find out by building for themselves.
#[test]
fn a_full_file_system_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs"])
        .arg(directory.path())
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            b"SKIPPED: no right to mount a small file system\n",
        );
        return;
    }
    let store = FileStore::open(directory.path()).unwrap();
    let token = win(&store);
    let payload = vec![b'x'; 1 << 20];
    let publication = Publication { payload: &payload, tag: None, soft: HOUR, hard: HOUR };
    let error = store.publish("name", &token, &publication).unwrap_err().to_string();
    let small = Publication { payload: b"small", ..publication };
    let published = store.publish("name", &token, &small);
    let unmounted = std::process::Command::new("umount").arg(directory.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    assert!(error.contains("No space left on device") && error.contains("name.new"), "{error}");
    assert!(matches!(published, Ok(dogpile_fleet::Publish::Stored(_))), "{published:?}");
}

/// `check` only looked, for which no lock is needed.
#[test]
fn a_check_of_a_directory_whose_locks_cannot_be_taken_was_content() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("store")).unwrap();
    store.check("name").unwrap();
    fs::create_dir(directory.path().join("store/other.lock")).unwrap();
    let error = store.check("other").unwrap_err().to_string();
    assert!(error.contains("other.lock"), "{error}");
}
