//! A price table whose source is killed: old prices instead of errors, pauses that grow between the attempts, and prices
//! again when the source is back. The source is a process of its own (this program, called with `serve`), time is a
//! `ManualClock`, so ten minutes take no time.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dogpile::{DogpileCell, ManualClock, Policy};

const SECOND: Duration = Duration::from_secs(1);
// A price of eleven minutes ago is the oldest that is served. The retry pauses are the default: 100 ms, then up to 10 s.
const POLICY: Policy = Policy::ttl(Duration::from_secs(60)).stale_while_refresh(Duration::from_secs(600));

/// The source: sends the price to each client.
fn serve(port: &str, price: &str) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse()?))?;
    println!("{}", listener.local_addr()?.port());
    Ok(listener.incoming().try_for_each(|stream| stream?.write_all(price.as_bytes()))?)
}

struct Source(Child);

impl Source {
    /// Returns it with its port, when it listens.
    fn start(port: u16, price: &str) -> Result<(Self, u16), Box<dyn Error>> {
        let mut program = Command::new(std::env::current_exe()?);
        let program = program.args(["serve", &port.to_string(), price]).stdout(Stdio::piped());
        let (mut source, mut line) = (Self(program.spawn()?), String::new());
        BufReader::new(source.0.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        Ok((source, line.trim().parse()?))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("it runs until it is killed");
    }
}

fn fetch(port: u16) -> io::Result<f64> {
    let price = io::read_to_string(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?.take(100))?;
    price.parse().map_err(io::Error::other)
}

fn main() -> Result<(), Box<dyn Error>> {
    if let [_, _, port, price] = &*std::env::args().collect::<Vec<_>>() {
        return serve(port, price);
    }
    let clock = ManualClock::new();
    let prices = DogpileCell::with_clock(POLICY, clock.clone()).named("prices");
    let (source, port) = Source::start(0, "9.5")?;
    let price = || prices.try_get_or_refresh(|| fetch(port));
    println!("the source is there: {}", price()?);
    drop(source);
    println!("the source has been killed; a minute later, a request each second:");
    clock.advance(60 * SECOND);
    let (mut last, mut served) = (0, 0);
    for second in 1..=620 {
        clock.advance(SECOND);
        let (attempts, answer) = (prices.stats().builds, price());
        served += u32::from(answer.is_ok());
        if prices.stats().builds != attempts {
            let outcome =
                answer.map_or_else(|error| error.to_string(), |price| format!("{price}, the old price"));
            println!("{second:4} s: an attempt, {:2} s after the last one: {}", second - last, outcome);
            last = second;
        }
    }
    println!("{} attempts for 620 requests, {served} of which got a price", prices.stats().failed);
    let (_source, _) = Source::start(port, "9.9")?;
    clock.advance(30 * SECOND);
    println!("the source is back: {}", price()?);
    Ok(())
}
