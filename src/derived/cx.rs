//! One evaluation: what is asked for, and what it is given.
//!
//! An evaluation takes each source's value once (it is *pinned*), whatever asks for it in which order, so nothing in it mixes two
//! values of one source. That a source gives no value is pinned too. A derived value that is asked for and cached is used if what
//! it was made from is what is pinned here, or is pinned with it; else it is made again, in this evaluation.

use std::fmt;

use crate::sync::{Arc, Mutex};

use super::stamp::{Gave, Pinned, Stamp};

/// What the closure of a [`Derived`](crate::Derived) value asks for its sources.
///
/// In one evaluation each source has one value, or none: that is found out when it is asked for first.
///
/// # Examples
///
/// ```
/// use dogpile::{Derived, DogpileCell};
/// use std::time::Duration;
///
/// static HOST: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
/// static PORT: DogpileCell<u16> = DogpileCell::new(Duration::from_secs(60));
///
/// let address = Derived::new(|cx| match cx.try_get(&PORT) {
///     Ok(port) => format!("{}:{port}", cx.get(&HOST)),
///     Err(_) => format!("{}:443", cx.get(&HOST)),
/// });
/// HOST.set("localhost".to_owned());
/// assert_eq!(*address.get(), "localhost:443");
/// PORT.set(8443);
/// assert_eq!(*address.get(), "localhost:8443");
/// ```
#[derive(Clone)]
pub struct Cx {
    /// What this evaluation has taken, each once.
    pins: Arc<Mutex<Vec<Pinned>>>,
    frame: Arc<Frame>,
}

/// The making of one derived value, in an evaluation.
struct Frame {
    /// Of the derived value.
    id: usize,
    /// What has asked for it.
    parent: Option<Arc<Frame>>,
    stamps: Mutex<Vec<Stamp>>,
}

impl Cx {
    /// An evaluation that begins with this derived value.
    pub(super) fn new(id: usize) -> Self {
        let frame = Frame { id, parent: None, stamps: Mutex::default() };
        Self { pins: Arc::default(), frame: Arc::new(frame) }
    }

    /// The making of another derived value, in the same evaluation.
    pub(super) fn inside(&self, id: usize) -> Self {
        let frame = Frame { id, parent: Some(Arc::clone(&self.frame)), stamps: Mutex::default() };
        Self { pins: Arc::clone(&self.pins), frame: Arc::new(frame) }
    }

    /// What has been taken so far.
    pub(super) fn stamps(&self) -> Vec<Stamp> {
        self.frame.stamps.lock().clone()
    }

    /// Whether the derived value is being made here, or by what asks for this one.
    pub(super) fn is_inside(&self, id: usize) -> bool {
        self.frames().any(|frame| frame.id == id)
    }

    pub(super) fn pinned(&self, id: usize) -> Option<Pinned> {
        self.pins.lock().iter().find(|pin| pin.id() == id).cloned()
    }

    /// Pins a value, unless another one is pinned already: that one.
    pub(super) fn pin(&self, pin: Pinned) -> Pinned {
        let mut pins = self.pins.lock();
        match pins.iter().find(|other| other.id() == pin.id()).cloned() {
            // What is not used is dropped after unlocking.
            Some(other) => {
                drop(pins);
                drop(pin);
                other
            }
            None => {
                pins.push(pin.clone());
                pin
            }
        }
    }

    /// What is made here, and what asks for it, is made from these. At once, so that it is known also if the making fails.
    pub(super) fn note(&self, new: &[Stamp]) {
        for frame in self.frames() {
            let mut stamps = frame.stamps.lock();
            for stamp in new {
                if !stamps.iter().any(|other| other.source.id() == stamp.source.id()) {
                    stamps.push(stamp.clone());
                }
            }
        }
    }

    /// From this one outwards.
    fn frames(&self) -> impl Iterator<Item = &Arc<Frame>> {
        std::iter::successors(Some(&self.frame), |frame| frame.parent.as_ref())
    }

    /// Whether a value that was made from these fits into this evaluation. Pins what it was made from.
    pub(super) fn accepts(&self, stamps: &[Stamp]) -> bool {
        stamps.iter().all(|stamp| {
            let pinned = self.pinned(stamp.source.id()).or_else(|| {
                let may_be_pinned = stamp.gave != Gave::Unpublished && stamp.holds_after_refresh();
                if may_be_pinned { stamp.source.pin(stamp).map(|pin| self.pin(pin)) } else { None }
            });
            pinned.is_some_and(|pin| pin.fits(stamp))
        })
    }
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").finish_non_exhaustive()
    }
}
