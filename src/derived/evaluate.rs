//! How a derived value is made: for a read, or for an evaluation that asks for it.
//!
//! A read is elected like any other caller ([`Node::refresh`]), and runs the closure with a [`Cx`] of its own. An evaluation of
//! another derived value uses the cached value if that fits, or else runs the closure *inside itself* ([`Begun`]), with the lease if it gets it.

use crate::cell::{Caller, Decision, Demand, Handle, Held, Kind, Search};
use crate::error::{BoxError, RefreshError, SharedError};
use crate::sync::Arc;
use crate::time::Clock;

use super::cx::Cx;
use super::node::{Computed, Node};
use super::source::{Source, erase, id_of};
use super::stamp::{AnySource, AnyValue, Gave, Pinned, Stamp, UNPUBLISHED, are_current};

#[cfg(feature = "async")]
use std::pin::Pin;

/// A closure that makes a value in the thread that asks.
#[allow(missing_debug_implementations)] // named by a type that no program needs to name
pub struct InThread<T>(pub(super) Box<Make<T>>);

pub(super) type Make<T> = dyn Fn(&Cx) -> Result<T, BoxError> + Send + Sync;

/// A closure that makes a value in a task.
#[cfg(feature = "async")]
#[allow(missing_debug_implementations)] // named by a sealed trait
pub struct InTask<T>(pub(super) Box<MakeAsync<T>>);

#[cfg(feature = "async")]
pub(super) type MakeAsync<T> = dyn Fn(Cx) -> Making<T> + Send + Sync;

#[cfg(feature = "async")]
pub(super) type Making<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// An evaluation that runs. If it has the lease and does not end with a value, what it has taken is noted as that of a failure: a
/// pause begins, and is to end when one of them publishes. Without the lease no pause begins, and
/// the sources that the last failed build has noted are kept.
struct Running<'a, T, C: Clock, B> {
    node: &'a Node<T, C, B>,
    cx: Cx,
    notes_failure: bool,
}

impl<T, C: Clock, B> Running<'_, T, C, B> {
    fn end(mut self, result: Result<T, BoxError>) -> Result<Computed<T>, BoxError> {
        self.notes_failure &= result.is_err();
        result.map(|value| Computed { value: Arc::new(value), stamps: self.cx.stamps().into() })
    }
}

impl<T, C: Clock, B> Drop for Running<'_, T, C, B> {
    fn drop(&mut self) {
        if self.notes_failure {
            self.node.note_failure(self.cx.stamps());
        }
    }
}

impl<T: Send + Sync + 'static, C: Clock + 'static> Node<T, C, InThread<T>> {
    /// Runs the closure.
    fn evaluate(&self, cx: Cx, has_lease: bool) -> Result<Computed<T>, BoxError> {
        let running = Running { node: self, cx, notes_failure: has_lease };
        let result = (self.build.0)(&running.cx);
        running.end(result)
    }

    /// In an evaluation of its own.
    pub(super) fn evaluate_alone(&self) -> Result<Computed<T>, BoxError> {
        self.evaluate(Cx::new(id_of(self)), true)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn refresh(self: &Arc<Self>) -> Result<Arc<T>, RefreshError> {
        if let Some(value) = self.settled() {
            return Ok(value);
        }
        let search = Search::plain(Handle::Shared(Arc::clone(self)), Caller::Fallible);
        search.try_get(|held| held.try_build(|| self.evaluate_alone())).map_err(of_source)
    }
}

#[cfg(feature = "async")]
impl<T: Send + Sync + 'static, C: Clock + 'static> Node<T, C, InTask<T>> {
    /// Runs the closure.
    async fn evaluate(&self, cx: Cx, has_lease: bool) -> Result<Computed<T>, BoxError> {
        let running = Running { node: self, cx, notes_failure: has_lease };
        let result = (self.build.0)(running.cx.clone()).await;
        running.end(result)
    }

    /// In an evaluation of its own.
    pub(super) async fn evaluate_alone(&self) -> Result<Computed<T>, BoxError> {
        self.evaluate(Cx::new(id_of(self)), true).await
    }

    pub(super) async fn refresh(self: Arc<Self>) -> Result<Arc<T>, RefreshError> {
        if let Some(value) = self.settled() {
            return Ok(value);
        }
        let search = Search::plain(Handle::Shared(Arc::clone(&self)), Caller::Fallible);
        let built = search.try_get_async(|held| held.try_build_async(|| self.evaluate_alone())).await;
        built.map_err(of_source)
    }

    /// As [`Source::take`].
    pub(super) async fn take(handle: &Handle<'static, Self>, cx: &Cx) -> Result<Pinned, RefreshError> {
        let own = erase::<Self, false>(handle);
        match handle.begin(handle, &own, cx)? {
            Begun::Cached(pin) => Ok(pin),
            Begun::Makes { mut held, inside, before } => {
                let evaluation = handle.evaluate(inside, held.is_some());
                let result = match &mut held {
                    Some(held) => held.run_async(|| evaluation).await,
                    None => evaluation.await,
                };
                handle.end(&own, held, before, result)
            }
        }
    }
}

/// The error of an evaluation that has passed on what [`Cx::try_get`] returned.
fn of_source(error: RefreshError) -> RefreshError {
    match error.downcast_ref::<RefreshError>() {
        Some(error) => error.clone(),
        None => error,
    }
}

/// How an evaluation comes to the value of a derived source.
#[allow(clippy::large_enum_variant)] // it is moved once
enum Begun<'a, T, C: Clock, B> {
    Cached(Pinned),
    /// Makes it here. Without the lease it is for this evaluation only: another thread makes it, perhaps from other values, or the
    /// cached one was made from newer ones.
    Makes {
        held: Option<Held<'a, Node<T, C, B>>>,
        inside: Cx,
        /// The generation before that.
        before: u64,
    },
}

impl<T: Send + Sync + 'static, C: Clock, B> Node<T, C, B> {
    fn begin<'a>(
        &self,
        handle: &Handle<'a, Self>,
        own: &Arc<dyn AnySource>,
        cx: &Cx,
    ) -> Result<Begun<'a, T, C, B>, RefreshError> {
        let id = id_of(self);
        if cx.is_inside(id) {
            return Err(RefreshError::Reentrant);
        }
        if let Some(pin) = self.absorb(own, cx) {
            return Ok(Begun::Cached(pin));
        }
        let machine = self.machine();
        let (before, _) = own.state();
        if let Some(error) = machine.paused_by() {
            return Err(self.refuse(error, cx));
        }
        match machine.lookup(&Demand::ANY, None) {
            Decision::Elected(ticket) => {
                let held = Some(Held::new(handle.clone(), ticket));
                Ok(Begun::Makes { held, inside: cx.inside(id), before })
            }
            Decision::Failed(error) => Err(self.refuse(error, cx)),
            Decision::Fresh(_) | Decision::Stale(_) | Decision::Pending(_) => {
                Ok(Begun::Makes { held: None, inside: cx.inside(id), before })
            }
        }
    }

    /// The cached value, if what it was made from fits into an evaluation.
    fn absorb(&self, own: &Arc<dyn AnySource>, cx: &Cx) -> Option<Pinned> {
        loop {
            let machine = self.machine();
            let (value, record) = machine.held()?;
            let Some(stamps) = self.stamps_of(record.generation) else {
                // A later one is published by now.
                continue;
            };
            if self.is_due(&record, &stamps) || !cx.accepts(&stamps) {
                return None;
            }
            return Some(self.pin(own, value, record.generation, record.generation, &stamps));
        }
    }

    /// `before`: the generation before it was made.
    fn pin(
        &self,
        own: &Arc<dyn AnySource>,
        value: Arc<T>,
        generation: u64,
        before: u64,
        stamps: &[Stamp],
    ) -> Pinned {
        // What is made from an unpublished value is out of date when another one is published.
        let (follows, gave) = match generation {
            UNPUBLISHED => (before, Gave::Unpublished),
            generation => (generation, Gave::Published),
        };
        let own = Stamp { source: Arc::clone(own), generation: follows, gave };
        let value: AnyValue = value;
        let stamps = stamps.iter().cloned().chain([own]).collect();
        Pinned { id: id_of(self), generation, value: Ok(value), stamps }
    }

    /// In a retry pause. What asks fails for want of what the failed build had asked for, and is to try again when that changes.
    fn refuse(&self, error: SharedError, cx: &Cx) -> RefreshError {
        cx.note(&self.failed());
        of_source(RefreshError::Build(error))
    }

    fn end(
        &self,
        own: &Arc<dyn AnySource>,
        held: Option<Held<'_, Self>>,
        before: u64,
        result: Result<Computed<T>, BoxError>,
    ) -> Result<Pinned, RefreshError> {
        let pin = match (result, held) {
            (Ok(computed), Some(held)) if are_current(&computed.stamps) => {
                let (_, generation) = Self::publish_computed(held, &computed);
                self.pin(own, computed.value, generation, before, &computed.stamps)
            }
            (Ok(Computed { value, stamps }), held) => {
                // Only what asks for it has still to do with what it was made from.
                held.into_iter().for_each(Held::abandon);
                self.pin(own, value, UNPUBLISHED, before, &stamps)
            }
            (Err(error), held) => {
                let error = SharedError::new(error);
                let error = match held {
                    Some(held) => held.fail(error),
                    None => error,
                };
                return Err(of_source(RefreshError::Build(error)));
            }
        };
        Ok(pin)
    }
}

impl<T, C> Source<false> for Node<T, C, InThread<T>>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
{
    fn take(handle: &Handle<'static, Self>, cx: &Cx) -> Result<Pinned, RefreshError> {
        let own = erase::<Self, false>(handle);
        match handle.begin(handle, &own, cx)? {
            Begun::Cached(pin) => Ok(pin),
            Begun::Makes { mut held, inside, before } => {
                let has_lease = held.is_some();
                let evaluate = || handle.evaluate(inside, has_lease);
                let result = match &mut held {
                    Some(held) => held.run(evaluate),
                    None => evaluate(),
                };
                handle.end(&own, held, before, result)
            }
        }
    }
}
