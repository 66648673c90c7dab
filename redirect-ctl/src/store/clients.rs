//! What clients of the embedded relay meet, in the store: certificates with their keys, and users.
//!
//! A key stands in a column of its own that only the relay's part reads, and of a password only its verifier is kept.

use std::collections::BTreeMap;

use redirect_relay::{Users, gateway::Secret};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{Error, Fault, Kind, Outcome, RowResult, Step, read_rows, revisions::versioned, word};
use crate::{
    clients::{CertificateSpec, Clients, User, Username},
    desired::{Invalid, Name, Tables, Time},
    limits,
    revision::Versioned,
};

pub(super) fn clients_schema(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch(
        "CREATE TABLE certificates (
             name TEXT PRIMARY KEY,
             chain TEXT NOT NULL,
             key TEXT NOT NULL
         ) STRICT, WITHOUT ROWID;
         ALTER TABLE classes ADD COLUMN certificate TEXT REFERENCES certificates (name);

         CREATE TABLE users (
             name TEXT PRIMARY KEY,
             verifier TEXT NOT NULL
         ) STRICT, WITHOUT ROWID;",
    )?;
    Ok(())
}

pub(super) fn read_clients(connection: &Connection, tables: &Tables) -> Result<Clients, Error> {
    let ready = read_certificates(connection)?.into_iter().map(|spec| match spec.ready() {
        Ok(certificate) => Ok((spec.name, certificate)),
        Err(_) => Err(Error::Corrupt { what: "a certificate", value: spec.name.to_string() }),
    });
    let certificates = ready.collect::<Result<BTreeMap<_, _>, _>>()?;
    let users = read_rows(connection, "SELECT name, verifier FROM users", user_row)?;
    let users = Users::new(users.into_iter().map(|user| (user.name.to_string(), user.verifier)));
    Clients::new(certificates, users, tables.classes.values())
        .ok_or_else(|| Error::Corrupt { what: "a class", value: "without its certificate".to_owned() })
}

pub(super) fn read_certificates(connection: &Connection) -> Result<Vec<CertificateSpec>, Error> {
    read_rows(connection, "SELECT name, chain, key FROM certificates", certificate_row)
}

pub(super) fn select_user(connection: &Connection, name: &Username) -> Result<Option<Versioned<User>>, Error> {
    let sql = "SELECT name, verifier, revision FROM users WHERE name = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_row([name.as_str()], |row| versioned(row, user_row)).optional()?.transpose()
}

/// A page of the users in the order of their names.
pub(super) fn select_users(
    connection: &Connection,
    after: Option<&Username>,
    rows_max: u32,
) -> Result<Vec<Versioned<User>>, Error> {
    let sql = "SELECT name, verifier, revision FROM users WHERE name > ?1 ORDER BY name LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let after = after.map_or("", Username::as_str);
    let rows = statement.query_map(params![after, rows_max], |row| versioned(row, user_row))?;
    rows.map(|row| row?).collect()
}

fn certificate_row(row: &Row<'_>) -> RowResult<CertificateSpec> {
    let (name, chain, key): (String, _, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let name = word("a certificate's name", &name);
    Ok(name.map(|name| CertificateSpec { name, chain, key: Secret::new(key) }))
}

fn user_row(row: &Row<'_>) -> RowResult<User> {
    let (name, verifier): (String, String) = (row.get(0)?, row.get(1)?);
    Ok((|| {
        // The verifier is nobody's to read in a log.
        let corrupt = |_| Error::Corrupt { what: "a user's verifier", value: name.clone() };
        Ok(User { name: word("a user's name", &name)?, verifier: verifier.parse().map_err(corrupt)? })
    })())
}

impl Step<'_> {
    pub(super) fn put_certificate(&self, spec: &CertificateSpec, now: Time) -> Result<Outcome, Error> {
        let invalid =
            |pointer: &str, text: String| Error::Invalid { faults: vec![Fault { pointer: pointer.to_owned(), text }] };
        let known = self.certificate(&spec.name)?;
        let mut spec = spec.clone();
        if spec.key.expose().is_empty() {
            let Some(known) = &known else {
                return Err(invalid("/key", format!("no key is known for certificate {}; give one", spec.name)));
            };
            spec.key = known.key.clone();
        }
        let spec = spec.checked(Some(now)).map_err(|(pointer, Invalid(text))| invalid(pointer, text))?;
        let outcome = match known {
            Some(known) if known == spec => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Replaced,
            None => {
                let sql = "SELECT count(*) FROM certificates";
                self.refuse_beyond(Kind::Certificate, sql, limits::CERTIFICATES_MAX)?;
                Outcome::Created
            }
        };
        self.write_certificate(&spec)?;
        Ok(outcome)
    }

    pub(super) fn write_certificate(&self, spec: &CertificateSpec) -> Result<(), Error> {
        self.connection.execute(
            "INSERT INTO certificates (name, chain, key, revision) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO UPDATE SET chain = excluded.chain, key = excluded.key, revision = excluded.revision",
            params![spec.name.as_str(), spec.chain, spec.key.expose(), self.next_revision],
        )?;
        Ok(())
    }

    pub(super) fn delete_certificate(&self, name: &Name) -> Result<Outcome, Error> {
        let sql = "SELECT name, count(*) OVER () FROM classes WHERE certificate = ?1 ORDER BY name LIMIT 3";
        self.refuse_if_used(Kind::Certificate, name, &[("class", sql)])?;
        match self.connection.execute("DELETE FROM certificates WHERE name = ?1", [name.as_str()])? {
            0 => Err(Error::NotFound { kind: Kind::Certificate, name: name.to_string() }),
            _ => Ok(Outcome::Deleted),
        }
    }

    /// The certificate that a class's rules name must be there.
    pub(super) fn refuse_without_certificate(&self, name: Option<&Name>) -> Result<(), Error> {
        match name {
            Some(name) if self.certificate(name)?.is_none() => Err(Error::NoSuchReference {
                pointer: "/smtp/certificate".to_owned(),
                kind: Kind::Certificate,
                name: name.to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn certificate(&self, name: &Name) -> Result<Option<CertificateSpec>, Error> {
        let sql = "SELECT name, chain, key FROM certificates WHERE name = ?1";
        self.connection.prepare_cached(sql)?.query_row([name.as_str()], certificate_row).optional()?.transpose()
    }

    pub(super) fn put_user(&self, user: &User) -> Result<Outcome, Error> {
        let outcome = match select_user(self.connection, &user.name)? {
            Some(known) if *known == *user => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Replaced,
            None => {
                self.refuse_beyond(Kind::User, "SELECT count(*) FROM users", limits::USERS_MAX)?;
                Outcome::Created
            }
        };
        self.connection.execute(
            "INSERT INTO users (name, verifier, revision) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET verifier = excluded.verifier, revision = excluded.revision",
            params![user.name.as_str(), user.verifier.to_string(), self.next_revision],
        )?;
        Ok(outcome)
    }

    pub(super) fn delete_user(&self, name: &Username) -> Result<Outcome, Error> {
        match self.connection.execute("DELETE FROM users WHERE name = ?1", [name.as_str()])? {
            0 => Err(Error::NotFound { kind: Kind::User, name: name.to_string() }),
            _ => Ok(Outcome::Deleted),
        }
    }
}
