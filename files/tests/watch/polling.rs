//! Without notifications.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile_files::{Files, Watch};

use super::support::{eventually, given_folder, run_as_another_user, run_with_mounts};
use super::{Bench, cell, parse};

#[test]
fn changes_are_found_by_polling() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sub/file");
    let cell = cell();
    let watch = Watch::files([&file])
        .debounce(Duration::from_millis(20))
        .poll_every(Duration::from_millis(20))
        .only_poll()
        .spawn(&cell, parse)
        .unwrap();
    assert_eq!(watch.polls_because().unwrap(), "notifications are switched off");
    let bench = Bench { folder, file, cell, watch };
    fs::create_dir(bench.path("sub")).unwrap();
    fs::write(&bench.file, "first.").unwrap();
    bench.shows("first");
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
    symlink("../other", bench.path("link")).unwrap();
    fs::rename(bench.path("link"), &bench.file).unwrap();
    bench.fails("sub/file: No such file", "second");
    fs::write(bench.path("other"), "third.").unwrap();
    bench.shows("third");
}

/// As a container has it: a change on the other side is no event on this one.
#[test]
fn a_file_that_is_mounted_by_itself_is_polled() {
    let mount = "mkdir here there && echo first. > there/file && touch here/file && mount --bind there/file here/file";
    run_with_mounts("polling::child_with_a_mounted_file", mount);
}

#[test]
#[ignore = "run by another test, with a mount of its own"]
fn child_with_a_mounted_file() {
    let folder = given_folder().unwrap();
    let cell = cell();
    let trimmed = |files: &Files| files.text(0).map(|text| text.trim().to_owned());
    let watch = Watch::files([folder.join("here/file")])
        .debounce(Duration::from_millis(20))
        .poll_every(Duration::from_millis(20))
        .spawn(&cell, trimmed)
        .unwrap();
    eventually("the first", || cell.get().is_some_and(|text| *text == "first."));
    assert_eq!(watch.polls_because(), None);
    fs::write(folder.join("there/file"), "second.").unwrap();
    eventually("the second", || *cell.get().unwrap() == "second.");
}

#[test]
fn it_polls_if_the_system_has_no_more_watches_and_notices_when_it_has() {
    run_as_another_user("polling::child_without_watches", 61_235);
}

#[test]
#[ignore = "run by another test, as another user"]
fn child_without_watches() {
    let folder = tempfile::tempdir_in(given_folder().unwrap()).unwrap();
    let warnings = Warnings::default();
    // This process is the test's own.
    tracing::subscriber::set_global_default(warnings.clone()).unwrap();
    // All that this user may have.
    let mut instances = Vec::new();
    while let Ok(instance) = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC) {
        instances.push(instance);
        assert!(instances.len() < 100_000, "there is no limit");
    }
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let cell = cell();
    let watch = Watch::files([&file])
        .debounce(Duration::from_millis(20))
        .poll_every(Duration::from_millis(20))
        .spawn(&cell, parse)
        .unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("first");
    let reason = bench.watch.polls_because().unwrap();
    assert!(reason.starts_with("nothing can be watched: "), "{reason}");
    assert!(reason.contains("fs.inotify.max_user_instances"), "it does not say what to do: {reason}");
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
    if cfg!(feature = "tracing") {
        // Once, however many polls there were.
        let texts = warnings.0.lock().unwrap().clone();
        assert_eq!(texts, [format!("changes are found by polling only: {reason}")]);
    }
    drop(instances);
    eventually("notifications are back", || bench.watch.polls_because().is_none());
    fs::write(&bench.file, "third.").unwrap();
    bench.shows("third");
}

#[cfg(target_os = "linux")]
#[test]
fn it_polls_if_the_system_has_no_more_threads_and_notices_when_it_has() {
    run_as_another_user("polling::child_without_threads", 61_236);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "run by another test, as another user"]
fn child_without_threads() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let folder = tempfile::tempdir_in(given_folder().unwrap()).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    // Those that are here, and the two of a watch. None for `notify`.
    let limits = getrlimit(Resource::Nproc);
    let mut few = limits;
    few.current = Some(fs::read_dir("/proc/self/task").unwrap().count() as u64 + 2);
    setrlimit(Resource::Nproc, few).unwrap();
    let cell = cell();
    // So that the files are read when both of the watch are there.
    cell.set("before".to_owned());
    let watch = Watch::files([&file])
        .debounce(Duration::from_millis(20))
        .poll_every(Duration::from_millis(20))
        .spawn(&cell, parse)
        .unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("first");
    let reason = bench.watch.polls_because().unwrap();
    assert!(reason.starts_with("nothing can be watched: no thread can be started: "), "{reason}");
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
    assert_eq!(descriptors(), before, "each attempt leaves something behind");
    setrlimit(Resource::Nproc, limits).unwrap();
    eventually("notifications are there", || bench.watch.polls_because().is_none());
    fs::write(&bench.file, "third.").unwrap();
    bench.shows("third");
}

/// The texts of this crate's warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN && metadata.target().starts_with("dogpile_files")
    }
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
