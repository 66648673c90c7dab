//! Many facts at once: read and sorted beforehand, then merged with what the store holds, all of them or none.
//!
//! The merge goes through both in the order of the table's key, so that a million rows are appended to the table one behind the other. Where the
//! file is small beside the table, its prefixes are looked up instead.

use std::{cmp::Ordering, collections::HashMap, ops::Range};

use ipnet::IpNet;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    Error, Kind, Outcome, Step,
    facts::{self, ClassNames, Stored},
    mail,
};
use crate::{
    dataplane::ClassId,
    desired::{self, Name, Origin},
    limits,
    subscribers::{Fact, Mac, Priority, Record},
};

/// Results of imports, so that a request that is sent again does not import again.
pub(super) fn imports_schema(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch(
        "CREATE TABLE imports (
             key TEXT PRIMARY KEY,
             digest BLOB NOT NULL,
             at_s INTEGER NOT NULL,
             revision INTEGER NOT NULL,
             added INTEGER NOT NULL,
             changed INTEGER NOT NULL,
             removed INTEGER NOT NULL,
             unchanged INTEGER NOT NULL,
             expired INTEGER NOT NULL
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX imports_at ON imports (at_s);",
    )?;
    Ok(())
}

/// Facts of a file, small enough to hold a million of them: some 70 bytes each and their texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staging {
    rows: Vec<Staged>,
    texts: String,
    classes: Vec<Name>,
    class_places: HashMap<Name, u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Staged {
    prefix: IpNet,
    source: Origin,
    /// Its place in [`Staging::classes`].
    class: u16,
    priority: Option<Priority>,
    mac: Option<Mac>,
    expires_s: Option<i64>,
    /// Where it comes from.
    line: u32,
    /// Session, user and labels lie here one behind the other, each as long as `lengths` says; none is empty that is there.
    texts: u32,
    lengths: [u16; 3],
}

/// What cannot be put beside what is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Staging {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a fact. The caller bounds the file, so there is room for its texts.
    pub fn push(&mut self, line: u32, record: &Record<'_>) -> Result<(), Full> {
        let class = if let Some(place) = self.class_places.get(record.class) {
            *place
        } else {
            let place = u16::try_from(self.classes.len()).map_err(|_| Full)?;
            self.classes.push(record.class.clone());
            self.class_places.insert(record.class.clone(), place);
            place
        };
        let texts = u32::try_from(self.texts.len()).map_err(|_| Full)?;
        let mut add = |text: &str| {
            self.texts.push_str(text);
            u16::try_from(text.len()).map_err(|_| Full)
        };
        let lengths = [
            add(record.session.unwrap_or_default())?,
            add(record.user.unwrap_or_default())?,
            if record.labels.is_empty() { 0 } else { add(&mail::json(&record.labels))? },
        ];
        self.rows.push(Staged {
            prefix: record.prefix,
            source: record.source,
            class,
            priority: record.priority,
            mac: record.mac,
            expires_s: record.expires_s,
            line,
            texts,
            lengths,
        });
        Ok(())
    }

    /// Brings the facts into the order of the table; hands over the lines that say again what an earlier one has said of the same prefix and source.
    pub fn sort(&mut self, mut again: impl FnMut(u32, u32)) {
        self.rows.sort_unstable_by(|one, other| {
            (one.prefix, one.source.name(), one.line).cmp(&(other.prefix, other.source.name(), other.line))
        });
        for pair in self.rows.windows(2) {
            if (pair[0].prefix, pair[0].source) == (pair[1].prefix, pair[1].source) {
                again(pair[1].line, pair[0].line);
            }
        }
    }

    fn stored(&self, staged: &Staged, classes: &[ClassId]) -> Stored {
        let mut at = staged.texts as usize;
        let [session, user, labels] = staged.lengths.map(|length| {
            let range: Range<usize> = at..at + usize::from(length);
            at = range.end;
            (length > 0).then(|| self.texts[range].to_owned())
        });
        Stored {
            source: staged.source,
            class: classes[usize::from(staged.class)],
            effective: false,
            revision: 0,
            priority: staged.priority.map(Priority::get),
            expires_s: staged.expires_s,
            session,
            user,
            mac: staged.mac.map(|mac| mac.0),
            labels,
        }
    }
}

/// A file of facts and what is to be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Sorted, without repetitions.
    pub staging: Staging,
    /// Lines that were left out, because their time has come.
    pub expired: u64,
    /// Whether the others go: all, or those of `source`.
    pub replace: bool,
    pub source: Option<Origin>,
    /// By which the request is known when it is sent again.
    pub key: Option<ImportKey>,
    pub now_s: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportKey {
    pub key: String,
    /// Of all that the request says, SHA-256.
    pub digest: [u8; 32],
}

/// Facts by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportCounts {
    pub added: u64,
    pub changed: u64,
    pub removed: u64,
    pub unchanged: u64,
    /// Lines that were left out, because their time had come.
    pub expired: u64,
}

impl ImportCounts {
    pub fn is_empty(self) -> bool {
        self.added + self.changed + self.removed == 0
    }
}

/// What a dry run tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportDiff {
    pub counts: ImportCounts,
    /// The first [`limits::IMPORT_LISTED_MAX`], before and after.
    pub first: Vec<(Option<Fact>, Option<Fact>)>,
}

/// What an earlier import under this key came to, and at which revision.
pub(super) fn known(connection: &Connection, key: &ImportKey) -> Result<Option<(u64, ImportCounts)>, Error> {
    let sql = "SELECT digest, revision, added, changed, removed, unchanged, expired FROM imports WHERE key = ?1";
    let found = connection
        .prepare_cached(sql)?
        .query_row([&key.key], |row| {
            let counts = ImportCounts {
                added: row.get(2)?,
                changed: row.get(3)?,
                removed: row.get(4)?,
                unchanged: row.get(5)?,
                expired: row.get(6)?,
            };
            Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, counts))
        })
        .optional()?;
    match found {
        None => Ok(None),
        Some((digest, revision, counts)) if digest == key.digest => Ok(Some((revision, counts))),
        Some(_) => Err(Error::Conflict {
            text: format!("the idempotency key {:?} was used for another import; give another one", key.key),
        }),
    }
}

/// What an import would do to the store as it is.
pub(super) fn diff(connection: &Connection, import: &Import) -> Result<ImportDiff, Error> {
    let names = facts::class_names(connection)?;
    let classes = class_ids(&import.staging, &names)?;
    let mut first = Vec::new();
    let fact = |prefix, stored: &Stored| Ok::<_, Error>(stored.clone().known(prefix, &names)?.fact);
    let counts = merge(connection, import, &classes, u64::MAX, |prefix, before, after| {
        for stored in before {
            if first.len() < limits::IMPORT_LISTED_MAX {
                let then = after.iter().find(|then| then.source == stored.source);
                if then.is_none_or(|then| !then.agrees(stored)) {
                    first.push((Some(fact(prefix, stored)?), then.map(|then| fact(prefix, then)).transpose()?));
                }
            }
        }
        for stored in after.iter().filter(|then| before.iter().all(|known| known.source != then.source)) {
            if first.len() < limits::IMPORT_LISTED_MAX {
                first.push((None, Some(fact(prefix, stored)?)));
            }
        }
        Ok(())
    })?;
    Ok(ImportDiff { counts, first })
}

/// Numbers of the classes that a file names.
fn class_ids(staging: &Staging, names: &ClassNames) -> Result<Vec<ClassId>, Error> {
    let ids: HashMap<_, _> = names.iter().map(|(id, name)| (name, *id)).collect();
    let id = |name: &Name| {
        ids.get(name).copied().ok_or_else(|| Error::NoSuchReference {
            pointer: "/class".to_owned(),
            kind: Kind::Class,
            name: name.to_string(),
        })
    };
    staging.classes.iter().map(id).collect()
}

/// Hands over each prefix at which the facts differ afterwards, with the facts before and after. `rows` is about how many the store has.
fn merge(
    connection: &Connection,
    import: &Import,
    classes: &[ClassId],
    rows: u64,
    mut differs: impl FnMut(IpNet, &[Stored], Vec<Stored>) -> Result<(), Error>,
) -> Result<ImportCounts, Error> {
    /// A look-up of a prefix costs as much as so many rows in order.
    const LOOK_UP: u64 = 8;
    let staging = &import.staging;
    let mut counts = ImportCounts { expired: import.expired, ..ImportCounts::default() };
    let mut one = |prefix, before: &[Stored], group: &[Staged]| {
        let (after, differ) = outcome(import, classes, before, group, &mut counts);
        if differ { differs(prefix, before, after) } else { Ok(()) }
    };
    let mut groups = staging.rows.chunk_by(|one, other| one.prefix == other.prefix).peekable();
    if !import.replace && (staging.rows.len() as u64).saturating_mul(LOOK_UP) < rows {
        for group in groups {
            one(group[0].prefix, &facts::of_prefix(connection, &group[0].prefix)?, group)?;
        }
        return Ok(counts);
    }
    let mut pages = Pages::new(connection);
    let mut page = Vec::new().into_iter();
    let mut existing: Option<(IpNet, Vec<Stored>)> = None;
    loop {
        if existing.is_none() {
            existing = page.next();
            if existing.is_none() {
                page = pages.next()?.into_iter();
                existing = page.next();
            }
        }
        let order = match (&existing, groups.peek()) {
            (None, None) => return Ok(counts),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((prefix, _)), Some(group)) => prefix.cmp(&group[0].prefix),
        };
        match (order, &existing) {
            (Ordering::Less, Some((prefix, before))) => {
                if import.replace {
                    one(*prefix, before, &[])?;
                }
                existing = None;
            }
            (Ordering::Equal, Some((prefix, before))) => {
                one(*prefix, before, groups.next().unwrap_or_default())?;
                existing = None;
            }
            _ => {
                if let Some(group) = groups.next() {
                    one(group[0].prefix, &[], group)?;
                }
            }
        }
    }
}

/// The facts of a prefix after the import, and whether they differ from those before.
fn outcome(
    import: &Import,
    classes: &[ClassId],
    before: &[Stored],
    group: &[Staged],
    counts: &mut ImportCounts,
) -> (Vec<Stored>, bool) {
    let mut after = Vec::with_capacity(group.len());
    let mut differ = false;
    for known in before {
        match group.iter().find(|staged| staged.source == known.source) {
            Some(staged) => {
                let stored = import.staging.stored(staged, classes);
                if stored.agrees(known) {
                    counts.unchanged += 1;
                    after.push(known.clone());
                } else {
                    counts.changed += 1;
                    differ = true;
                    after.push(stored);
                }
            }
            None if import.replace && import.source.is_none_or(|source| source == known.source) => {
                counts.removed += 1;
                differ = true;
            }
            None => after.push(known.clone()),
        }
    }
    for staged in group.iter().filter(|staged| before.iter().all(|known| known.source != staged.source)) {
        counts.added += 1;
        differ = true;
        after.push(import.staging.stored(staged, classes));
    }
    (after, differ)
}

/// All facts in the order of their prefixes, some at a time, so that the rows that were handed out may be changed meanwhile.
struct Pages<'a> {
    connection: &'a Connection,
    after: Vec<u8>,
    ended: bool,
}

impl<'a> Pages<'a> {
    const ROWS: usize = 8_192;

    fn new(connection: &'a Connection) -> Self {
        Self { connection, after: Vec::new(), ended: false }
    }

    fn next(&mut self) -> Result<Vec<(IpNet, Vec<Stored>)>, Error> {
        let mut groups: Vec<(IpNet, Vec<Stored>)> = Vec::new();
        if self.ended {
            return Ok(groups);
        }
        let columns = facts::COLUMNS;
        let sql = format!("SELECT {columns} FROM facts WHERE prefix > ?1 ORDER BY prefix, source LIMIT ?2");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params![self.after, Self::ROWS])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let (prefix, stored) = Stored::read(row)?;
            count += 1;
            match groups.last_mut().filter(|group| group.0 == prefix) {
                Some(group) => group.1.push(stored),
                None => groups.push((prefix, vec![stored])),
            }
        }
        self.ended = count < Self::ROWS;
        if !self.ended {
            // The rest of its facts may be behind the page's end.
            groups.pop();
        }
        if let Some((prefix, _)) = groups.last() {
            self.after = desired::prefix_key(prefix);
        }
        Ok(groups)
    }
}

impl Step<'_> {
    pub(super) fn import_facts(&mut self, import: &Import) -> Result<Outcome, Error> {
        if let Some(key) = &import.key
            && let Some((revision, counts)) = known(self.connection, key)?
        {
            return Ok(Outcome::ImportedBefore { revision, counts });
        }
        let classes = class_ids(&import.staging, &facts::class_names(self.connection)?)?;
        let connection = self.connection;
        let rows = self.fill.rows();
        // Into a table that is small beside the file, rows go several times faster without the indexes, which are made in one go afterwards.
        let anew = import.staging.len() as u64 > rows.saturating_mul(2) && import.staging.len() > 1_000;
        if anew {
            connection.execute_batch(facts::NO_INDEXES)?;
        }
        let counts =
            merge(connection, import, &classes, rows, |prefix, before, after| self.settle(prefix, before, after))?;
        if anew {
            connection.execute_batch(facts::INDEXES)?;
        }
        if let Some(key) = &import.key {
            let revision = if counts.is_empty() { self.next_revision - 1 } else { self.next_revision };
            remember(connection, key, import.now_s, revision, counts)?;
        }
        Ok(Outcome::Imported(counts))
    }
}

fn remember(
    connection: &Connection,
    key: &ImportKey,
    now_s: i64,
    revision: u64,
    counts: ImportCounts,
) -> Result<(), Error> {
    let ImportCounts { added, changed, removed, unchanged, expired } = counts;
    connection.execute(
        "INSERT INTO imports (key, digest, at_s, revision, added, changed, removed, unchanged, expired)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![key.key, key.digest, now_s, revision, added, changed, removed, unchanged, expired],
    )?;
    connection.execute("DELETE FROM imports WHERE at_s < ?1", [now_s - limits::IMPORT_KEY_AGE_MAX_S])?;
    let sql = "DELETE FROM imports WHERE key IN (SELECT key FROM imports ORDER BY at_s DESC LIMIT -1 OFFSET ?1)";
    connection.execute(sql, [limits::IMPORT_KEYS_MAX])?;
    Ok(())
}
