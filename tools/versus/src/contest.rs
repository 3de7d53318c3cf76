//! What every contestant is given, what it has to do, and the loops around it.
//!
//! A contestant is a cell with one value that is made by a [`Source`] and is up to date for a ttl. It is compiled into
//! the same loops as every other, and measured through [`Entry`] and [`Runner`], so that a virtual call comes once per
//! batch and never per read.

use hitbox::serde::{Deserialize, Serialize};
use hitbox_derive::CacheableResponse;
use std::cell::Cell;
use std::hint::black_box;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is kept in the cells: a number, and perhaps ballast.
pub(crate) trait Value:
    Send + Sync + Sized + 'static + crate::contestants::Once + crate::contestants::Kept
{
    /// As it is printed.
    const SIZE: &'static str;

    fn make(number: u64) -> Self;

    fn number(&self) -> u64;
}

/// 8 bytes.
#[derive(Clone, Serialize, Deserialize, CacheableResponse)]
#[serde(crate = "hitbox::serde")]
pub(crate) struct Small {
    number: u64,
}

impl Value for Small {
    const SIZE: &'static str = "8 B";

    fn make(number: u64) -> Self {
        Self { number }
    }

    #[inline]
    fn number(&self) -> u64 {
        self.number
    }
}

/// 1 MiB, all of it written when it is made.
#[derive(Clone, Serialize, Deserialize, CacheableResponse)]
#[serde(crate = "hitbox::serde")]
pub(crate) struct Large {
    numbers: Box<[u64]>,
}

impl Value for Large {
    const SIZE: &'static str = "1 MiB";

    fn make(number: u64) -> Self {
        Self { numbers: vec![number; (1 << 20) / size_of::<u64>()].into_boxed_slice() }
    }

    #[inline]
    fn number(&self) -> u64 {
        self.numbers[0]
    }
}

/// Makes the values, numbers them from 1, and counts.
pub(crate) struct Source<V> {
    began: AtomicU64,
    ended: AtomicU64,
    /// The expensive part of a build. Gets the number of the build.
    work: Box<dyn Fn(u64) + Send + Sync>,
    makes: PhantomData<fn() -> V>,
}

thread_local! {
    /// The latest build of this thread.
    static BUILT: Cell<u64> = const { Cell::new(0) };
}

impl<V: Value> Source<V> {
    pub(crate) fn new(work: impl Fn(u64) + Send + Sync + 'static) -> Self {
        let work = Box::new(work);
        Self { began: AtomicU64::new(0), ended: AtomicU64::new(0), work, makes: PhantomData }
    }

    pub(crate) fn idle() -> Self {
        Self::new(|_| ())
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn build(&self) -> V {
        // Relaxed, here and below: the numbers are all there is to see.
        let number = self.began.fetch_add(1, Ordering::Relaxed) + 1;
        BUILT.set(number);
        (self.work)(number);
        let value = V::make(number);
        self.ended.fetch_add(1, Ordering::Relaxed);
        value
    }

    /// Builds that have begun.
    pub(crate) fn began(&self) -> u64 {
        self.began.load(Ordering::Relaxed)
    }

    /// Builds that have ended.
    #[inline]
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether this thread's latest build was the one with this number.
    pub(crate) fn was_built_here(number: u64) -> bool {
        BUILT.get() == number
    }
}

/// How a contestant keeps a second caller from building what is being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builds {
    /// One caller builds.
    One,
    /// Nothing does: whoever finds the value out of date builds.
    Everybody,
}

/// What a caller gets while another builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    /// The old value.
    Stale,
    /// Nothing before the build has ended; or it builds too.
    Waits,
}

/// The properties of a contestant that the tables and the tests are about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traits {
    /// Whether a value is ever out of date.
    pub(crate) expires: bool,
    pub(crate) builds: Builds,
    pub(crate) meanwhile: Meanwhile,
}

/// A way to share a value that is expensive to make.
pub(crate) trait Contestant<V: Value>: Sync + Sized {
    /// What a thread reads through: a reference to the cell, or a handle of its own.
    type Handle<'a>
    where
        Self: 'a;

    const TRAITS: Traits;

    /// An empty cell, whose values are up to date for `ttl`.
    fn new(ttl: Duration, source: Source<V>) -> Self;

    fn source(&self) -> &Source<V>;

    fn handle(&self) -> Self::Handle<'_>;

    /// The number of a value that may be used, which is built if need be.
    ///
    /// `#[inline(always)]`, since it stands for the caller's own code: else the compiler would spare some contestants a
    /// call and others not. Whether the library's part is inlined is between the library and the compiler.
    fn read(handle: &mut Self::Handle<'_>) -> u64;
}

/// Reads per round of the loop, one for each variant of it.
pub(crate) const WIDTHS: [u32; 4] = [1, 2, 3, 4];

/// A number of reads that all [`WIDTHS`] divide.
pub(crate) const STRIDE: u32 = 12;

/// `operations` reads, `WIDTH` in each round of the loop.
///
/// The address of the handle goes through a `black_box` before each read, and what was read goes through one after it:
/// no read can be left out, merged with another, or have its loads done before the loop. What these cost is the same
/// for everybody, and shown as *the loop alone*.
#[inline(never)]
fn batch<V: Value, K: Contestant<V>, const WIDTH: u32>(handle: &mut K::Handle<'_>, operations: u32) {
    for _ in 0..operations / WIDTH {
        once::<V, K>(handle);
        if WIDTH >= 2 {
            once::<V, K>(handle);
        }
        if WIDTH >= 3 {
            once::<V, K>(handle);
        }
        if WIDTH >= 4 {
            once::<V, K>(handle);
        }
    }
}

#[inline(always)]
fn once<V: Value, K: Contestant<V>>(handle: &mut K::Handle<'_>) -> u64 {
    black_box(K::read(black_box(handle)))
}

/// A contestant, whichever it is.
pub(crate) trait Entry<V>: Sync {
    fn source(&self) -> &Source<V>;

    /// For the calling thread.
    fn runner(&self) -> Box<dyn Runner + '_>;
}

/// A thread's access to a contestant.
pub(crate) trait Runner {
    /// One read.
    fn read(&mut self) -> u64;

    /// A multiple of [`STRIDE`] reads in the loop with this one of the [`WIDTHS`].
    fn run(&mut self, variant: usize, operations: u32);
}

struct Held<'a, V: Value, K: Contestant<V> + 'a> {
    handle: K::Handle<'a>,
    values: PhantomData<V>,
}

impl<V: Value, K: Contestant<V>> Runner for Held<'_, V, K> {
    #[inline(never)]
    fn read(&mut self) -> u64 {
        once::<V, K>(&mut self.handle)
    }

    fn run(&mut self, variant: usize, operations: u32) {
        match WIDTHS[variant] {
            1 => batch::<V, K, 1>(&mut self.handle, operations),
            2 => batch::<V, K, 2>(&mut self.handle, operations),
            3 => batch::<V, K, 3>(&mut self.handle, operations),
            _ => batch::<V, K, 4>(&mut self.handle, operations),
        }
    }
}

struct Entered<V, K> {
    contestant: K,
    values: PhantomData<fn() -> V>,
}

impl<V: Value, K: Contestant<V>> Entry<V> for Entered<V, K> {
    fn source(&self) -> &Source<V> {
        self.contestant.source()
    }

    fn runner(&self) -> Box<dyn Runner + '_> {
        Box::new(Held::<V, K> { handle: self.contestant.handle(), values: PhantomData })
    }
}

/// How to make one.
pub(crate) struct Card<V> {
    pub(crate) name: &'static str,
    /// Whether it is one of this crate's own.
    pub(crate) own: bool,
    pub(crate) traits: Traits,
    make: fn(Duration, Source<V>) -> Box<dyn Entry<V>>,
}

impl<V: Value> Card<V> {
    pub(crate) fn of<K: Contestant<V> + 'static>(name: &'static str, own: bool) -> Self {
        Self { name, own, traits: K::TRAITS, make: |ttl, source| enter(K::new(ttl, source)) }
    }

    pub(crate) fn enter(&self, ttl: Duration, source: Source<V>) -> Box<dyn Entry<V>> {
        (self.make)(ttl, source)
    }
}

/// A contestant that is made already.
pub(crate) fn enter<V: Value, K: Contestant<V> + 'static>(contestant: K) -> Box<dyn Entry<V>> {
    Box::new(Entered { contestant, values: PhantomData })
}
