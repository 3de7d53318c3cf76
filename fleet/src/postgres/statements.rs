//! The statements, and their parameters.

use tokio_postgres::types::{ToSql, Type};

use crate::store::{Invalidation, Token, Version};

pub(super) type Parameter = (Box<dyn ToSql + Send + Sync>, Type);

pub(super) fn text(text: &str) -> Parameter {
    (Box::new(text.to_owned()), Type::TEXT)
}

pub(super) fn optional_text(text: Option<&str>) -> Parameter {
    (Box::new(text.map(ToOwned::to_owned)), Type::TEXT)
}

pub(super) fn int(number: impl Into<Option<i64>>) -> Parameter {
    (Box::new(number.into()), Type::INT8)
}

pub(super) fn bytes(bytes: &[u8]) -> Parameter {
    (Box::new(bytes.to_vec()), Type::BYTEA)
}

/// What the statements call the table; in no other place of them.
pub(super) const DEFAULT_TABLE: &str = "dogpile_fleet";

/// The time in microseconds: `$2`, or the server's.
pub(super) const GIVEN_NOW: &str =
    "coalesce($2::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)";
/// The same, where the time is `$1`.
pub(super) const NOW_OR_1: &str =
    "coalesce($1::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)";
/// The server's.
pub(super) const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// The columns of an entry; `$3` and `$4` are the version that is known, whose payload need not be sent.
macro_rules! columns {
    () => {
        concat!(
            "incarnation, epoch, fence, elected, version, began, soft_until, hard_until, cleared, lease_until, retry_at, ",
            "failures, tag, payload IS NOT NULL AS has_value, ",
            "CASE WHEN incarnation = $3 AND version = $4 THEN NULL ELSE payload END AS payload, ",
            "coalesce($2::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS now"
        )
    };
}

pub(super) const POLL: &str =
    concat!("SELECT pg_is_in_recovery() AS standby, ", columns!(), " FROM dogpile_fleet WHERE name = $1");

/// `$5`: the lease; `$6`, `$7`: the version that is refused; `$8`: a random number; `$9`, `$10`, `$11`: the incarnation, epoch
/// and version that were seen; `$12`: how long ahead of expiry. The row is changed only if the lease is granted; if not, it is returned as the statement found
/// it.
pub(super) fn acquire_statement() -> String {
    let back = "coalesce(incarnation = $3 AND version < $4 OR incarnation = $9 AND (epoch < $10 OR version < $11), false)";
    let known = "CASE WHEN incarnation = $3 THEN $4 END";
    let seen = |what: &str| format!("CASE WHEN incarnation = $9 THEN {what} END");
    let (seen_epoch, seen_version) = (seen("$10"), seen("$11"));
    let refused = "coalesce(incarnation = $6 AND version = $7, false)";
    let now = GIVEN_NOW;
    let columns = columns!();
    format!(
        "WITH won AS (
            UPDATE dogpile_fleet SET
                incarnation = CASE WHEN {back} THEN $8 ELSE incarnation END,
                epoch = CASE WHEN {back} THEN greatest(epoch, {seen_epoch}) + 1 ELSE epoch END,
                version = CASE WHEN {back} THEN greatest(version, {known}, {seen_version}) ELSE version END,
                payload = CASE WHEN {back} THEN NULL ELSE payload END,
                tag = CASE WHEN {back} THEN NULL ELSE tag END,
                cleared = cleared AND NOT {back},
                retry_at = CASE WHEN {back} THEN 0 ELSE retry_at END,
                failures = CASE WHEN {back} THEN 0 ELSE failures END,
                fence = fence + 1,
                elected = {now},
                lease_until = {now} + $5
            WHERE name = $1 AND ({back} OR (
                (payload IS NULL OR soft_until <= {now} + $12 OR {refused}) AND lease_until <= {now} AND retry_at <= {now}
            ))
            RETURNING {columns}
        )
        SELECT true AS granted, * FROM won
        UNION ALL
        SELECT false, {columns} FROM dogpile_fleet WHERE name = $1 AND NOT EXISTS (SELECT FROM won)"
    )
}

/// Runs `update`, which returns a row if it was accepted, and gives a hint if it was.
pub(super) fn told(update: &str, returned: &str) -> String {
    format!(
        "WITH changed AS ({update}), told AS (SELECT pg_notify('dogpile_' || right($1, 13), $1) FROM changed)
        SELECT {returned}, (SELECT count(*) FROM told) FROM changed"
    )
}

pub(super) fn invalidation(how: Invalidation, now: &str) -> String {
    let (cleared, change) = match how {
        Invalidation::Soft => ("false", format!("soft_until = least(f.soft_until, {now})")),
        Invalidation::Hard => ("true", "payload = NULL, tag = NULL, cleared = true".to_owned()),
    };
    told(
        &format!(
            "INSERT INTO dogpile_fleet AS f (name, incarnation, epoch, cleared)
            VALUES ($1, (random() * 4611686018427387903)::bigint + 1, 1, {cleared})
            ON CONFLICT (name) DO UPDATE SET epoch = f.epoch + 1, lease_until = 0, {change}
            RETURNING incarnation, epoch"
        ),
        "incarnation, epoch",
    )
}

pub(super) fn known_parameters(version: Option<Version>) -> (Option<i64>, Option<i64>) {
    version.map(|version| (signed(version.incarnation), signed(version.number))).unzip()
}

pub(super) fn token_parameters(token: &Token) -> (i64, i64, i64) {
    (signed(token.fence.incarnation), signed(token.fence.number), signed(token.epoch))
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
