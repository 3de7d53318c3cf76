//! What the program sees of its files.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use config_layers::{App, Config};
use figment::providers::{Format, Toml};

fn config(url: &str, connections: u32) -> Config {
    Config { url: url.to_owned(), connections }
}

#[track_caller]
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "hangs: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn layers_mistakes_and_the_client_that_follows() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("base.toml", "url = 'one'\nconnections = 4\n");
    // Stands for the environment.
    let app = App::start(folder.path(), || Toml::string("connections = 9")).unwrap();
    assert_eq!(*app.config(), config("one", 9));
    let first = app.client();
    assert_eq!((first.url(), first.number), ("one", 1));
    assert!(Arc::ptr_eq(&first, &app.client()));

    write("local.toml", "url = 'two'");
    eventually("the layer", || *app.config() == config("two", 9));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| app.client())).collect();
        for client in clients {
            let client = client.join().unwrap();
            assert_eq!((client.url(), client.number), ("two", 2), "one client for all");
        }
    });

    for (text, mistake) in [
        ("url = 'three'\nconections = 5\n", "local.toml: unknown field: found `conections`"),
        ("url = 'three'\nconnections = \n", "local.toml: TOML parse error at line 2, column 15"),
    ] {
        write("local.toml", text);
        eventually(mistake, || app.error().is_some_and(|error| error.contains(mistake)));
        assert_eq!(*app.config(), config("two", 9));
        assert_eq!(app.client().number, 2);
    }
    fs::remove_file(folder.path().join("local.toml")).unwrap();
    eventually("the layer is gone", || *app.config() == config("one", 9));
    // It is noted after the value has been published.
    eventually("no error is left", || app.error().is_none());
    assert_eq!((app.client().url(), app.client().number), ("one", 3));
    assert_eq!(first.url(), "one", "the first client has not changed");
}

#[test]
fn no_configuration_is_no_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.toml"), "connections = 4\nurl = 7").unwrap();
    // A mistake is noticed at once; the start waits ten seconds for a correction.
    let mistaken = folder.path().to_owned();
    let start = thread::spawn(move || App::start(&mistaken, || Toml::string("")));
    fs::write(folder.path().join("base.toml"), "connections = 4\nurl = 'one'").unwrap();
    assert_eq!(*start.join().unwrap().unwrap().config(), config("one", 4));
}
