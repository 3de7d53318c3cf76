//! The page that shows the loads while they run: in a browser, and what its server does.

mod browser;

use browser::Browser;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A hang guard: nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program, which serves the page.
struct Live {
    process: Child,
    /// Host and port.
    address: String,
    stdout: BufReader<ChildStdout>,
}

impl Live {
    fn start(words: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_stampede"))
            .arg("--live")
            .args(words)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let address =
            line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect(&line).to_owned();
        Self { process, address, stdout }
    }

    /// Sends a request; what is read then is the answer.
    fn ask(&self, request: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        write!(stream, "{request} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address).expect("the server listens");
        BufReader::new(stream)
    }

    /// The first line of the answer.
    fn status(&self, request: &str) -> String {
        self.ask(request).lines().next().expect("an answer").expect("a line")
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads frames until one contains the text; half a minute of them is a hang guard.
fn read_until(frames: &mut BufReader<TcpStream>, text: &str) {
    let found = frames.lines().map_while(Result::ok).take(600).any(|line| line.contains(text));
    assert!(found, "no frame with {text}");
}

fn number(browser: &mut Browser, panel: usize, class: &str) -> u64 {
    let text =
        browser.evaluate(&format!("document.querySelectorAll('.panel .{class}')[{panel}].textContent"));
    text.as_str()
        .and_then(|text| text.replace(',', "").parse().ok())
        .unwrap_or_else(|| panic!("{text} is no number"))
}

#[test]
fn the_page_draws_four_loads_and_its_buttons_disturb_the_source() {
    let Some(mut browser) = Browser::start("the page in a browser") else { return };
    let live = Live::start(&["--clients", "16", "--ttl", "1"]);
    browser.look(1280, 860, "light");
    browser.open(&format!("http://{}/", live.address));
    browser.wait_until("frames.length >= 40 && isDrawn");

    // Each panel has its name and its numbers, and something is drawn in its colours.
    let names = browser.evaluate("[...document.querySelectorAll('.panel h2')].map(name => name.textContent)");
    assert_eq!(
        names,
        serde_json::json!([
            "A timed cache, nothing else",
            "A mutex around it",
            "DogpileCell",
            "DogpileCell with a Refresher"
        ])
    );
    for panel in 0..4 {
        assert!(number(&mut browser, panel, "queries") > 0, "panel {panel}");
        assert_eq!(number(&mut browser, panel, "errors"), 0, "panel {panel}");
        let colours = browser.evaluate(&format!(
            "(() => {{
                const canvas = document.querySelectorAll('canvas')[{panel}];
                const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                let blue = 0, amber = 0;
                for (let i = 0; i < data.length; i += 4) {{
                    if (data[i] === 0 && data[i + 1] === 114 && data[i + 2] === 178) blue++;
                    if (data[i] === 224 && data[i + 1] === 138 && data[i + 2] === 0) amber++;
                }}
                return [blue > 50, amber > 10];
            }})()"
        ));
        assert_eq!(colours, serde_json::json!([true, true]), "latencies and queries of panel {panel}");
    }

    // A source that fails: callers of the cells do not notice.
    browser.screenshot("desktop-light");
    browser.evaluate("document.getElementById('failing').click()");
    browser
        .wait_until("frames.at(-1).failing && [0, 1].every(panel => frames.at(-1).panels[panel].errors > 0)");
    browser.wait_until("isDrawn");
    for panel in 0..4 {
        assert_eq!(number(&mut browser, panel, "errors") > 0, panel < 2, "panel {panel}");
    }
    let pressed = "document.getElementById('failing').getAttribute('aria-pressed')";
    assert_eq!(browser.evaluate(pressed), "true");
    browser.look(1280, 860, "dark");
    browser.wait_until("isDrawn");
    browser.screenshot("desktop-dark-failing");
    browser.evaluate("document.getElementById('failing').click()");
    browser.wait_until("!frames.at(-1).failing && frames.at(-1).panels.every(moment => moment.errors === 0)");

    // A slow source: those behind the mutex wait for it, those of the cell do not.
    browser.evaluate("document.getElementById('slow').click()");
    browser.wait_until("frames.at(-1).slow && frames.at(-1).panels[1].half > 200e3");
    browser.evaluate("document.getElementById('slow').click()");
    browser.wait_until(
        "!frames.at(-1).slow && document.getElementById('slow').getAttribute('aria-pressed') === 'false'",
    );

    // It fits a telephone.
    for scheme in ["light", "dark"] {
        browser.look(390, 844, scheme);
        browser.wait_until("isDrawn");
        browser.screenshot(&format!("phone-{scheme}"));
        let fits = browser.evaluate("document.documentElement.scrollWidth <= 390");
        assert_eq!(fits, true);
    }

    assert_eq!(browser.complaints(), Vec::<String>::new());

    drop(live);
    browser.wait_until("document.getElementById('lost').textContent !== ''");
}

#[test]
fn a_viewer_that_goes_away_is_forgotten() {
    let live = Live::start(&["--clients", "1", "--rate", "10"]);
    let mut one = live.ask("GET /frames");
    let mut other = live.ask("GET /frames");
    read_until(&mut one, "\"viewers\":2");
    read_until(&mut other, "\"viewers\":2");
    drop(other);
    read_until(&mut one, "\"viewers\":1");
}

#[test]
fn a_late_viewer_gets_what_it_missed() {
    let live = Live::start(&["--clients", "1", "--rate", "10"]);
    read_until(&mut live.ask("GET /frames"), "\"number\":12,");
    let first = live.ask("GET /frames").lines().map_while(Result::ok).find(|line| line.starts_with("data:"));
    assert!(first.is_some_and(|frame| frame.contains("\"number\":1,")));
}

#[test]
fn only_the_switches_that_there_are_can_be_switched() {
    let live = Live::start(&["--clients", "1", "--rate", "10"]);
    assert!(live.address.starts_with("127.0.0.1:"), "{}", live.address);
    for (request, status) in [
        ("GET /", "200"),
        ("GET /nothing", "404"),
        ("POST /switch/slow/on", "204"),
        ("POST /switch/slow/maybe", "404"),
        ("POST /switch/other/on", "404"),
        // A link elsewhere must not switch anything.
        ("GET /switch/failing/on", "405"),
    ] {
        let said = live.status(request);
        assert!(said.contains(status), "{request}: {said}");
    }
    read_until(&mut live.ask("GET /frames"), "\"failing\":false,\"slow\":true");
}

#[test]
fn a_port_that_is_taken_gets_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_stampede"))
        .args(["--live", "--port", &port])
        .output()
        .expect("the program starts");
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(said.contains(&port) && said.contains("--port") && said.lines().count() == 1, "{said}");
}

/// Also while a viewer is connected.
#[cfg(unix)]
#[test]
fn it_ends_with_control_c() {
    let mut live = Live::start(&["--clients", "4"]);
    let mut viewer = live.ask("GET /frames");
    read_until(&mut viewer, "\"number\":1,");
    let sent = Command::new("kill").args(["-INT", &live.process.id().to_string()]).status().expect("kill");
    assert!(sent.success());
    let ended = live.process.wait().expect("it ends");
    assert!(ended.success(), "{ended}");
    let mut said = String::new();
    live.stdout.read_to_string(&mut said).expect("text");
    assert!(said.contains("Ended."), "{said}");
}
