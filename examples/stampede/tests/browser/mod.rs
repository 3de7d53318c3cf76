//! A headless Chromium, driven by its `DevTools` protocol.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tungstenite::{Message, WebSocket};

const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
/// A hang guard: no answer may take longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// One page in a browser of its own.
pub(crate) struct Browser {
    process: Child,
    socket: WebSocket<TcpStream>,
    /// Of the page; none for what is asked of the browser itself.
    session: Option<String>,
    number: u64,
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser, or says that `test` is skipped where there is none.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let Some(mut process) = NAMES.iter().find_map(|name| command(name, profile.path()).spawn().ok())
        else {
            assert!(std::env::var_os("CI").is_none(), "there is no Chromium");
            // Past the capture of the test harness.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: there is no Chromium");
            return None;
        };
        let mut stderr =
            BufReader::new(process.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
        let address = stderr
            .find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_owned))
            .expect("the browser says where it listens");
        // It must not block on a full pipe.
        std::thread::spawn(move || stderr.for_each(drop));
        let host = address.trim_start_matches("ws://").split('/').next().expect("a host");
        let stream = TcpStream::connect(host).expect("the browser listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let (socket, _) = tungstenite::client(&address, stream).expect("a web socket");

        let mut browser =
            Self { process, socket, session: None, number: 0, events: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", &attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime", "Log", "Page"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        Some(browser)
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.socket.send(Message::text(message.to_string())).expect("the browser is there");
        loop {
            let message = self.socket.read().expect("the browser answers");
            let Ok(text) = message.to_text() else { continue };
            let mut answer: Value = serde_json::from_str(text).expect("JSON");
            if answer["id"] == self.number {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].take();
            }
            self.events.push(answer);
        }
    }

    /// A window of that size, on a light or dark desktop.
    pub(crate) fn look(&mut self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &scheme);
    }

    pub(crate) fn open(&mut self, address: &str) {
        self.call("Page.navigate", &json!({"url": address}));
    }

    /// The value of an expression in the page; of its promise, what that comes to.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", &parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Returns when the condition is true in the page.
    pub(crate) fn wait_until(&mut self, condition: &str) {
        self.evaluate(&format!(
            "new Promise(resolve => {{
                const look = () => {{
                    let is_true = false;
                    try {{ is_true = ({condition}) }} catch {{}}
                    is_true ? resolve() : setTimeout(look, 20);
                }};
                look();
            }})"
        ));
    }

    /// What the page has complained of: errors and warnings on its console, exceptions, requests that failed.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // What was reported before this answer has been read with it.
        self.evaluate("0");
        let is_complaint = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                ["error", "warning", "assert"].iter().any(|kind| event["params"]["type"] == *kind)
            }
            Some("Log.entryAdded") => {
                ["error", "warning"].iter().any(|level| event["params"]["entry"]["level"] == *level)
            }
            _ => false,
        };
        self.events.iter().filter(is_complaint).map(Value::to_string).collect()
    }

    /// Keeps a screenshot of the whole page, if the variable `STAMPEDE_SCREENSHOTS` names a folder.
    pub(crate) fn screenshot(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("STAMPEDE_SCREENSHOTS") else { return };
        let image = self.call("Page.captureScreenshot", &json!({"captureBeyondViewport": true}));
        let image = BASE64_STANDARD.decode(image["data"].as_str().expect("an image")).expect("in base64");
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), image).expect("a file");
    }
}

fn command(name: &str, profile: &Path) -> Command {
    let mut command = Command::new(name);
    command
        // No sandbox: it cannot be had in many containers, and the page is this program's own.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
