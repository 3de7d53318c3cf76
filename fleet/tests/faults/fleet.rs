//! Eight node processes, as the test sees them.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use dogpile_fleet::{Current, Fence, Invalidation, RefreshStore, Token, Value};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::node::{MARK, NAME, SETTINGS, Settings, open_store, read_source};

pub(crate) const NODES: usize = 8;
const HANG: Duration = Duration::from_secs(60);

pub(crate) struct Fleet {
    pub(crate) nodes: Vec<NodeProcess>,
    pub(crate) store: Box<dyn RefreshStore>,
    source: PathBuf,
    _directory: TempDir,
}

pub(crate) struct NodeProcess {
    number: usize,
    process: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// Read, but not asked for yet.
    kept: VecDeque<String>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    pub(crate) fleet_builds: u64,
    pub(crate) local_builds: u64,
    pub(crate) published: u64,
    pub(crate) superseded: u64,
    pub(crate) invalidated: u64,
    pub(crate) damaged: u64,
    pub(crate) foreign: u64,
    pub(crate) store_errors: u64,
    pub(crate) violations: u64,
}

/// What scenarios may change.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) ttl: u64,
    pub(crate) lease: u64,
    pub(crate) poll: u64,
    pub(crate) timeout: u64,
}

/// Operations may take as long as a busy machine needs; only where the store is disturbed they must not.
pub(crate) const SETUP: Setup = Setup { ttl: 200, lease: 400, poll: 50, timeout: 30_000 };
pub(crate) const DISTURBED: Setup = Setup { timeout: 300, ..SETUP };

impl Fleet {
    /// Eight nodes, each with an address of the store of its own, perhaps, and the direct one for the test.
    pub(crate) fn start(setup: Setup, address: &str, of_node: impl Fn(usize) -> String) -> Self {
        Self::start_with(setup, address, of_node, |_| 1)
    }

    pub(crate) fn start_with(
        setup: Setup,
        address: &str,
        of_node: impl Fn(usize) -> String,
        schema: impl Fn(usize) -> u32,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        std::fs::write(&source, "1").unwrap();
        let Setup { ttl, lease, poll, timeout } = setup;
        let nodes = (0..NODES)
            .map(|number| {
                let settings = Settings {
                    store: of_node(number),
                    source: source.display().to_string(),
                    ttl,
                    lease,
                    poll,
                    schema: schema(number),
                    timeout,
                };
                NodeProcess::start(number, &settings)
            })
            .collect();
        let mut fleet = Self { nodes, store: open_store(address, HANG), source, _directory: directory };
        fleet.each(|node| drop(node.expect("ready")));
        fleet
    }

    pub(crate) fn each<R>(&mut self, ask: impl FnMut(&mut NodeProcess) -> R) -> Vec<R> {
        self.nodes.iter_mut().map(ask).collect()
    }

    /// The same command for all nodes, and all answers: the nodes work on it at the same time.
    pub(crate) fn all(&mut self, command: &str) {
        self.each(|node| node.send(command));
        self.each(|node| drop(node.expect("done")));
    }

    /// Changes what values are built from. Returns the new reading.
    pub(crate) fn change_source(&self) -> u64 {
        let next = read_source(&self.source.display().to_string()) + 1;
        let new = self.source.with_extension("new");
        std::fs::write(&new, next.to_string()).unwrap();
        std::fs::rename(&new, &self.source).unwrap();
        next
    }

    pub(crate) fn invalidate(&self, how: Invalidation) {
        self.store.invalidate(NAME, how).unwrap();
    }

    /// The value in the store.
    pub(crate) fn stored(&self) -> Option<Value> {
        match self.store.poll(NAME, None).unwrap().current {
            Current::Newer(value) => Some(value),
            _ => None,
        }
    }

    /// Whether an operation that needs the entry for itself gets it.
    pub(crate) fn is_store_free(&self) -> bool {
        let nobody = Token { fence: Fence { incarnation: 1, number: 0 }, epoch: 0 };
        self.store.renew(NAME, &nobody, HANG).is_ok()
    }

    /// Waits until the store has such a value.
    #[track_caller]
    pub(crate) fn await_stored(&self, condition: impl Fn(&Value) -> bool) {
        let hang = Instant::now() + HANG;
        while !self.stored().is_some_and(|value| condition(&value)) {
            assert!(
                Instant::now() < hang,
                "never stored; {:?}\n{}",
                self.store.poll(NAME, None),
                self.history()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Holds up the next build, whichever node is elected for it. Returns that node; the others are not held up any more.
    pub(crate) fn hold_a_builder(&mut self) -> usize {
        // What was held up earlier has been let go.
        self.each(|node| while node.has_said("held") {});
        self.all("hold");
        let hang = Instant::now() + HANG;
        let held = loop {
            if let Some(held) = (0..self.nodes.len()).find(|number| self.nodes[*number].has_said("held")) {
                break held;
            }
            if Instant::now() > hang {
                let poll = self.store.poll(NAME, None);
                let reports = self.each(NodeProcess::report);
                panic!("nobody builds; the store says {poll:?}, the nodes {reports:#?}\n{}", self.history());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        for number in (0..self.nodes.len()).filter(|number| *number != held) {
            let node = &mut self.nodes[number];
            node.send("release");
            drop(node.expect("done"));
        }
        held
    }

    /// After a fault: every node gets what is newest, without a hand. And nothing has gone back, on whatever node.
    #[track_caller]
    pub(crate) fn recovers(&mut self) -> Vec<Report> {
        let newest = self.change_source();
        self.all(&format!("await {newest}"));
        self.reports()
    }

    #[track_caller]
    pub(crate) fn reports(&mut self) -> Vec<Report> {
        let reports = self.each(NodeProcess::report);
        assert!(
            reports.iter().all(|report| report.violations == 0),
            "a node has gone back\n{}",
            self.history()
        );
        reports
    }

    fn history(&self) -> String {
        std::fs::read_to_string(self.source.with_extension("history")).unwrap_or_default()
    }

    /// Lets a node end in the proper way.
    pub(crate) fn quit(mut self) {
        self.each(|node| node.send("quit"));
        self.each(|node| {
            drop(node.expect("bye"));
            assert!(node.process.wait().unwrap().success(), "node {}", node.number);
        });
    }
}

impl NodeProcess {
    fn start(number: usize, settings: &Settings) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node_process", "--nocapture", "--test-threads=1"])
            .env(SETTINGS, settings.write())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = process.stdout.take().unwrap();
        let (line, lines) = channel();
        std::thread::spawn(move || {
            for read in BufReader::new(output).lines().map_while(Result::ok) {
                // What the test harness writes has no end of line, perhaps.
                if let Some((_, said)) = read.split_once(MARK)
                    && line.send(said.to_owned()).is_err()
                {
                    break;
                }
            }
        });
        Self { number, process, input, lines, kept: VecDeque::new() }
    }

    pub(crate) fn send(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
        self.input.flush().unwrap();
    }

    /// Waits for a line that begins so.
    #[track_caller]
    pub(crate) fn expect(&mut self, beginning: &str) -> String {
        if let Some(position) = self.kept.iter().position(|line| line.starts_with(beginning)) {
            return self.kept.remove(position).unwrap();
        }
        loop {
            match self.lines.recv_timeout(HANG) {
                Ok(line) if line.starts_with(beginning) => return line,
                Ok(line) => self.kept.push_back(line),
                Err(error) => {
                    panic!("node {} never says {beginning:?}: {error}; {:?}", self.number, self.kept)
                }
            }
        }
    }

    /// Whether there was a line that begins so; takes it.
    pub(crate) fn has_said(&mut self, beginning: &str) -> bool {
        self.kept.extend(self.lines.try_iter());
        let position = self.kept.iter().position(|line| line.starts_with(beginning));
        position.is_some_and(|position| self.kept.remove(position).is_some())
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str, answer: &str) -> String {
        self.send(command);
        self.expect(answer)
    }

    #[track_caller]
    pub(crate) fn report(&mut self) -> Report {
        let line = self.ask("report", "report");
        let mut report = Report::default();
        for (name, number) in line.split(' ').filter_map(|word| word.split_once('=')) {
            let number: u64 = number.parse().unwrap();
            match name {
                "fleet_builds" => report.fleet_builds = number,
                "local_builds" => report.local_builds = number,
                "published" => report.published = number,
                "superseded" => report.superseded = number,
                "invalidated" => report.invalidated = number,
                "damaged" => report.damaged = number,
                "foreign" => report.foreign = number,
                "store_errors" => report.store_errors = number,
                "violations" if number > 0 => {
                    println!("node {}: {line}", self.number);
                    report.violations = number;
                }
                _ => {}
            }
        }
        report
    }

    fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// `kill -9`
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}
