//! A refresher: when it builds, and what of.

use std::time::Duration;

use dogpile::Freshness;

use super::{
    BuildId, Demand, END_OF_TIME, FOR_EVER, Fault, Model, NANOSECOND, NOTHING_TO_KEEP, Number,
    PANICKED_AS_PLANNED,
};

/// An attached refresher.
#[derive(Clone, Debug)]
pub(super) struct Refresher {
    pub(super) ahead: Duration,
    pub(super) min_interval: Duration,
    pub(super) rests: bool,
    /// The value has a time to live of its own.
    pub(super) is_of_own_ttl: bool,
    /// It rests: the value was not read since its publication.
    pub(super) is_unread: bool,
    /// A build is asked for that begins after the build or `set` of this number.
    pub(super) asked_after: Option<u64>,
    /// Its running build.
    pub(super) build: Option<BuildId>,
    pub(super) trouble: Trouble,
    pub(super) latest_failure_at: Duration,
}

/// What a refresher shows of its failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Since its last success.
    pub(crate) failures: u32,
    pub(crate) last_error: Option<Fault>,
}

/// What a refresher does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Building(BuildId),
    /// Until then; `None`: until something happens.
    Sleeping(Option<Duration>),
}

impl Model {
    /// Whether it is accepted.
    pub(crate) fn attach(
        &mut self,
        ahead: Duration,
        min_interval: Duration,
        rests: bool,
        is_task: bool,
    ) -> bool {
        let is_for_ever = self.settings.ttl == Duration::MAX;
        if !is_for_ever && ahead >= self.settings.ttl {
            self.meet("refresher: refused");
            return false;
        }
        self.meet(if is_task {
            "refresher: attached, as a task"
        } else {
            "refresher: attached, on a thread"
        });
        if self.freshness() == Freshness::Stale {
            self.meet("refresher: attached to a stale value");
        }
        self.refresher = Some(Refresher {
            ahead,
            min_interval,
            rests,
            is_of_own_ttl: false,
            is_unread: false,
            asked_after: None,
            build: None,
            trouble: Trouble::default(),
            latest_failure_at: Duration::ZERO,
        });
        true
    }

    /// A caller asks for the value, and finds one in the cell, which it may be served or not.
    pub(crate) fn read(&mut self) {
        if self.value.is_some()
            && let Some(refresher) = &mut self.refresher
            && std::mem::take(&mut refresher.is_unread)
        {
            self.meet("refresher: woken by a read");
        }
    }

    pub(crate) fn may_rest(&self) -> bool {
        self.refresher.as_ref().is_some_and(|refresher| refresher.rests)
    }

    pub(crate) fn is_unread(&self) -> bool {
        self.refresher.as_ref().is_some_and(|refresher| refresher.is_unread)
    }

    /// `refresh_now`
    pub(crate) fn ask_to_build(&mut self) {
        // The value is asked for, as by a reader.
        self.read();
        let begun = self.begun;
        if let Some(refresher) = &mut self.refresher {
            refresher.asked_after = Some(begun);
            self.meet("refresher: asked to build");
        }
    }

    /// Whether no build keeps the refresher from beginning one.
    pub(crate) fn can_refresh_at_once(&self) -> bool {
        self.refreshers_build().is_none() && !self.lease_is_held()
    }

    /// `wait_ready(Duration::ZERO)`
    pub(crate) fn is_ready(&mut self) -> bool {
        let call = self.begin(Demand::ANYTHING, true);
        // It only looks, which is no read.
        let is_ready = self.acceptable(call).is_some();
        self.end_call(call);
        is_ready
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.settings.ttl
    }

    /// When the refresher, which sleeps, will build if nothing else happens.
    pub(crate) fn next_attempt(&self) -> Option<Duration> {
        match self.activity() {
            Some(Activity::Sleeping(until)) => until,
            _ => None,
        }
    }

    pub(crate) fn has_a_refresher(&self) -> bool {
        self.refresher.is_some()
    }

    pub(crate) fn trouble(&self) -> Trouble {
        self.refresher.as_ref().map(|refresher| refresher.trouble).unwrap_or_default()
    }

    /// The running build of the refresher.
    pub(crate) fn refreshers_build(&self) -> Option<BuildId> {
        self.refresher.as_ref()?.build
    }

    /// Lets the refresher begin what it has to. What it does then; `None`: there is none.
    pub(crate) fn let_it_act(&mut self) -> Option<Activity> {
        // A value that had expired when it was published is nothing that it could be served.
        let begun = self.value.filter(|value| self.was_servable(value)).map_or(0, |value| value.begun);
        if let Some(refresher) = &mut self.refresher
            && refresher.build.is_none()
            && refresher.asked_after.is_some_and(|asked| begun > asked)
        {
            refresher.asked_after = None;
            self.meet("refresher: asked to build, and served by another caller");
        }
        if self.refresher.is_some() && self.activity().is_none() {
            let demand = Demand { no_cache: true, ..Demand::ANYTHING };
            let pause_runs = self.pause_runs();
            let (mut met, _) = self.due();
            let begun = self.elect(demand, self.begun);
            let refresher = self.refresher.as_mut().expect("just looked at");
            refresher.build = Some(begun);
            if refresher.asked_after.take().is_some() {
                met = if pause_runs {
                    "refresher: begins, as it was asked, in a retry pause"
                } else {
                    "refresher: begins, as it was asked"
                };
            }
            self.meet(met);
            if self.trouble().failures > 0 {
                self.meet("refresher: begins, after failures");
            }
            if self.builds[..begun].iter().any(|build| build.done.is_none() && !build.is_displaced) {
                self.meet("refresher: begins, instead of an overdue build");
            }
        }
        for (_, met) in self.obstacles() {
            self.meet(met);
        }
        self.activity()
    }

    /// `None`: there is none, or it has to begin a build now.
    fn activity(&self) -> Option<Activity> {
        if let Some(build) = self.refresher.as_ref()?.build {
            return Some(Activity::Building(build));
        }
        let (until, _) = self.obstacles().into_iter().max()?;
        Some(Activity::Sleeping((until <= END_OF_TIME).then_some(until)))
    }

    /// What keeps a refresher that does not build from building, and until when.
    fn obstacles(&self) -> Vec<(Duration, &'static str)> {
        let mut obstacles = Vec::new();
        let Some(refresher) = self.refresher.as_ref().filter(|refresher| refresher.build.is_none()) else {
            return obstacles;
        };
        if let Some(build) = self.lease {
            let overdue = self.overdue(build).unwrap_or(Duration::MAX);
            obstacles.push((overdue, "refresher: sleeps, another caller builds"));
        }
        if refresher.asked_after.is_none() {
            if let Some(end) = self.pause_end() {
                obstacles.push((end, "refresher: sleeps, a retry pause runs"));
            }
            if refresher.trouble.failures > 0 {
                let end = refresher.latest_failure_at.saturating_add(refresher.min_interval);
                obstacles.push((end, "refresher: sleeps, its interval after a failure runs"));
            }
            if let (_, Some(due)) = self.due() {
                let met = if due > END_OF_TIME { "refresher: sleeps, for ever" } else { "refresher: sleeps" };
                obstacles.push((due, met));
            }
            if let Some(value) = &self.value
                && value.declared_stale.is_none()
                && refresher.is_of_own_ttl
            {
                let end = value.at.saturating_add(refresher.min_interval);
                obstacles.push((end, "refresher: sleeps, its interval after a publication runs"));
            }
            if self.value.is_some() && refresher.is_unread {
                obstacles.push((Duration::MAX, "refresher: rests"));
            }
        }
        obstacles.retain(|(until, _)| self.now < *until);
        obstacles
    }

    /// What calls for the next build, and from when on; `None`: it does already.
    pub(super) fn due(&self) -> (&'static str, Option<Duration>) {
        let ahead = self.refresher.as_ref().map_or(Duration::ZERO, |refresher| refresher.ahead);
        let Some(value) = &self.value else { return ("refresher: begins, without a value", None) };
        if value.declared_stale.is_some() {
            return ("refresher: begins, over what was declared stale", None);
        }
        let Some(last) = value.last_within(Duration::ZERO) else {
            return ("refresher: begins, over what was stale when it was published", None);
        };
        // It is fresh up to and including that moment.
        let end = last.saturating_add(NANOSECOND);
        if end > END_OF_TIME {
            return ("refresher: begins, never", Some(Duration::MAX));
        }
        let life = value.ttl.saturating_add(NANOSECOND);
        let half_of_life = Duration::from_nanos(u64::try_from(life.as_nanos() / 2).unwrap_or(u64::MAX));
        let half = (value.at + half_of_life).saturating_sub(value.age_then);
        match end.checked_sub(ahead) {
            Some(due) if due > half => ("refresher: begins, ahead of the end", Some(due)),
            _ => ("refresher: begins, at half of a life", Some(half)),
        }
    }

    /// The refresher's build returns something new, perhaps with a ttl of its own, or old already.
    pub(crate) fn conclude_new(&mut self, value: Number, ttl: Option<Duration>, age: Duration) {
        let build = self.end_refreshers_build();
        self.meet(match ttl {
            None => "refresher: found something new",
            Some(_) => "refresher: found something with a ttl",
        });
        if self.lease != Some(build) {
            self.meet("refresher: found something, and had lost its lease");
        }
        if !age.is_zero() {
            self.meet("refresher: found something with its age");
        }
        self.publish_aged(build, value, ttl, age);
        self.note(None);
    }

    pub(crate) fn conclude_not_modified(&mut self) {
        let build = self.end_refreshers_build();
        if self.renew(build, None).is_some() {
            self.meet("refresher: found nothing to modify");
            self.note(None);
        } else {
            self.meet("refresher: found nothing to modify, and nothing there");
            self.fail(build, NOTHING_TO_KEEP);
            self.note(Some(NOTHING_TO_KEEP));
        }
    }

    pub(crate) fn conclude_error(&mut self, fault: Fault) {
        let build = self.end_refreshers_build();
        self.meet("refresher: found an error");
        self.fail(build, fault);
        self.note(Some(fault));
    }

    pub(crate) fn conclude_panic(&mut self) {
        let build = self.end_refreshers_build();
        self.meet("refresher: found a panic");
        self.panic(build, PANICKED_AS_PLANNED);
        self.note(Some(PANICKED_AS_PLANNED));
    }

    fn end_refreshers_build(&mut self) -> BuildId {
        self.refresher.as_mut().and_then(|refresher| refresher.build.take()).expect("it builds")
    }

    fn note(&mut self, error: Option<Fault>) {
        let now = self.now;
        let refresher = self.refresher.as_mut().expect("it builds");
        let former = refresher.trouble;
        refresher.trouble =
            Trouble { failures: if error.is_some() { former.failures + 1 } else { 0 }, last_error: error };
        refresher.latest_failure_at = now;
        if error.is_none() && former.failures > 0 {
            self.meet("refresher: recovered");
        }
    }

    /// The refresher is dropped, and its build with it, if one runs.
    pub(crate) fn detach(&mut self) {
        let Some(refresher) = self.refresher.take() else { return };
        match refresher.build {
            None => self.meet("refresher: dropped, asleep"),
            Some(build) => {
                self.meet("refresher: dropped, and its build");
                self.abandon(build);
            }
        }
    }

    /// The refresher was dropped from inside its build, which has just ended.
    pub(crate) fn detach_from_inside(&mut self) {
        self.refresher = None;
        self.meet("refresher: dropped from inside its build");
    }

    /// Whether a read that is served has no need of a clock: the value has no end, or a refresher is attached and it may be
    /// served for ever.
    pub(crate) fn needs_no_clock(&self) -> bool {
        let Some(value) = &self.value else { return false };
        let has_no_end = value.declared_stale.is_none()
            && value.last_within(Duration::ZERO).is_some_and(|last| last >= END_OF_TIME);
        let is_left_to_a_refresher = self.refresher.is_some() && self.stale_window() >= FOR_EVER;
        (has_no_end || is_left_to_a_refresher) && !self.is_unread()
    }
}
