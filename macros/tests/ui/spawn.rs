//! A spawner takes the build of its kind of function: the compiler's own messages, at the setting.

use dogpile::dogpile;

#[dogpile(ttl = "60s", spawn = "tokio::spawn")]
fn textual() -> u32 {
    7
}

#[dogpile(ttl = "60s", spawn)]
fn without_a_value() -> u32 {
    7
}

#[dogpile(ttl = "60s", spawn = tokio::spawn)]
fn a_task() -> u32 {
    7
}

#[dogpile(ttl = "60s", spawn = std::thread::spawn)]
async fn a_thread() -> u32 {
    7
}

#[dogpile(ttl = "60s", spawn = drop)]
fn abandoned() -> u32 {
    7
}

#[dogpile(ttl = "60s", spawn = tokio::spawn)]
async fn not_send() -> u32 {
    let one = std::rc::Rc::new(7);
    std::future::ready(()).await;
    *one
}

fn main() {}
