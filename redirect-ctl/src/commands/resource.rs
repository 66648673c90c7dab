//! What is the same for every resource of the API: the verbs `list`, `get`, `set` and `delete`, and their output.

use std::fmt::Display;

use serde::{Serialize, de::DeserializeOwned};

use super::{Context, Error, output::Columns};
use crate::{
    api::{client::Changed, types::Page},
    limits,
};

/// A resource of the API.
pub(super) trait Resource: Columns + Serialize + DeserializeOwned {
    /// What people call it, and several of it.
    const KIND: [&'static str; 2];
    /// The path of the collection.
    const COLLECTION: &'static str;
    /// The pattern of the path of one.
    const PATH: &'static str;
}

impl Context<'_> {
    /// Lists a collection that comes in one piece.
    pub(super) async fn list<R: Resource>(&mut self) -> Result<(), Error> {
        let page: Page<R> = self.client.get(R::COLLECTION).await?;
        self.items(&page.items)
    }

    /// Lists a collection that comes in pages: up to `wanted` rows of it, or all.
    pub(super) async fn pages<R: Resource, Q: Serialize>(
        &mut self,
        wanted: Option<u32>,
        query: impl Fn(u32, Option<String>) -> Q,
    ) -> Result<(), Error> {
        let wanted = wanted.map_or(u64::MAX, u64::from);
        let (mut items, mut count, mut cursor) = (Vec::new(), 0, None);
        let more = loop {
            let rows = u32::try_from(wanted - count).unwrap_or(u32::MAX).min(limits::PAGE_ROWS_MAX);
            let page: Page<R> = self.client.page(R::COLLECTION, &query(rows, cursor)).await?;
            count += page.items.len() as u64;
            items.extend(page.items);
            if self.layout.is_row_by_row() {
                self.items(&items)?;
                items.clear();
            }
            cursor = page.next_cursor;
            if cursor.is_none() || count >= wanted {
                break cursor.is_some();
            }
        };
        if !self.layout.is_row_by_row() {
            self.items(&items)?;
        }
        if more {
            let [_, several] = R::KIND;
            self.note(&format!("showing the first {count} {several}; use --all, or raise --limit"))?;
        }
        Ok(())
    }

    pub(super) async fn get<R: Resource>(&mut self, key: &impl Display) -> Result<(), Error> {
        let item: R = self.client.resource(R::PATH, key).await?;
        self.item(&item)
    }

    /// Creates it, or replaces all of it.
    pub(super) async fn put<R: Resource>(&mut self, key: &impl Display, body: &impl Serialize) -> Result<(), Error> {
        let (answer, changed): (R, _) = self.client.put(R::PATH, key, body).await?;
        let ([one, _], key) = (R::KIND, answer.name());
        self.said(&answer, &key, &format!("{one} {key} set (revision {})", changed.revision))?;
        self.late(changed)
    }

    pub(super) async fn delete<R: Resource>(&mut self, key: &impl Display) -> Result<(), Error> {
        let changed = self.client.delete(R::PATH, key).await?;
        let [one, _] = R::KIND;
        self.said(&changed, &key.to_string(), &format!("{one} {key} deleted (revision {})", changed.revision))?;
        self.late(changed)
    }

    /// Says so if the kernel does not hold a change yet.
    pub(super) fn late(&mut self, changed: Changed) -> Result<(), Error> {
        if changed.applied {
            return Ok(());
        }
        let revision = changed.revision;
        self.note(&format!(
            "revision {revision} is stored, but the kernel does not hold it yet; see redirect-ctl status"
        ))
    }
}
