//! Threads under shuttle, which has all that is needed.

pub(crate) use ::shuttle::thread::{
    Builder as ThreadBuilder, JoinHandle, Thread, ThreadId, current as current_thread, park, park_timeout,
};
