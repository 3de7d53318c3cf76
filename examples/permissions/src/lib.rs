//! Permissions, from a directory that is slow, through a cache in which a revocation is seen at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use dogpile::{Clock, Policy, SystemClock};
use dogpile_map::DogpileMap;

/// What a user may do, and by which roles.
#[derive(Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Role by role.
    pub roles: BTreeSet<String>,
    /// All that they allow.
    pub actions: BTreeSet<String>,
}

/// The source of truth.
#[derive(Default)]
pub struct Directory {
    roles_of: RwLock<HashMap<String, BTreeSet<String>>>,
    actions_of: RwLock<HashMap<String, BTreeSet<String>>>,
    lookups: AtomicU64,
}

impl Directory {
    /// Gives a user a role.
    pub fn assign(&self, user: &str, role: &str) {
        let mut roles = self.roles_of.write().unwrap_or_else(PoisonError::into_inner);
        roles.entry(user.to_owned()).or_default().insert(role.to_owned());
    }

    /// Allows a role an action.
    pub fn allow(&self, role: &str, action: &str) {
        let mut actions = self.actions_of.write().unwrap_or_else(PoisonError::into_inner);
        actions.entry(role.to_owned()).or_default().insert(action.to_owned());
    }

    fn forbid(&self, role: &str, action: &str) {
        let mut actions = self.actions_of.write().unwrap_or_else(PoisonError::into_inner);
        actions.entry(role.to_owned()).or_default().remove(action);
    }

    fn look_up(&self, user: &str) -> Permissions {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let roles = self
            .roles_of
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(user)
            .cloned()
            .unwrap_or_default();
        let actions_of = self.actions_of.read().unwrap_or_else(PoisonError::into_inner);
        let actions = roles.iter().filter_map(|role| actions_of.get(role)).flatten().cloned().collect();
        Permissions { roles, actions }
    }

    /// How often it was asked.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }
}

/// The directory behind a cache.
pub struct Guard<C = SystemClock> {
    directory: Directory,
    cache: DogpileMap<String, Permissions, C>,
}

impl<C: Clock + Clone> Guard<C> {
    /// Permissions are looked up again after `ttl`.
    pub fn new(directory: Directory, ttl: Duration, clock: C) -> Self {
        let cache = DogpileMap::<String, Permissions>::builder(Policy::ttl(ttl))
            .max_entries(100_000)
            .tags(|_user, permissions| {
                permissions.roles.iter().map(|role| format!("role {role}")).collect::<Vec<_>>()
            })
            .name("permissions")
            .clock(clock)
            .build();
        Self { directory, cache }
    }

    /// Whether a user may do something. What was revoked before this call is not allowed: a stale entry is not
    /// served, also while another call looks it up.
    pub fn may(&self, user: &str, action: &str) -> bool {
        let fresh = self.cache.request(user).max_stale(Duration::ZERO);
        fresh.get(|user| self.directory.look_up(user)).actions.contains(action)
    }

    /// Whether to show a button: a stale entry will do, and at most one call waits for the directory.
    pub fn may_perhaps(&self, user: &str, action: &str) -> bool {
        self.cache.get_or_refresh(user, |user| self.directory.look_up(user)).actions.contains(action)
    }

    /// Takes an action from a role, in constant time however many users have it.
    pub fn revoke(&self, role: &str, action: &str) {
        self.directory.forbid(role, action);
        self.cache.invalidate_tag(&format!("role {role}"));
    }

    /// The directory, to look at its figures.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }
}
