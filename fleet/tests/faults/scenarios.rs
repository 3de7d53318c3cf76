//! The faults, on each store.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dogpile_fleet::Invalidation;

use crate::fleet::{DISTURBED, Fleet, NODES, Report, SETUP, Setup};
use crate::node::NAME;
use crate::proxy::Proxy;
use crate::servers::{Kind, Server, address, query, server_or_skip};

/// Eight processes are enough for one machine.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sum(reports: &[Report], of: impl Fn(&Report) -> u64) -> u64 {
    reports.iter().map(of).sum()
}

/// Gets the address of the store, and that by which a node reaches it.
type Fault = fn(&str, &dyn Fn(usize) -> String);

/// Whatever the store is.
fn node_faults(address: &str, clean: impl Fn()) {
    let same = |_| address.to_owned();
    let faults: [(&str, Fault); 6] = [
        ("no fault", no_fault),
        ("builder killed", builder_killed),
        ("builder stopped past its lease", builder_stopped_past_its_lease),
        ("invalidated while building", invalidated_while_building),
        ("invalidation reaches every node", invalidation_reaches_every_node),
        ("another version of the program", another_version_of_the_program),
    ];
    for (name, fault) in faults {
        println!("{name}");
        clean();
        fault(address, &same);
    }
}

/// No fault: one build for each expiry, in the whole fleet.
fn no_fault(address: &str, of_node: &dyn Fn(usize) -> String) {
    // A lease that outlives any pause the machine makes: here nobody is to be taken for dead.
    let mut fleet = Fleet::start(Setup { lease: 30_000, ..SETUP }, address, of_node);
    fleet.await_stored(|value| value.version.number >= 10);
    // Nobody builds while it is counted.
    let held = fleet.hold_a_builder();
    let version = fleet.stored().unwrap().version.number;
    let reports = fleet.reports_of(version);
    let (builds, published) = (sum(&reports, |node| node.fleet_builds), sum(&reports, |node| node.published));
    // All that were published, and the one that is held up.
    assert_eq!((builds, published), (version + 1, version), "{reports:?}");
    assert_eq!(sum(&reports, |node| node.local_builds), 0, "{reports:?}");
    // Readers go on reading.
    fleet.all("progress 100");
    fleet.nodes[held].ask("release", "done");
    fleet.recovers();
    fleet.quit();
}

/// `kill -9` of the node that builds.
fn builder_killed(address: &str, of_node: &dyn Fn(usize) -> String) {
    let mut fleet = Fleet::start(SETUP, address, of_node);
    fleet.await_stored(|_| true);
    for _ in 0..3 {
        let held = fleet.hold_a_builder();
        let version = fleet.stored().unwrap().version.number;
        fleet.nodes.remove(held).kill();
        // When its lease has lapsed another node builds; readers do not wait for that.
        fleet.all("progress 20");
        fleet.await_stored(|value| value.version.number > version);
    }
    assert_eq!(fleet.nodes.len(), NODES - 3);
    fleet.recovers();
    fleet.quit();
}

/// The node that builds stands still until its lease has lapsed and another has built; then it goes on.
fn builder_stopped_past_its_lease(address: &str, of_node: &dyn Fn(usize) -> String) {
    let mut fleet = Fleet::start(SETUP, address, of_node);
    fleet.await_stored(|_| true);
    let held = fleet.hold_a_builder();
    fleet.nodes[held].stop();
    // On a file system: not in the middle of writing, which would keep all others out for as long as it stands still.
    while !fleet.is_store_free() {
        fleet.nodes[held].go_on();
        fleet.nodes[held].stop();
    }
    let newer = fleet.change_source();
    fleet.await_stored(|value| source_of(value) >= newer);
    let before = fleet.stored().unwrap();
    fleet.nodes[held].go_on();
    fleet.nodes[held].ask("release", "done");
    let hang = Instant::now() + Duration::from_secs(60);
    while fleet.nodes[held].report().superseded == 0 {
        assert!(
            Instant::now() < hang,
            "the late publication was not refused: {:?}",
            fleet.nodes[held].report()
        );
        let stored = fleet.stored().unwrap();
        assert!(source_of(&stored) >= newer && stored.version.number >= before.version.number);
    }
    fleet.recovers();
    fleet.quit();
}

/// The source changes and the value is invalidated while a node builds from what was before.
fn invalidated_while_building(address: &str, of_node: &dyn Fn(usize) -> String) {
    let mut fleet = Fleet::start(Setup { lease: 30_000, ..SETUP }, address, of_node);
    fleet.await_stored(|_| true);
    for how in [Invalidation::Soft, Invalidation::Hard] {
        let held = fleet.hold_a_builder();
        let refused = fleet.nodes[held].report().invalidated;
        let newer = fleet.change_source();
        fleet.invalidate(how);
        // Nobody waits for the lease of the one that builds in vain. The next builder may be another thread of the same node, whose
        // builds are held up.
        let hang = Instant::now() + Duration::from_secs(60);
        while !fleet.nodes[held].has_said("held")
            && fleet.stored().is_none_or(|value| source_of(&value) < newer)
        {
            assert!(Instant::now() < hang, "nobody else builds");
        }
        fleet.nodes[held].ask("release", "done");
        let hang = Instant::now() + Duration::from_secs(60);
        while fleet.nodes[held].report().invalidated == refused {
            assert!(Instant::now() < hang, "the early publication was not refused");
            assert!(
                fleet.stored().is_none_or(|stored| source_of(&stored) >= newer) || how == Invalidation::Soft
            );
        }
        fleet.await_stored(|value| source_of(value) >= newer);
    }
    fleet.recovers();
    fleet.quit();
}

/// After `invalidate` has returned, no node that has looked since takes an older value for fresh.
fn invalidation_reaches_every_node(address: &str, of_node: &dyn Fn(usize) -> String) {
    // Fresh for so long that nothing but the invalidation can make it stale.
    let mut fleet = Fleet::start(Setup { ttl: 3_600_000, ..SETUP }, address, of_node);
    fleet.await_stored(|_| true);
    fleet.all("await 1");
    for how in [Invalidation::Soft, Invalidation::Hard, Invalidation::Soft] {
        let newer = fleet.change_source();
        fleet.invalidate(how);
        fleet.each(|node| node.send(&format!("polled {newer}")));
        let answers = fleet.each(|node| node.expect("polled"));
        assert!(answers.iter().all(|answer| answer == "polled newer"), "{answers:?}");
        fleet.all(&format!("await {newer}"));
    }
    let reports = fleet.reports_of(4);
    assert_eq!(sum(&reports, |node| node.published), 4, "one build for each invalidation: {reports:?}");
    fleet.quit();
}

/// One half of the fleet has been updated to a program whose values are written in another way.
fn another_version_of_the_program(address: &str, of_node: &dyn Fn(usize) -> String) {
    let mut fleet = Fleet::start_with(SETUP, address, of_node, |number| u32::from(number >= NODES / 2) + 1);
    fleet.await_stored(|_| true);
    let reports = fleet.recovers();
    fleet.all("progress 50");
    assert!(sum(&reports, |node| node.foreign) > 0, "{reports:?}");
    assert_eq!(sum(&reports, |node| node.damaged), 0, "{reports:?}");
    fleet.quit();
}

/// What was stored, whichever program wrote it.
fn source_of(value: &dogpile_fleet::Value) -> u64 {
    // Behind the envelope.
    u64::from_le_bytes(value.payload[value.payload.len() - 8..].try_into().unwrap())
}

/// The payload is damaged in the store.
fn damaged(address: &str, damage: &dyn Fn()) {
    // Fresh for so long that nothing but the damage makes anybody build; read by those that look.
    let setup = Setup { ttl: 3_600_000, ..SETUP };
    {
        let fleet = Fleet::start(setup, address, |_| address.to_owned());
        fleet.await_stored(|_| true);
        fleet.quit();
    }
    damage();
    let mut fleet = Fleet::start(setup, address, |_| address.to_owned());
    let reports = fleet.recovers_from_nothing();
    assert_eq!(sum(&reports, |node| node.published), 1, "{reports:?}");
    fleet.quit();
}

impl Fleet {
    fn recovers_from_nothing(&mut self) -> Vec<Report> {
        self.all("await 1");
        self.reports_of(1)
    }

    /// When so many publications have been answered: what is in the store already may be news to its builder.
    fn reports_of(&mut self, published: u64) -> Vec<Report> {
        let hang = Instant::now() + Duration::from_secs(60);
        loop {
            let reports = self.reports();
            if sum(&reports, |node| node.published) >= published {
                return reports;
            }
            assert!(Instant::now() < hang, "not {published} publications: {reports:?}");
        }
    }
}

/// The store stands still, and no operation ever gives up: whoever waits for it waits for as long as it does.
fn nobody_waits_for(
    setup: Setup,
    address: &str,
    of_node: &dyn Fn(usize) -> String,
    stop: &dyn Fn(),
    go_on: &dyn Fn(),
) {
    const HOUR: u64 = 3_600_000;
    let mut fleet = Fleet::start(Setup { timeout: HOUR, ..setup }, address, of_node);
    fleet.await_stored(|_| true);
    fleet.all("await 1");
    stop();
    // Long enough for every node's value to expire, several times.
    fleet.all("stale");
    fleet.all("progress 200");
    go_on();
    fleet.recovers();
    fleet.quit();
}

/// Everything that was stored is lost while a node builds.
fn lost_while_building(fleet: &mut Fleet, lose: &dyn Fn()) {
    let held = fleet.hold_a_builder();
    let refused = fleet.nodes[held].report().invalidated;
    lose();
    fleet.await_stored(|_| true);
    fleet.nodes[held].ask("release", "done");
    let hang = Instant::now() + Duration::from_secs(60);
    while fleet.nodes[held].report().invalidated == refused {
        assert!(Instant::now() < hang, "a publication from before the loss was not refused");
    }
    fleet.recovers();
}

#[test]
fn file() {
    let _turn = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let address = path.display().to_string();
    node_faults(&address, || drop(std::fs::remove_dir_all(&path)));

    // Somebody has the lock, and keeps it.
    drop(std::fs::remove_dir_all(&path));
    let lock = std::cell::RefCell::new(None);
    let take = || {
        let file = std::fs::File::create(path.join(format!("{NAME}.lock"))).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        *lock.borrow_mut() = Some(file);
    };
    nobody_waits_for(SETUP, &address, &|_| address.clone(), &take, &|| drop(lock.take()));
    // For longer than the others wait for it. Without the value of the last fleet, whose source was further on.
    drop(std::fs::remove_dir_all(&path));
    let mut fleet = Fleet::start(DISTURBED, &address, |_| address.clone());
    fleet.await_stored(|_| true);
    fleet.all("await 1");
    take();
    let hang = Instant::now() + Duration::from_secs(60);
    while fleet.reports().iter().any(|node| node.store_errors == 0) {
        assert!(Instant::now() < hang, "not every node has noticed");
    }
    fleet.all("progress 100");
    drop(lock.take());
    fleet.recovers();
    // Somebody removes the directory; while it is being used that takes several attempts.
    lost_while_building(&mut fleet, &|| while std::fs::remove_dir_all(&path).is_err() {});
    fleet.quit();

    let state = path.join(format!("{NAME}.state"));
    for cut in [true, false] {
        drop(std::fs::remove_dir_all(&path));
        damaged(&address, &|| {
            let mut bytes = std::fs::read(&state).unwrap();
            if cut {
                bytes.truncate(bytes.len() - 3);
            } else {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }
            std::fs::write(&state, bytes).unwrap();
        });
    }
}

/// Nodes are killed again and again at whatever they do; the file is never damaged, and nobody is kept out.
#[test]
fn file_killed_at_any_instant() {
    let _turn = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let address = directory.path().join("store").display().to_string();
    for round in 0..6 {
        // Changes all the time.
        let mut fleet = Fleet::start(Setup { ttl: 1, lease: 50, ..SETUP }, &address, |_| address.clone());
        let version = fleet.stored().map_or(0, |value| value.version.number);
        fleet.await_stored(|value| value.version.number >= version + 5 + round);
        for node in fleet.nodes.drain(2..) {
            node.kill();
        }
        let version = fleet.stored().unwrap().version.number;
        fleet.await_stored(|value| value.version.number > version);
        fleet.reports();
    }
    let damaged: Vec<_> = std::fs::read_dir(&address)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().ends_with(".damaged"))
        .collect();
    assert!(damaged.is_empty(), "{damaged:?}");
}

fn server_faults(kind: Kind, server: &mut Server) {
    let address = server.address();

    // The server is killed, and comes back.
    server.flush();
    let mut fleet = Fleet::start(DISTURBED, &address, |_| address.clone());
    fleet.await_stored(|_| true);
    fleet.all("await 1");
    server.kill();
    // When their values have expired: while hints are healthy nodes seldom look.
    let hang = Instant::now() + Duration::from_secs(60);
    while fleet.reports().iter().any(|node| node.store_errors == 0) {
        assert!(Instant::now() < hang, "not every node has noticed");
    }
    fleet.all("progress 100");
    server.run().unwrap();
    fleet.recovers();

    lost_while_building(&mut fleet, &|| server.flush());
    fleet.quit();

    // The answers to all nodes are held back.
    server.flush();
    let proxy = Proxy::start(server.port);
    let through = |_| crate::servers::address(kind, proxy.port);
    nobody_waits_for(SETUP, &address, &through, &|| proxy.hold(), &|| proxy.mend());

    // Half of the nodes get their answers slowly, and keep up nevertheless; then they are cut off; then the answers to them
    // are held back for longer than they wait.
    server.flush();
    let proxy = Proxy::start(server.port);
    let through =
        |number| if number < NODES / 2 { crate::servers::address(kind, proxy.port) } else { address.clone() };
    let mut fleet = Fleet::start(DISTURBED, &address, through);
    fleet.await_stored(|_| true);
    fleet.all("await 1");
    proxy.slow_down();
    fleet.all("progress 100");
    fleet.recovers();
    proxy.mend();
    for disturb in [Proxy::cut, Proxy::hold] {
        disturb(&proxy);
        fleet.all("progress 100");
        let newer = fleet.change_source();
        for node in &mut fleet.nodes[NODES / 2..] {
            node.ask(&format!("await {newer}"), "done");
        }
        proxy.mend();
        fleet.recovers();
    }
    fleet.quit();
}

#[test]
fn redis() {
    let mut server = server_or_skip!(Kind::Redis);
    let _turn = one_at_a_time();
    let address = server.address();
    node_faults(&address, || server.flush());
    server_faults(Kind::Redis, &mut server);

    // A server that stands still.
    server.flush();
    nobody_waits_for(SETUP, &address, &|_| address.clone(), &|| server.stop(), &|| server.go_on());
    server.flush();
    let mut fleet = Fleet::start(DISTURBED, &address, |_| address.clone());
    fleet.await_stored(|_| true);
    fleet.all("await 1");
    server.stop();
    fleet.all("progress 100");
    server.go_on();
    fleet.recovers();
    fleet.quit();

    for payload in ["", "DPF1", "something else"] {
        server.flush();
        damaged(&address, &|| {
            crate::servers::redis_command(
                &address,
                &["HSET", &format!("dogpile:{NAME}"), "payload", payload],
            );
        });
    }
}

#[test]
fn postgres() {
    let mut server = server_or_skip!(Kind::Postgres);
    let _turn = one_at_a_time();
    let server_address = address(Kind::Postgres, server.port);
    query(&server_address, dogpile_fleet::PostgresStore::TABLE).unwrap();
    node_faults(&server_address, || server.flush());
    server_faults(Kind::Postgres, &mut server);

    for payload in ["''", "'DPF1'", "'something else'"] {
        server.flush();
        damaged(&server_address, &|| {
            query(&server_address, &format!("UPDATE dogpile_fleet SET payload = {payload}")).unwrap();
        });
    }
}
