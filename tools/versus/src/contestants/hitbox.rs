//! hitbox: a function behind moka, whose values are kept as bytes.

use crate::contest::{Builds, Contestant, Large, Meanwhile, Small, Source, Traits, Value};
use crate::parts::LONG;
use futures_lite::future::block_on;
use hitbox::concurrency::BroadcastConcurrencyManager;
use hitbox::offload::OffloadManager;
use hitbox::policy::{ConcurrencyLimit, PolicyConfig, StalePolicy};
use hitbox_backend::format::BincodeFormat;
use hitbox_core::CacheableResponse;
use hitbox_derive::cached;
use hitbox_fn::Cache;
use hitbox_moka::MokaBackend;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{EnterGuard, Runtime};

/// `#[cached]` with stale-while-revalidate, one build at a time, and its quicker format. What it does in the background it does
/// on tokio's threads.
pub(crate) struct Hitbox<V: Kept> {
    cache: Kit<V>,
    runtime: Runtime,
    source: Arc<Source<V>>,
}

type Kit<V> = Cache<MokaBackend<BincodeFormat>, BroadcastConcurrencyManager<V>, OffloadManager>;

/// A value that has a function under `#[cached]`, which takes no type parameter of this kind.
pub(crate) trait Kept: CacheableResponse<Cached = Self> + Clone + Send + Sync {
    fn get(cache: &Kit<Self>, source: &Arc<Source<Self>>) -> Self;
}

macro_rules! kept {
    ($Value:ty, $module:ident) => {
        mod $module {
            use super::*;

            #[cached(skip(source))]
            async fn value(source: Arc<Source<$Value>>) -> $Value {
                source.build()
            }

            impl Kept for $Value {
                #[inline]
                fn get(cache: &Kit<Self>, source: &Arc<Source<Self>>) -> Self {
                    block_on(async { value(Arc::clone(source)).cache(cache).await })
                }
            }
        }
    };
}

kept!(Small, small);
kept!(Large, large);

/// A thread's access: the background tasks need to know the runtime.
pub(crate) struct Inside<'a, V: Kept> {
    cell: &'a Hitbox<V>,
    _entered: EnterGuard<'a>,
}

impl<V: Value> Contestant<V> for Hitbox<V> {
    type Handle<'a> = Inside<'a, V>;
    const TRAITS: Traits = Traits { expires: true, builds: Builds::One, meanwhile: Meanwhile::Stale };

    fn new(ttl: Duration, source: Source<V>) -> Self {
        let policy = PolicyConfig::builder()
            .stale(ttl)
            .ttl(2 * LONG)
            .stale_policy(StalePolicy::OffloadRevalidate)
            .concurrency(ConcurrencyLimit::new(1).expect("within its bounds"))
            .build();
        let cache = Cache::builder()
            .backend(MokaBackend::builder().max_entries(1).value_format(BincodeFormat).build())
            .policy(policy)
            .concurrency_manager(BroadcastConcurrencyManager::new())
            .offload(OffloadManager::with_defaults())
            .build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
        Self { cache, runtime: runtime.expect("threads can be had"), source: Arc::new(source) }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> Inside<'_, V> {
        Inside { cell: self, _entered: self.runtime.enter() }
    }

    #[inline(always)]
    fn read(inside: &mut Inside<'_, V>) -> u64 {
        V::get(&inside.cell.cache, &inside.cell.source).number()
    }
}
