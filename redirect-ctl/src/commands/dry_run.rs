//! `--dry-run`: what a change would have asked of redirectd, beside what there is.

use hyper::Method;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
};
use crate::{
    api::client::{self, Unsent},
    redact::hide_secrets,
};

/// A member of a resource before and after; `null` where there is none.
#[derive(Debug, PartialEq, Serialize)]
struct Change {
    /// A JSON pointer (RFC 6901).
    member: String,
    before: Value,
    after: Value,
}

impl Columns for Change {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("MEMBER", |change| Cell::text(&change.member)),
        Column::new("BEFORE", |change| cell(&change.before)),
        Column::new("AFTER", |change| cell(&change.after)),
    ];
}

fn cell(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Nothing,
        Value::String(text) => Cell::text(text),
        other => Cell::text(other),
    }
}

pub(super) async fn show(context: &mut Context<'_>, unsent: &Unsent) -> Result<(), Error> {
    let Unsent { method, target, body } = unsent;
    let mut body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let before = before(context, method, target).await?;
    // What is sent may hold passwords and keys, which belong on no screen.
    hide_secrets(&mut body);
    let mut changes = Vec::new();
    compare("", before.value(), &body, &mut changes);
    let answer = json!({"method": method.as_str(), "target": target, "body": body, "changes": changes});
    context.answer(&answer, Change::COLUMNS, &changes)?;
    let outcome = match before {
        Before::Unknown => "is what would be asked for",
        Before::Nothing => "would create it",
        Before::Is(_) if *method == Method::DELETE => "would delete it",
        Before::Is(_) if changes.is_empty() => "would change nothing",
        Before::Is(_) => "would change it",
    };
    context.note(&format!("dry run: {method} {target} {outcome}"))
}

/// What there is.
enum Before {
    Is(Value),
    Nothing,
    /// It is no resource that can be asked for.
    Unknown,
}

impl Before {
    fn value(&self) -> &Value {
        match self {
            Self::Is(value) => value,
            Self::Nothing | Self::Unknown => &Value::Null,
        }
    }
}

async fn before(context: &Context<'_>, method: &Method, target: &str) -> Result<Before, Error> {
    if *method == Method::POST {
        return Ok(Before::Unknown);
    }
    let resource = target.split('?').next().unwrap_or(target);
    match context.client.get(resource).await {
        Ok(value) => Ok(Before::Is(value)),
        Err(client::Error::Problem(problem)) if problem.status == 404 && *method != Method::DELETE => {
            Ok(Before::Nothing)
        }
        Err(client::Error::Problem(problem)) if problem.status == 405 => Ok(Before::Unknown),
        Err(error) => Err(error.into()),
    }
}

/// What of `after` is not so before. What `after` does not name is the server's own, such as a state; unless nothing is to be left.
fn compare(member: &str, before: &Value, after: &Value, changes: &mut Vec<Change>) {
    match (before, after) {
        (Value::Object(before), Value::Null) if member.is_empty() => {
            for (name, value) in before {
                compare(&format!("/{name}"), value, &Value::Null, changes);
            }
        }
        (before, Value::Object(after)) => {
            for (name, value) in after {
                // Left to the path.
                if member.is_empty() && value.is_null() && matches!(name.as_str(), "name" | "prefix") {
                    continue;
                }
                // RFC 6901, section 3.
                let name_escaped = name.replace('~', "~0").replace('/', "~1");
                compare(&format!("{member}/{name_escaped}"), &before[name], value, changes);
            }
        }
        (before, after) if before != after => {
            changes.push(Change { member: member.to_owned(), before: before.clone(), after: after.clone() });
        }
        _ => {}
    }
}
