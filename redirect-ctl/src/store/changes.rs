//! The log of what changed: a row for each change, bounded, kept over restarts. Who follows it reads on from where it was.

use rusqlite::{Connection, Row, Transaction, params};

use super::{Error, Kind, RowResult, Store, word};
use crate::{dataplane::words, limits};

words! {
    /// What became of a resource.
    ChangeAction {
        /// It was created or changed.
        Put = "put",
        Delete = "delete",
    }
}

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its place in the log: one more than that of the row before.
    pub place: u64,
    /// The revision that it made.
    pub revision: u64,
    pub kind: Kind,
    /// `None`: several at once, whose list is to be read again.
    pub key: Option<String>,
    pub action: ChangeAction,
}

/// What the log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// All of what changed after this revision is there.
    pub from_revision: u64,
    /// The revision of the configuration.
    pub revision: u64,
    /// The places of the first row and of the next one to come.
    pub places: (u64, u64),
}

pub(super) fn changes_schema(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch(
        "CREATE TABLE changes (
             place INTEGER PRIMARY KEY AUTOINCREMENT,
             revision INTEGER NOT NULL,
             kind TEXT NOT NULL,
             key TEXT,
             action TEXT NOT NULL
         ) STRICT;",
    )?;
    Ok(())
}

/// Notes a change, and forgets the oldest ones.
pub(super) fn log(
    connection: &Connection,
    revision: u64,
    kind: Kind,
    key: Option<&str>,
    action: ChangeAction,
) -> Result<(), Error> {
    connection
        .prepare_cached("INSERT INTO changes (revision, kind, key, action) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![revision, kind.name(), key, action.name()])?;
    connection
        .prepare_cached("DELETE FROM changes WHERE place <= ?1")?
        .execute([connection.last_insert_rowid() - limits::CHANGES_LOGGED_MAX])?;
    Ok(())
}

impl Store {
    pub async fn changes_reach(&self) -> Result<Reach, Error> {
        self.read(|connection| {
            // One statement, so that all of it is of one moment. The oldest revision may have lost rows.
            let sql = "SELECT revision, coalesce((SELECT revision FROM changes ORDER BY place LIMIT 1), revision), \
                       coalesce((SELECT min(place) FROM changes), 1), \
                       coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) + 1 FROM state";
            let reach = connection.prepare_cached(sql)?.query_row([], |row| {
                Ok(Reach { revision: row.get(0)?, from_revision: row.get(1)?, places: (row.get(2)?, row.get(3)?) })
            })?;
            Ok(reach)
        })
        .await
    }

    /// The place of the first row after this revision, or of the next one to come.
    pub async fn changes_after(&self, revision: u64) -> Result<u64, Error> {
        self.read(move |connection| {
            let sql = "SELECT coalesce((SELECT min(place) FROM changes WHERE revision > ?1), \
                       (SELECT seq FROM sqlite_sequence WHERE name = 'changes') + 1, 1)";
            Ok(connection.prepare_cached(sql)?.query_row([revision], |row| row.get(0))?)
        })
        .await
    }

    /// Rows from this place on.
    pub async fn changes(&self, place: u64, rows_max: u32) -> Result<Vec<Logged>, Error> {
        self.read(move |connection| {
            let sql =
                "SELECT place, revision, kind, key, action FROM changes WHERE place >= ?1 ORDER BY place LIMIT ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![place, rows_max], logged_row)?;
            rows.map(|row| row?).collect()
        })
        .await
    }
}

fn logged_row(row: &Row<'_>) -> RowResult<Logged> {
    let (place, revision, key) = (row.get(0)?, row.get(1)?, row.get(3)?);
    let (kind, action): (String, String) = (row.get(2)?, row.get(4)?);
    Ok((|| {
        let corrupt = || Error::Corrupt { what: "a kind of resource", value: kind.clone() };
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).ok_or_else(corrupt)?;
        Ok(Logged { place, revision, kind, key, action: word("what became of it", &action)? })
    })())
}
