//! A page that shows the four loads while they run: `--live`.
//!
//! One thread takes a frame of all loads ten times a second ([`panel::Frame`]) and gives it to the viewers, each a stream
//! of server-sent events. A viewer that connects gets the frames of the last half minute first. One that does not keep
//! up misses frames; it does not hold up the others.

mod panel;

use crate::args::Args;
use anyhow::Context;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Html;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::{get, post};
use futures_util::stream::{self, Stream};
use panel::{Loads, Switches};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{Write, stdout};
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::broadcast::{self, Receiver, Sender, error::RecvError};

const PAGE: &str = include_str!("live/page.html");
/// The time from one frame to the next, and how many of them the page shows.
const FRAME: Duration = Duration::from_millis(100);
const SHOWN: usize = 300;

/// Runs the loads and serves the page until Ctrl-C.
pub(crate) fn serve(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the server")?;
    let listener = runtime
        .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)))
        .with_context(|| format!("cannot serve on port {}: choose another --port", args.port))?;
    let address = listener.local_addr().context("cannot serve")?;
    let loads = Loads::start(args.clients, args.rate(), args.ttl)?;
    let (sender, _) = broadcast::channel(SHOWN);
    let channel = Arc::new(Channel { sender, shown: Mutex::new(VecDeque::with_capacity(SHOWN)) });
    let page = Page { channel: Arc::clone(&channel), switches: loads.switches(), html: html(args).into() };

    writeln!(stdout(), "Four loads run; watch them at http://{address}/ (Ctrl-C ends it)")
        .context("cannot print the address")?;
    let ended = thread::scope(|scope| {
        let switches = loads.switches();
        scope.spawn(move || frames(loads, &channel));
        let served = runtime.block_on(async {
            let router = Router::new()
                .route("/", get(|State(page): State<Page>| async move { Html(page.html.to_string()) }))
                .route("/frames", get(stream_frames))
                .route("/switch/{name}/{state}", post(switch))
                .with_state(page);
            // Not a graceful end: the streams of the viewers have none.
            tokio::select! {
                served = async { axum::serve(listener, router).await } => served,
                signal = tokio::signal::ctrl_c() => signal,
            }
        });
        switches.stop.store(true, Ordering::Relaxed);
        served
    });
    ended.context("the server ended")?;
    writeln!(stdout(), "\nEnded.").context("cannot print")
}

fn html(args: &Args) -> String {
    PAGE.replace("{clients}", &args.clients.to_string())
        .replace("{rate}", &crate::report::rate(args.rate()))
        .replace("{query}", &crate::report::time(panel::QUERY))
        .replace("{at once}", &panel::AT_ONCE.to_string())
        .replace("{patience}", &crate::report::time(panel::PATIENCE))
        .replace("{ttl}", &crate::report::time(args.ttl))
}

#[derive(Clone)]
struct Page {
    channel: Arc<Channel>,
    switches: Arc<Switches>,
    html: Arc<str>,
}

/// What viewers get: the frames that they missed, and then each new one.
struct Channel {
    sender: Sender<Arc<str>>,
    shown: Mutex<VecDeque<Arc<str>>>,
}

impl Channel {
    /// Under one lock, so that a viewer that comes between them neither misses a frame nor gets it twice.
    fn send(&self, frame: Arc<str>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.len() == SHOWN {
            shown.pop_front();
        }
        shown.push_back(Arc::clone(&frame));
        // An error: there are no viewers.
        let _ = self.sender.send(frame);
    }

    fn view(&self) -> (VecDeque<Arc<str>>, Receiver<Arc<str>>) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        (shown.clone(), self.sender.subscribe())
    }
}

/// Takes a frame of all loads at each beat, until it is stopped.
fn frames(mut loads: Loads, channel: &Channel) {
    let start = Instant::now();
    for number in 1_u32.. {
        thread::sleep((start + FRAME * number).saturating_duration_since(Instant::now()));
        if loads.switches().stop.load(Ordering::Relaxed) {
            break;
        }
        let frame = loads.frame(number, channel.sender.receiver_count());
        let frame = serde_json::to_string(&frame).expect("numbers and texts");
        channel.send(frame.into());
    }
}

async fn stream_frames(State(page): State<Page>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = stream::unfold(page.channel.view(), |(mut missed, mut receiver)| async {
        let frame = match missed.pop_front() {
            Some(frame) => frame,
            None => loop {
                match receiver.recv().await {
                    Ok(frame) => break frame,
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            },
        };
        Some((Ok(Event::default().data(&*frame)), (missed, receiver)))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn switch(State(page): State<Page>, Path((name, state)): Path<(String, String)>) -> StatusCode {
    let switch = match name.as_str() {
        "failing" => &page.switches.failing,
        "slow" => &page.switches.slow,
        _ => return StatusCode::NOT_FOUND,
    };
    let is_on = match state.as_str() {
        "on" => true,
        "off" => false,
        _ => return StatusCode::NOT_FOUND,
    };
    switch.store(is_on, Ordering::Relaxed);
    StatusCode::NO_CONTENT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> Channel {
        Channel { sender: broadcast::channel(SHOWN).0, shown: Mutex::new(VecDeque::new()) }
    }

    #[test]
    fn a_viewer_gets_what_it_missed_and_then_what_is_new_each_once() {
        let channel = channel();
        channel.send("1".into());
        channel.send("2".into());
        let (missed, mut receiver) = channel.view();
        assert_eq!(missed, [Arc::from("1"), Arc::from("2")]);
        channel.send("3".into());
        assert_eq!(&*receiver.try_recv().expect("a frame"), "3");
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_viewer_that_has_gone_is_not_kept_and_frames_are_bounded() {
        let channel = channel();
        let (_, one) = channel.view();
        let (_, _slow) = channel.view();
        drop(one);
        for number in 0..=2 * SHOWN {
            channel.send(number.to_string().into());
        }
        assert_eq!(channel.sender.receiver_count(), 1);
        let (missed, _) = channel.view();
        assert_eq!((missed.len(), &*missed[SHOWN - 1]), (SHOWN, "600"));
    }
}
