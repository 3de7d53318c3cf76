//! What looks after a node where no caller should have to: an actor of the [scheduler](crate::scheduler).
//!
//! It is attached when there is first something for it to do: watching another node's build, prolonging a lease, looking for
//! invalidations. It takes a step when the next of these is due, a hint comes, or a job is posted, and ends with the cell.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use dogpile::{Clock, Tick};

use super::job::{Beat, Job, Watch};
use super::mailbox::Mailbox;
use super::node::{Looked, Node};
use crate::access::Operation;
use crate::breaker::Kind;
use crate::codec::Codec;
use crate::draw;
use crate::policy::FleetPolicy;
use crate::scheduler::{Actor, Next, contained};
use crate::store::{RefreshStore, Subscription};

/// How often one of the cells that are given hints by the same connection looks, unless its policy says less often.
const SELDOM: Duration = Duration::from_secs(12);

/// How often each of them looks at least.
const SELDOMEST: Duration = Duration::from_secs(120);

/// Until a step that has panicked is followed by another.
const AGAIN: Duration = Duration::from_secs(1);

pub(crate) struct Worker<T: 'static, C: Clock + 'static> {
    pub(crate) node: Arc<Node<T, C>>,
    /// Not while a step runs, which has it.
    agenda: Mutex<Option<Agenda<T, C>>>,
}

/// What the worker looks after.
struct Agenda<T: 'static, C: Clock + 'static> {
    watch: Option<Watch<T, C>>,
    beats: Vec<Beat>,
    next_look: Option<Tick>,
    /// The last look was too early: somebody had the local lease, who may hand it over to be watched, or give it back.
    looked_early: bool,
    /// Something may have happened before the store began to give hints.
    unhinted: bool,
    /// The store is known to refuse hints.
    refused: bool,
    subscription: Option<Subscription>,
}

impl<T, C> Worker<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(crate) fn new(
        name: String,
        store: Arc<dyn RefreshStore>,
        codec: Box<dyn Codec<T>>,
        policy: FleetPolicy,
        clock: C,
    ) -> Arc<Self> {
        Arc::new_cyclic(|worker: &Weak<Self>| {
            let mailbox = Arc::new(Mailbox::new(Weak::clone(worker) as Weak<dyn Actor>, clock.clone()));
            let node = Arc::new(Node::new(name, store, codec, policy, clock, mailbox));
            Self { node, agenda: Mutex::new(None) }
        })
    }

    fn exchange(&self, agenda: Option<Agenda<T, C>>) -> Option<Agenda<T, C>> {
        std::mem::replace(&mut *self.agenda.lock().unwrap_or_else(PoisonError::into_inner), agenda)
    }

    fn work(&self, agenda: &mut Option<Agenda<T, C>>) -> Next {
        let (node, mailbox) = (&self.node, &self.node.mailbox);
        let agenda = agenda.get_or_insert_with(|| {
            let hint = || node.access.store.subscribe(&node.name, mailbox.hint());
            let subscription = if mailbox.is_closed() { None } else { hint() };
            let unhinted = subscription.is_some();
            Agenda {
                watch: None,
                beats: Vec::new(),
                next_look: None,
                looked_early: false,
                unhinted,
                refused: false,
                subscription,
            }
        });
        // What is posted meanwhile leads to another step: other nodes may be due before that.
        for job in (0..mailbox.len()).map_while(|_| mailbox.next()) {
            agenda.take(node, job);
        }
        let hinted = mailbox.take_hint();
        if hinted {
            node.access.counters.hints.count();
        }
        if mailbox.is_closed() {
            node.give_back();
            return Next::Over;
        }
        let unhinted = std::mem::take(&mut agenda.unhinted);
        Next::At(agenda.tick(node, hinted || unhinted))
    }
}

impl<T, C> Actor for Worker<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn step(&self) -> Next {
        let mut agenda = self.exchange(None);
        // A panic of the user's code ends what it was called for. What was not begun goes on.
        let next = contained(|| self.work(&mut agenda)).unwrap_or_else(|| {
            if self.node.mailbox.is_closed() {
                return Next::Over;
            }
            Next::At(contained(|| self.node.clock.now().saturating_add(AGAIN)))
        });
        if next == Next::Over {
            // A subscription is the store's, and may panic.
            contained(|| drop(agenda));
        } else {
            drop(self.exchange(agenda));
        }
        next
    }

    fn store(&self) -> usize {
        self.node.access.store_number()
    }

    fn has_forked(&self) {
        self.node.mailbox.forget();
        if let Some(Agenda { subscription, .. }) = self.exchange(None) {
            // Not dropped: it belongs to threads of the parent, which may have locked it.
            std::mem::forget(subscription);
        }
        self.node.has_forked();
    }
}

impl<T, C> Agenda<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn take(&mut self, node: &Arc<Node<T, C>>, job: Job<T, C>) {
        match job {
            Job::Watch(mut watch) => {
                if std::mem::take(&mut self.looked_early) {
                    watch.next = Tick::from_nanos(0);
                }
                self.watch = Some(watch);
            }
            Job::Beat(beat) => self.beats.push(beat),
            Job::Kick => {
                // While another node builds there is nothing to be done for those who wait but to wait.
                if let Some(watch) = &mut self.watch
                    && !node.can_serve()
                    && (watch.is_idle || node.open_until(Kind::Change, node.clock.now()).is_some())
                {
                    watch.next = Tick::from_nanos(0);
                }
            }
            Job::Look => {
                if let Some(watch) = &mut self.watch {
                    watch.next = Tick::from_nanos(0);
                } else if std::mem::take(&mut self.looked_early) {
                    self.next_look = Some(Tick::from_nanos(0));
                }
            }
            task => node.carry_out(task),
        }
    }

    /// Does what is due, and returns when the next thing is.
    fn tick(&mut self, node: &Arc<Node<T, C>>, hinted: bool) -> Option<Tick> {
        let now = node.clock.now();
        let has_ended = |bound: Option<Tick>| bound.is_some_and(|end| end <= now);
        if has_ended(node.known().hard_end) && node.can_serve() {
            // Before the store is asked, which may take its time. The next caller is elected.
            drop(node.local.clear());
            self.watch = None;
        }
        let owed = node.tidy_owed(now);
        // Relaxed: see `Running::stop_beat`.
        self.beats.retain(|beat| !beat.done.load(Ordering::Relaxed) && now < beat.stop);
        for beat in self.beats.iter_mut().filter(|beat| beat.next <= now) {
            let lease = node.policy.lease;
            let renew = |store: &dyn RefreshStore, name: &str| store.renew(name, &beat.token, lease);
            if node.ask(Operation::Renew, renew) == Some(false) {
                beat.lost.store(true, Ordering::Relaxed);
                beat.done.store(true, Ordering::Relaxed);
            }
            beat.next = now.saturating_add(lease / 3);
        }
        if let Some(watch) = self.watch.take() {
            let is_due = hinted || watch.next <= now || has_ended(node.known().hard_end);
            self.watch = if is_due { node.watch_on(watch) } else { Some(watch) };
        }
        self.mind_refusals(node);
        self.look(node, hinted, now);
        let stash = node.tidy_stash(now);
        let orphans = node.tidy_orphans(now);
        let bound = node.known().hard_end;
        if self.watch.is_none() && has_ended(bound) && node.can_serve() {
            drop(node.local.clear());
        }
        [self.next(), stash, orphans, owed, bound.filter(|end| now < *end)].into_iter().flatten().min()
    }

    /// When a beat, the watch or a look is due.
    fn next(&self) -> Option<Tick> {
        // Relaxed: see `Running::stop_beat`.
        let beats = self.beats.iter().filter(|beat| !beat.done.load(Ordering::Relaxed)).map(|beat| beat.next);
        // While there is a watch, no other look is made.
        let look = self.watch.as_ref().map_or(self.next_look, |watch| Some(watch.next));
        beats.chain(look).min()
    }

    /// Says that hints do not get through, if that is known and was not said, and has the next look come as without them.
    fn mind_refusals(&mut self, node: &Arc<Node<T, C>>) {
        let reason = self.subscription.as_ref().and_then(Subscription::refusal);
        let was_refused = std::mem::replace(&mut self.refused, reason.is_some());
        if let Some(reason) = reason.filter(|_| !was_refused) {
            self.next_look = None;
            node.access.hints_are_refused(&node.name, &reason);
        }
    }

    /// Looks for what other nodes have done to a value that is fresh here.
    fn look(&mut self, node: &Arc<Node<T, C>>, hinted: bool, now: Tick) {
        if self.watch.is_some() {
            return;
        }
        let due = self.next_look.is_some_and(|next| next <= now);
        let looked = (hinted || due).then(|| node.look());
        if let Some(looked) = looked {
            self.looked_early = looked == Looked::TooEarly;
        }
        if due || self.next_look.is_none() {
            self.next_look = node.policy.poll.map(|interval| {
                let members =
                    self.subscription.as_ref().filter(|hints| hints.is_healthy()).map(Subscription::members);
                now.saturating_add(draw::around(until_next_look(interval, members), 10))
            });
        }
        if looked == Some(Looked::TooLate) {
            self.next_look = Some(now);
        }
    }
}

/// How long a node that polls every `interval` does not look. What is certain to be hinted at need not be asked for so often:
/// `members` cells are given hints by the same connection, and take turns.
fn until_next_look(interval: Duration, members: Option<u32>) -> Duration {
    members.map_or(interval, |members| {
        let seldom = interval.saturating_mul(12).min(SELDOM);
        seldom.saturating_mul(members).min(SELDOMEST).max(interval)
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use dogpile::{DogpileCell, Freshness, Lookup, SystemClock};

    use super::*;
    use crate::cell::node::Caller;
    use crate::store::{Acquire, Invalidation, Request};
    use crate::{MemoryStore, Plain};

    #[test]
    fn nodes_that_are_given_hints_take_turns_to_look() {
        // The policy's interval, the cells that are given hints, and the seconds between two looks of one of them.
        let table = [
            (1, None, 1),
            (1, Some(1), 12),
            (1, Some(5), 60),
            (1, Some(10), 120),
            (1, Some(100), 120),
            (20, Some(1), 20),
            (20, Some(2), 24),
            (3600, Some(7), 3600),
        ];
        for (interval, members, seconds) in table {
            let pause = until_next_look(Duration::from_secs(interval), members);
            assert_eq!(pause.as_secs(), seconds, "{interval} {members:?}");
        }
    }

    /// A look that was due while another node built let the worker take one step after the other.
    #[test]
    fn while_there_is_a_watch_the_next_look_is_the_watch() {
        let cell = Arc::new(DogpileCell::<String>::new(Duration::from_secs(60)));
        let Lookup::Elected(lease) = cell.lookup_owned() else { unreachable!() };
        let at = |second: u64| Tick::from_nanos(second * 1_000_000_000);
        let watch = Watch::new(lease, at(10), Duration::from_secs(5), false);
        let due = watch.next;
        let mut agenda = Agenda {
            watch: Some(watch),
            beats: Vec::new(),
            next_look: Some(at(1)),
            looked_early: false,
            unhinted: false,
            refused: false,
            subscription: None,
        };
        assert!(at(10) < due);
        assert_eq!(agenda.next(), Some(due));
        agenda.watch = None;
        assert_eq!(agenda.next(), Some(at(1)));
    }

    /// As if no thread could be started: a job that could not be posted was dropped, and the lease lasted for its whole time.
    #[test]
    fn without_a_thread_the_end_of_a_build_was_not_told() {
        let store = Arc::new(MemoryStore::new());
        let policy = FleetPolicy::ttl(Duration::from_secs(3600));
        let (shared, codec) = (Arc::clone(&store), Box::new(Plain));
        let worker = Worker::<String, _>::new("name".to_owned(), shared, codec, policy, SystemClock);
        // What would look after it is gone.
        let alone = Arc::clone(&worker.node);
        drop(worker);
        let won = store.acquire("name", &Request::new(Duration::from_secs(3600))).unwrap();
        let Acquire::Won { token, .. } = won else { panic!("{won:?}") };
        // Behind a job that is for a worker only, and is dropped.
        assert!(!alone.submit(Job::Kick));
        assert!(alone.hand_over_end(token, Duration::ZERO).wait(Duration::ZERO).is_ok());
        assert_eq!((store.entry("name").lease_until, alone.mailbox.len()), (0, 0));
    }

    /// As if no thread could be started, callers looked again and again, and neither built nor were served.
    #[test]
    fn without_a_thread_callers_hung() {
        type Found = Arc<Node<String, SystemClock>>;
        let store = Arc::new(MemoryStore::new());
        let policy = FleetPolicy::ttl(Duration::from_secs(3600));
        let worker = || {
            let (store, codec) = (Arc::clone(&store), Box::new(Plain));
            Worker::<String, _>::new("name".to_owned(), Arc::new(store), codec, policy, SystemClock)
        };
        let get = |node: &Found, build: &mut dyn FnMut() -> String| {
            node.search::<Infallible, _>(Caller::Insists, |_| Ok(build().into())).unwrap()
        };
        let other = worker();
        // What would look after it is gone.
        let alone = Arc::clone(&worker().node);
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let other = &other.node;
            let mut values = vec![get(&alone, &mut || String::from("first"))];
            alone.invalidate(Invalidation::Soft).unwrap();
            values.push(get(&alone, &mut || String::from("second")));
            get(other, &mut || panic!("it is in the store"));
            alone.invalidate(Invalidation::Soft).unwrap();
            other.invalidate(Invalidation::Soft).unwrap();
            get(other, &mut || {
                values.push(get(&alone, &mut || panic!("another node builds")));
                String::from("third")
            });
            values.push(get(&alone, &mut || panic!("it is in the store")));
            assert_eq!(alone.local.freshness(), Freshness::Fresh);
            other.mailbox.close();
            done.send(values).unwrap();
        });
        let values = is_done.recv_timeout(Duration::from_secs(60)).expect("nobody hangs");
        let values: Vec<&str> = values.iter().map(|value| value.as_str()).collect();
        assert_eq!(values, ["first", "second", "second", "third"]);
    }
}
