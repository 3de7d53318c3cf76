//! Every store, against the conformance suite and, operation by operation, against the rules.

#[cfg(feature = "file")]
mod file;
mod memory;
mod operations;
#[cfg(all(feature = "redis", feature = "postgres"))]
#[path = "../support/servers.rs"]
mod servers;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod swap;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod with_server;
