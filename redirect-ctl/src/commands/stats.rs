//! `stats`: packets and bytes by reason, and by class or interface; `--watch`: what comes per second.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::types::{Count, Stats},
    cli::{self, Output, StatsBy},
};

pub(super) async fn run(context: &mut Context<'_>, args: cli::Stats) -> Result<(), Error> {
    if let Some(seconds) = args.watch {
        return watch(context, args.by, Duration::from_secs(seconds)).await;
    }
    let stats = context.client.stats().await?;
    context.print(&stats, |stats| table(args.by, &rows(&stats_by(args.by, stats), None)))
}

/// Until interrupted. On a terminal each table takes the place of the one before.
async fn watch(context: &mut Context<'_>, by: StatsBy, pause: Duration) -> Result<(), Error> {
    const CLEAR: &str = "\x1b[H\x1b[2J";
    if context.output == Output::Json {
        return Err(Error::Usage("stats --watch prints tables only; ask for stats -o json again and again".to_owned()));
    }
    let mut before = (Instant::now(), stats_by(by, &context.client.stats().await?));
    loop {
        tokio::time::sleep(pause).await;
        let after = (Instant::now(), stats_by(by, &context.client.stats().await?));
        let rates = rows(&after.1, Some((&before.1, after.0 - before.0)));
        let text = table_of_rates(by, &rates).render(context.headers);
        let clear = if context.is_terminal { CLEAR } else { "" };
        write!(context.stdout, "{clear}{text}")?;
        context.stdout.flush()?;
        before = after;
    }
}

/// Class or interface where asked for, reason, verdict.
type Key = (Option<String>, String, String);
type Counts = BTreeMap<Key, Count>;

fn stats_by(by: StatsBy, stats: &Stats) -> Counts {
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
fn rows(counts: &Counts, before: Option<(&Counts, Duration)>) -> Vec<(Key, Count)> {
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

fn table(by: StatsBy, rows: &[(Key, Count)]) -> Table {
    render(by, rows, ["PACKETS", "BYTES"])
}

fn table_of_rates(by: StatsBy, rows: &[(Key, Count)]) -> Table {
    render(by, rows, ["PACKETS/S", "BYTES/S"])
}

fn render(by: StatsBy, rows: &[(Key, Count)], [packets, bytes]: [&'static str; 2]) -> Table {
    let cells = |(_, count): &(Key, Count)| [count.packets.to_string(), count.bytes.to_string()];
    let owner = match by {
        StatsBy::Class => "CLASS",
        StatsBy::Interface => "INTERFACE",
        StatsBy::Reason => {
            let row = |row: &(Key, Count)| {
                let [packets, bytes] = cells(row);
                [row.0.1.clone(), row.0.2.clone(), packets, bytes]
            };
            return Table::new(["REASON", "VERDICT", packets, bytes], rows.iter().map(row));
        }
    };
    let row = |row: &(Key, Count)| {
        let [packets, bytes] = cells(row);
        [or_dash(row.0.0.as_ref()), row.0.1.clone(), row.0.2.clone(), packets, bytes]
    };
    Table::new([owner, "REASON", "VERDICT", packets, bytes], rows.iter().map(row))
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
