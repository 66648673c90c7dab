//! `stats`: packets and bytes by reason, and by class or interface; `--watch`: what comes per second.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Context, Error,
    output::{CLEAR, Cell, Column},
};
use crate::{
    api::types::{Count, Stats},
    cli::{self, StatsBy},
};

pub(super) async fn run(context: &mut Context<'_>, args: cli::Stats) -> Result<(), Error> {
    if let Some(seconds) = args.watch {
        return watch(context, args.by, Duration::from_secs(seconds)).await;
    }
    let stats = context.client.stats().await?;
    let rows = rows(&stats_by(args.by, &stats), None);
    context.answer(&stats, &columns(args.by, ["PACKETS", "BYTES"]), &rows)
}

/// Until interrupted. On a terminal each table takes the place of the one before.
async fn watch(context: &mut Context<'_>, by: StatsBy, pause: Duration) -> Result<(), Error> {
    if !context.layout.is_for_people() {
        return Err(Error::Usage("stats --watch prints tables only; ask for stats -o json again and again".to_owned()));
    }
    let mut before = (Instant::now(), stats_by(by, &context.client.stats().await?));
    loop {
        tokio::time::sleep(pause).await;
        let after = (Instant::now(), stats_by(by, &context.client.stats().await?));
        let rates = rows(&after.1, Some((&before.1, after.0 - before.0)));
        let columns = columns(by, ["PACKETS/S", "BYTES/S"]);
        let text = context.layout.table(&columns, &context.layout.sorted(&columns, &rates)?)?;
        let clear = if context.is_terminal { CLEAR } else { "" };
        write!(context.stdout, "{clear}{text}")?;
        context.stdout.flush()?;
        before = after;
    }
}

pub(super) type Row = (Key, Count);
/// Class or interface where asked for, reason, verdict.
pub(super) type Key = (Option<String>, String, String);
pub(super) type Counts = BTreeMap<Key, Count>;

pub(super) fn stats_by(by: StatsBy, stats: &Stats) -> Counts {
    let classes = stats.reasons.iter().map(|row| (&row.class, &row.reason, &row.verdict, row.packets, row.bytes));
    let interfaces =
        stats.interfaces.iter().map(|row| (&row.interface, &row.reason, &row.verdict, row.packets, row.bytes));
    let rows: Vec<_> = if by == StatsBy::Interface { interfaces.collect() } else { classes.collect() };
    let mut counts = Counts::new();
    for (owner, reason, verdict, packets, bytes) in rows {
        let owner = owner.clone().filter(|_| by != StatsBy::Reason);
        let count = counts.entry((owner, reason.clone(), verdict.clone())).or_default();
        count.packets += packets;
        count.bytes += bytes;
    }
    counts
}

/// The counts, or what they grew by per second since `before`; rows that did not grow are left out.
pub(super) fn rows(counts: &Counts, before: Option<(&Counts, Duration)>) -> Vec<Row> {
    let Some((before, time)) = before else {
        return counts.iter().map(|(key, count)| (key.clone(), *count)).collect();
    };
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = |after: u64, before: u64| after.saturating_sub(before).saturating_mul(1_000).div_ceil(milliseconds);
    let grown = counts.iter().map(|(key, count)| {
        let before = before.get(key).copied().unwrap_or_default();
        let count = Count { packets: rate(count.packets, before.packets), bytes: rate(count.bytes, before.bytes) };
        (key.clone(), count)
    });
    grown.filter(|(_, count)| count.packets > 0).collect()
}

fn columns(by: StatsBy, [packets, bytes]: [&'static str; 2]) -> Vec<Column<Row>> {
    let owner = |title| Column::new(title, |row: &Row| Cell::maybe(row.0.0.as_ref()));
    let owner = match by {
        StatsBy::Class => Some(owner("CLASS")),
        StatsBy::Interface => Some(owner("INTERFACE")),
        StatsBy::Reason => None,
    };
    let counts = [
        Column::new("REASON", |row: &Row| Cell::text(&row.0.1)),
        Column::new("VERDICT", |row: &Row| Cell::text(&row.0.2)),
        Column::new(packets, |row: &Row| Cell::number(row.1.packets)),
        Column::new(bytes, |row: &Row| Cell::number(row.1.bytes)),
    ];
    owner.into_iter().chain(counts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_came_by_the_second() {
        let key = |owner: &str| (Some(owner.to_owned()), "class_block".to_owned(), "drop".to_owned());
        let count = |packets| Count { packets, bytes: packets * 60 };
        let before = Counts::from([(key("a"), count(10)), (key("b"), count(5))]);
        let after = Counts::from([(key("a"), count(30)), (key("b"), count(5)), (key("c"), count(4))]);
        let rates = rows(&after, Some((&before, Duration::from_secs(2))));
        assert_eq!(rates, [(key("a"), count(10)), (key("c"), count(2))]);
    }
}
