//! The first callers of `config`.

use std::process::Command;
use std::thread;
use std::time::Instant;

use super::*;

/// The file is a pipe, so that the reading caller waits for the test to write it.
#[test]
fn the_first_callers_all_get_the_configuration_that_one_of_them_reads() {
    const CALLERS: u64 = 8;

    let path = std::env::temp_dir().join(format!("dogpile-config-pipe-{}", std::process::id()));
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    thread::scope(|scope| {
        let callers: Vec<_> =
            (0..CALLERS).map(|_| scope.spawn(|| config(&path).map(|config| config.workers))).collect();
        let hang = Instant::now() + Duration::from_secs(30);
        while CONFIG.stats().waits < CALLERS - 1 {
            assert!(Instant::now() < hang, "all but one wait: {:?}", CONFIG.stats());
            thread::yield_now();
        }
        fs::write(&path, "workers = 4").unwrap();
        for caller in callers {
            assert_eq!(caller.join().unwrap().unwrap(), 4);
        }
    });
    fs::remove_file(&path).unwrap();
    assert_eq!(CONFIG.stats().builds, 1);
}
