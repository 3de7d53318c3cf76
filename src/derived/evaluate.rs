//! How a derived value is made: for a read, or for an evaluation that asks for it.
//!
//! A read is elected like any other caller ([`Node::refresh`]), and runs the closure with a [`Cx`] of its own. An evaluation of
//! another derived value uses the cached value if that fits, or else runs the closure *inside itself*, with the lease if it gets it.

use crate::cell::{Caller, Decision, Demand, Handle, Held, Kind, Search};
use crate::error::{BoxError, RefreshError, SharedError};
use crate::sync::Arc;
use crate::time::Clock;

use super::cx::Cx;
use super::node::{Computed, Node};
use super::source::{Source, id_of, stamp_of, state_of};
use super::stamp::{Gave, Pinned, Stamp, are_current};

#[cfg(feature = "async")]
use {super::Derived, super::source::cannot, std::pin::Pin};

/// A closure that makes a value in the thread that asks.
#[allow(missing_debug_implementations)] // named by a type that no program needs to name
pub struct InThread<T>(pub(super) Box<Make<T>>);

pub(super) type Make<T> = dyn Fn(&Cx) -> Result<T, BoxError> + Send + Sync;

/// A closure that makes a value in a task.
#[cfg(feature = "async")]
#[allow(missing_debug_implementations)] // named by a sealed trait
pub struct InTask<T>(pub(super) Box<dyn Fn(Cx) -> Making<T> + Send + Sync>);

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
        if let Some(pin) = Self::cached(handle, cx)? {
            return Ok(pin);
        }
        let (mut held, before) = Self::begin(handle, cx)?;
        let evaluation = handle.evaluate(cx.inside(id_of(&**handle)), held.is_some());
        let result = match &mut held {
            Some(held) => held.run_async(|| evaluation).await,
            None => evaluation.await,
        };
        Self::end(handle, held, before, result)
    }
}

/// The error of an evaluation that has passed on what [`Cx::try_get`] returned.
fn of_source(error: RefreshError) -> RefreshError {
    match error.downcast_ref::<RefreshError>() {
        Some(error) => error.clone(),
        None => error,
    }
}

impl<T: Send + Sync + 'static, C: Clock + 'static, B: Send + Sync + 'static> Node<T, C, B> {
    /// The cached value, if what it was made from fits into an evaluation.
    fn cached(handle: &Handle<'static, Self>, cx: &Cx) -> Result<Option<Pinned>, RefreshError> {
        if cx.is_inside(id_of(&**handle)) {
            return Err(RefreshError::Reentrant);
        }
        while let Some((value, record)) = handle.machine().held() {
            let Some(stamps) = handle.stamps_of(record.generation) else {
                // A later one is published by now.
                continue;
            };
            if handle.is_due(&record, &stamps) || !cx.accepts(&stamps) {
                break;
            }
            return Ok(Some(Self::pin(handle, value, Some(record.generation), 0, stamps)));
        }
        Ok(None)
    }

    /// It is made in an evaluation: with the lease if this gets it. Without the lease it is for this evaluation only: another thread
    /// makes it, perhaps from other values, or the cached one was made from newer ones. Returns the generation before that, too.
    fn begin<'a>(handle: &Handle<'a, Self>, cx: &Cx) -> Result<(Option<Held<'a, Self>>, u64), RefreshError> {
        let machine = handle.machine();
        let (before, _) = state_of::<_, false>(&**handle);
        if let Some(error) = machine.paused_by() {
            return Err(handle.refuse(error, cx));
        }
        match machine.lookup(&Demand::ANY, None) {
            Decision::Elected(ticket) => Ok((Some(Held::new(handle.clone(), ticket)), before)),
            Decision::Failed(error) => Err(handle.refuse(error, cx)),
            Decision::Fresh(_) | Decision::Stale(_) | Decision::Pending(_) => Ok((None, before)),
        }
    }

    /// `generation`: [`None`] if it is not published; then `before` is that before it was made.
    fn pin(
        handle: &Handle<'static, Self>,
        value: Arc<T>,
        generation: Option<u64>,
        before: u64,
        made_from: Arc<[Stamp]>,
    ) -> Pinned {
        let stamp = match generation {
            Some(generation) => stamp_of::<_, false>(handle, generation, Gave::Published),
            // What is made from an unpublished value is out of date when another one is published.
            None => stamp_of::<_, false>(handle, before, Gave::Unpublished),
        };
        Pinned { stamp, value: Ok(value), made_from }
    }

    /// In a retry pause. What asks fails for want of what the failed build had asked for, and is to try again when that changes.
    fn refuse(&self, error: SharedError, cx: &Cx) -> RefreshError {
        cx.note(&self.failed());
        of_source(RefreshError::Build(error))
    }

    fn end(
        handle: &Handle<'static, Self>,
        held: Option<Held<'_, Self>>,
        before: u64,
        result: Result<Computed<T>, BoxError>,
    ) -> Result<Pinned, RefreshError> {
        match (result, held) {
            (Ok(computed), Some(held)) if are_current(&computed.stamps) => {
                let (_, generation) = Self::publish_computed(held, &computed);
                Ok(Self::pin(handle, computed.value, generation, before, computed.stamps))
            }
            (Ok(Computed { value, stamps }), held) => {
                // Only what asks for it has still to do with what it was made from.
                held.into_iter().for_each(Held::abandon);
                Ok(Self::pin(handle, value, None, before, stamps))
            }
            (Err(error), held) => {
                let error = SharedError::new(error);
                let error = match held {
                    Some(held) => held.fail(error),
                    None => error,
                };
                Err(of_source(RefreshError::Build(error)))
            }
        }
    }
}

impl<T, C> Source<false> for Node<T, C, InThread<T>>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
{
    fn take(handle: &Handle<'static, Self>, cx: &Cx) -> Result<Pinned, RefreshError> {
        if let Some(pin) = Self::cached(handle, cx)? {
            return Ok(pin);
        }
        let (mut held, before) = Self::begin(handle, cx)?;
        let (inside, has_lease) = (cx.inside(id_of(&**handle)), held.is_some());
        let evaluate = || handle.evaluate(inside, has_lease);
        let result = match &mut held {
            Some(held) => held.run(evaluate),
            None => evaluate(),
        };
        Self::end(handle, held, before, result)
    }
}

#[cfg(feature = "async")]
impl Cx {
    /// As [`get`](Cx::get), of a derived value whose closure returns a future.
    ///
    /// # Panics
    ///
    /// As [`get`](Cx::get).
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::{Derived, DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new_async(|cx| async move { Ok::<_, RefreshError>(*cx.get(&NUMBER) * 2) });
    /// let next = Derived::new_async({
    ///     let double = double.clone();
    ///     move |cx| {
    ///         let double = double.clone();
    ///         async move { Ok::<_, RefreshError>(*cx.get_async(&double).await + 1) }
    ///     }
    /// });
    /// assert_eq!(*next.get_async().await, 3);
    /// # });
    /// ```
    pub async fn get_async<T, C>(&self, source: &Derived<T, C, InTask<T>>) -> Arc<T>
    where
        T: Send + Sync + 'static,
        C: Clock + Send + Sync + 'static,
    {
        self.try_get_async(source).await.unwrap_or_else(|error| cannot(&error))
    }

    /// As [`try_get`](Cx::try_get), of a derived value whose closure returns a future.
    ///
    /// # Errors
    ///
    /// As [`try_get`](Cx::try_get).
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::{Derived, DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let double = Derived::new_async(|cx| async move { Ok::<_, RefreshError>(*cx.try_get(&NUMBER)? * 2) });
    /// let next = Derived::new_async({
    ///     let double = double.clone();
    ///     move |cx| {
    ///         let double = double.clone();
    ///         async move { Ok::<_, RefreshError>(*cx.try_get_async(&double).await? + 1) }
    ///     }
    /// });
    /// assert!(next.try_get_async().await.is_err());
    /// NUMBER.set(1);
    /// assert_eq!(*next.try_get_async().await.unwrap(), 3);
    /// # });
    /// ```
    pub async fn try_get_async<T, C>(&self, source: &Derived<T, C, InTask<T>>) -> Result<Arc<T>, RefreshError>
    where
        T: Send + Sync + 'static,
        C: Clock + Send + Sync + 'static,
    {
        let handle: Handle<'static, Node<T, C, InTask<T>>> = source.into();
        let (before, _) = state_of::<_, false>(&*handle);
        let taken = match self.pinned(id_of(&*handle)) {
            Some(pin) => Ok(pin),
            // Boxed, as it may come to this again.
            None => Box::pin(Node::take(&handle, self)).await,
        };
        self.give(&handle, before, taken)
    }
}
