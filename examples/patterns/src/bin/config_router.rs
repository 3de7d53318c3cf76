//! A configuration, a client that is made from it, and a router that is made from both. The configuration changes while requests are
//! served; no request is routed by the new configuration through the client of the old one, and nothing that is not used is made.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Derived, DogpileCell};

struct Config {
    version: u32,
    host: String,
}

static CONFIG: DogpileCell<Config> = DogpileCell::new(Duration::from_secs(60));
static UNUSED: AtomicU32 = AtomicU32::new(0);

fn config(version: u32) -> Config {
    Config { version, host: format!("host-{version}") }
}

struct Client {
    of: u32,
}

impl Client {
    fn connect(config: &Config) -> Self {
        thread::sleep(Duration::from_micros(50)); // slow
        assert!(config.host.ends_with(&config.version.to_string()));
        Self { of: config.version }
    }
}

fn main() {
    let client = Derived::new(|cx| Client::connect(&cx.get(&CONFIG)));
    let unused = Derived::new(|cx| {
        UNUSED.fetch_add(1, Ordering::Relaxed);
        Client::connect(&cx.get(&CONFIG))
    });
    // The versions that a router is made from.
    let router = Derived::new({
        let client = client.clone();
        move |cx| (cx.get(&CONFIG).version, cx.get(&client).of)
    });

    CONFIG.set(config(1));
    let is_over = AtomicBool::new(false);
    let mixed = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reader = router.reader();
                while !is_over.load(Ordering::Relaxed) {
                    let (configured, connected) = **reader.get();
                    mixed.fetch_add(u32::from(configured != connected), Ordering::Relaxed);
                }
            });
        }
        for version in 2..=1000 {
            CONFIG.set(config(version));
            thread::yield_now();
        }
        is_over.store(true, Ordering::Relaxed);
    });

    println!("mixed: {}", mixed.load(Ordering::Relaxed));
    println!("the last router: {:?}", *router.get());
    println!("one client for both of them: {}", client.get().of == router.get().1);
    println!("clients that nobody uses: {}", UNUSED.load(Ordering::Relaxed));
    drop(unused);
}
