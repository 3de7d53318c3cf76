//! The operations of a store as functions of an entry, for stores that read an entry, change it, and write it back.
//!
//! Each of them returns whether there is anything to be written, and the answer. It may be run again on a newer entry.

use std::time::Duration;

use crate::draw;
use crate::rules::{Entry, Micros};
use crate::store::{Acquire, Epoch, Invalidation, Publication, Publish, Request, Token};

pub(crate) fn acquire(request: &Request) -> impl Fn(&mut Entry, Micros) -> (bool, Acquire) {
    let draw = draw::incarnation();
    move |entry, now| {
        let incarnation = entry.incarnation;
        let answer = entry.acquire(now, request, draw);
        (entry.incarnation != incarnation || matches!(answer, Acquire::Won { .. }), answer)
    }
}

pub(crate) fn publish(
    token: &Token,
    publication: &Publication<'_>,
) -> impl Fn(&mut Entry, Micros) -> (bool, Publish) {
    |entry, now| if_stored(entry.publish(now, token, publication))
}

pub(crate) fn unchanged(
    token: &Token,
    soft: Duration,
    hard: Duration,
) -> impl Fn(&mut Entry, Micros) -> (bool, Publish) {
    move |entry, now| if_stored(entry.unchanged(now, token, soft, hard))
}

pub(crate) fn fail(token: &Token, pause: Duration) -> impl Fn(&mut Entry, Micros) -> (bool, bool) {
    move |entry, now| {
        let heard = entry.fail(now, token, pause);
        (heard, heard)
    }
}

pub(crate) fn renew(token: &Token, lease: Duration) -> impl Fn(&mut Entry, Micros) -> (bool, bool) {
    move |entry, now| {
        let lives = entry.renew(now, token, lease);
        (lives, lives)
    }
}

pub(crate) fn invalidate(how: Invalidation) -> impl Fn(&mut Entry, Micros) -> (bool, Epoch) {
    let draw = draw::incarnation();
    move |entry, now| (true, entry.invalidate(now, how, draw))
}

fn if_stored(answer: Publish) -> (bool, Publish) {
    (matches!(answer, Publish::Stored(_)), answer)
}
