//! `cargo run --release -p mapped-reload`: a database is replaced ten times while four threads read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use mapped_reload::{cell, watch, write};

fn main() -> anyhow::Result<()> {
    const NUMBERS: u64 = 1_000_000;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("numbers");
    let make = |version: u64| write(&path, version, (0..NUMBERS).map(|number| number * version));
    make(1)?;
    let unmapped = Arc::new(AtomicU64::new(0));
    let cell = cell(Arc::clone(&unmapped));
    let watch = watch(&cell, &path)?;
    ensure!(watch.wait_ready(Duration::from_secs(10)), "no database: {:?}", watch.last_error());

    let (stop, lookups, wrong) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let versions = thread::scope(|scope| -> anyhow::Result<u64> {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Some(database) = cell.load() else { continue };
                    for number in (0..NUMBERS).step_by(1009) {
                        let found =
                            usize::try_from(number).ok().and_then(|position| database.number(position));
                        wrong.fetch_add(
                            u64::from(found != Some(number * database.version())),
                            Ordering::Relaxed,
                        );
                        lookups.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let result = (2..=10).try_for_each(|version| {
            make(version)?;
            thread::sleep(Duration::from_millis(300));
            anyhow::Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        result?;
        Ok(cell.generation())
    })?;
    cell.synchronize();
    let (lookups, wrong) = (lookups.into_inner(), wrong.into_inner());
    let unmapped = unmapped.load(Ordering::SeqCst);
    println!("{lookups} lookups, {wrong} wrong; {versions} versions mapped, {unmapped} unmapped");
    ensure!(wrong == 0 && unmapped + 1 == versions, "not as it must be");
    Ok(())
}
