//! The operations, each of them a statement.

use std::sync::Arc;
use std::time::Duration;

use super::PostgresStore;
use super::listen::Channels;
use super::statements::{
    GIVEN_NOW, NOW, POLL, acquire_statement, bytes, int, invalidation, known_parameters, optional_text,
    signed, text, token_parameters, told, unsigned,
};
use crate::breaker::Breaker;
use crate::draw;
use crate::hub::Settings;
use crate::rules::micros;
use crate::store::{
    Acquire, Epoch, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError,
    Subscription, Token, Version,
};

impl RefreshStore for PostgresStore {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        let time = self.time();
        let (incarnation, version) = known_parameters(known);
        let parameters = vec![text(name), int(time), int(incarnation), int(version)];
        let rows = self.query(self.limit(), POLL, parameters)?;
        let (entry, now) = rows.first().map(Self::entry).unwrap_or_default();
        Ok(entry.poll(now, known))
    }

    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        let time = self.time();
        let (incarnation, version) = known_parameters(request.known);
        let (refused, refused_version) = known_parameters(request.refuse);
        let lease = signed(micros(request.lease));
        let draw = signed(draw::incarnation());
        let seen = request.seen.map(|seen| (seen.epoch.incarnation, seen.epoch.number, seen.version));
        let seen = [
            seen.map(|seen| signed(seen.0)),
            seen.map(|seen| signed(seen.1)),
            seen.map(|seen| signed(seen.2)),
        ];
        let limit = self.limit();
        // Once more if there was no row, or if it had changed under the statement.
        for _ in 0..5 {
            let rows = self.query(
                limit,
                acquire_statement(),
                vec![
                    text(name),
                    int(time),
                    int(incarnation),
                    int(version),
                    int(lease),
                    int(refused),
                    int(refused_version),
                    int(draw),
                    int(seen[0]),
                    int(seen[1]),
                    int(seen[2]),
                    int(signed(micros(request.ahead))),
                ],
            )?;
            let Some(row) = rows.first() else {
                self.query(
                    limit,
                    "INSERT INTO dogpile_fleet (name, incarnation) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
                    vec![text(name), int(draw)],
                )?;
                continue;
            };
            let (mut entry, now) = Self::entry(row);
            if row.get("granted") {
                let fence = crate::store::Fence { incarnation: entry.incarnation, number: entry.fence };
                return Ok(Acquire::Won {
                    token: Token { fence, epoch: entry.epoch },
                    tag: entry.value.as_ref().and_then(|value| value.tag.clone()),
                    failures: entry.failures,
                    current: entry.poll(now, request.known).current,
                });
            }
            match entry.acquire(now, request, 1) {
                Acquire::Won { .. } => {}
                answer => return Ok(answer),
            }
        }
        Err(StoreError::new("the row of the entry changed too often"))
    }

    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        let Publication { payload, tag, soft, hard } = *publication;
        crate::store::check_size(payload, self.largest)?;
        let now = GIVEN_NOW;
        let statement = told(
            &format!(
                "UPDATE dogpile_fleet SET version = version + 1, payload = $8, tag = $9, began = elected,
                    soft_until = {now} + $6, hard_until = {now} + $7, cleared = false, lease_until = 0, retry_at = 0,
                    failures = 0
                WHERE name = $1 AND incarnation = $3 AND fence = $4 AND epoch = $5 RETURNING version"
            ),
            "version",
        );
        let mut parameters = self.publication_parameters(name, token, soft, hard);
        parameters.extend([bytes(payload), optional_text(tag)]);
        let limit = self.limit();
        let rows = self.query(limit, statement, parameters)?;
        self.published(limit, name, token, &rows)
    }

    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        let now = GIVEN_NOW;
        let statement = told(
            &format!(
                "UPDATE dogpile_fleet SET began = elected, soft_until = {now} + $6, hard_until = {now} + $7,
                    lease_until = 0, retry_at = 0, failures = 0
                WHERE name = $1 AND incarnation = $3 AND fence = $4 AND epoch = $5 AND payload IS NOT NULL
                RETURNING version"
            ),
            "version",
        );
        let parameters = self.publication_parameters(name, token, soft, hard);
        let limit = self.limit();
        let rows = self.query(limit, statement, parameters)?;
        self.published(limit, name, token, &rows)
    }

    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        let statement = told(
            &format!(
                "UPDATE dogpile_fleet SET lease_until = 0,
                    retry_at = CASE WHEN $5 > 0 THEN {GIVEN_NOW} + $5 ELSE retry_at END,
                    failures = CASE WHEN $5 > 0 THEN failures + 1 ELSE failures END
                WHERE name = $1 AND incarnation = $3 AND fence = $4 RETURNING 1 AS done"
            ),
            "done",
        );
        let time = self.time();
        let (incarnation, fence, _) = token_parameters(token);
        let pause = signed(micros(pause));
        self.heard(statement, vec![text(name), int(time), int(incarnation), int(fence), int(pause)])
    }

    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        let statement = format!(
            "UPDATE dogpile_fleet SET lease_until = {GIVEN_NOW} + $6
            WHERE name = $1 AND incarnation = $3 AND fence = $4 AND epoch = $5 AND lease_until <> 0 RETURNING 1"
        );
        let time = self.time();
        let (incarnation, fence, epoch) = token_parameters(token);
        let lease = signed(micros(lease));
        self.heard(
            statement,
            vec![text(name), int(time), int(incarnation), int(fence), int(epoch), int(lease)],
        )
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let statement = told("DELETE FROM dogpile_fleet WHERE name = $1 RETURNING 1 AS done", "done");
        self.query(self.limit(), statement, vec![text(name)]).map(drop)
    }

    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        // Inserted as a number: the statement for others has one parameter only.
        let now = self.time().map_or_else(|| NOW.to_owned(), |time| format!("{time}::bigint"));
        let rows = self.query(self.limit(), invalidation(how, &now), vec![text(name)])?;
        let row = rows
            .first()
            .ok_or_else(|| StoreError::new("the statement returned no row, which it always does"))?;
        let [incarnation, number] = ["incarnation", "epoch"].map(|column| unsigned(row.get(column)));
        Ok(Epoch { incarnation, number })
    }

    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        let settings = Settings { timeout: self.timeout, spread: self.spread };
        let (config, connect) = (self.config.clone(), Arc::clone(&self.connect));
        self.shared().hub.subscribe(move || Channels { config, connect }, settings, name, hint)
    }

    fn breaker(&self) -> Option<&Breaker> {
        Some(&self.breaker)
    }

    fn hints_refused(&self) -> Option<Arc<StoreError>> {
        self.shared().hub.refusal()
    }

    fn check(&self, name: &str) -> Result<(), StoreError> {
        // The rights are looked at before it turns out that there is nothing to be done.
        self.query(
            self.limit(),
            "WITH changed AS (UPDATE dogpile_fleet SET name = name WHERE false RETURNING 1)
            INSERT INTO dogpile_fleet (name, incarnation) SELECT $1, 1 FROM changed",
            vec![text(name)],
        )?;
        self.poll(name, None).map(drop)
    }
}
