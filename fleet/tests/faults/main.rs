//! Faults, in fleets of real processes: eight nodes with four reading threads each, on each store.
//!
//! What is checked, whatever happens: no thread ever sees a version or a reading of the source that is older than what it
//! saw before; readers go on reading; and when the fault is over every node gets the newest value without anybody's help.

#![cfg(all(feature = "file", feature = "redis", feature = "postgres"))]

mod fleet;
mod node;
mod proxy;
mod scenarios;
#[path = "../support/servers.rs"]
mod servers;

/// Not a test: what the node processes run, which are this program again.
#[test]
fn node_process() {
    if let Ok(settings) = std::env::var(node::SETTINGS) {
        node::run(&settings);
    }
}
