//! Has tests only: `tests/fork.rs`.
