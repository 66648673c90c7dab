//! The API at a million subscribers: what reading and changing one costs, one request after the other and by many at once.
//!
//! The floor of a request that reads is one that reads nothing (`/livez`), and of a change one write that has reached the disk: no change is
//! acknowledged before.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use redirect_tests::Lab;

use crate::{
    options::Options,
    report::{Report, Row, Unit},
    rest::Connection,
    subscribers::{self, Record},
    turns,
};

const NOTHING: &str = "/livez";
/// Another one, and the one that all are in.
const CLASSES: [&str; 2] = ["blocked", "bypass"];
const WRITERS: u32 = 50;
const READERS: u32 = 20;
/// What a small transaction makes SQLite write.
const PAGES: [u8; 2 * 4096] = [0; 2 * 4096];

/// One request for the subscriber with this number.
type Ask = fn(&mut Connection, u32) -> Result<()>;

/// Requests of a sample, one after the other.
struct Effort {
    turns: usize,
    reads: u32,
    changes: u32,
    /// How long many ask at once.
    rate: Duration,
}

const FULL: Effort = Effort { turns: 5, reads: 2_000, changes: 200, rate: Duration::from_secs(2) };
const QUICK: Effort = Effort { turns: 3, reads: 500, changes: 50, rate: Duration::from_millis(500) };

pub(crate) fn run(options: &Options) -> Result<Report> {
    let effort = if options.quick { &QUICK } else { &FULL };
    let lab = Lab::new()?;
    let (product, _) = subscribers::filled(&lab, Record::Full)?;
    let bench = Bench { lab: &lab, socket: product.socket(), effort };
    let mut rows = bench.reads(options)?;
    rows.extend(bench.changes(options)?);
    rows.extend(bench.rates(options)?);
    subscribers::ensure_filled(&lab, &product)?;
    Ok(Report { suite: "api", rows })
}

struct Bench<'a> {
    lab: &'a Lab,
    socket: &'a Path,
    effort: &'static Effort,
}

impl Bench<'_> {
    fn reads(&self, options: &Options) -> Result<Vec<Row>> {
        // Where they lie far apart, as those lie that a portal asks for.
        let one: fn(u32) -> String = |number| format!("/v1/subscribers/{}", scattered(number));
        let by_user: fn(u32) -> String =
            |number| format!("/v1/subscribers?user=user-{}@example.net", scattered_place(number));
        let page: fn(u32) -> String = |number| format!("/v1/subscribers?limit=1000&cursor={}", scattered(number));
        let kinds = [("get_one_1m", one, 1), ("find_user_1m", by_user, 1), ("page_of_1000_1m", page, 20)];
        let mut rows = Vec::new();
        for (name, target, weight) in kinds {
            if !options.wants(name) {
                continue;
            }
            let ours = |connection: &mut Connection, number| {
                let answer = connection.get(&target(number))?;
                ensure!(answer.body.windows(8).any(|text| text == b"\"prefix\""), "{name}: nobody found");
                Ok(())
            };
            let floor = |connection: &mut Connection, _| connection.get(NOTHING).map(drop);
            rows.extend(self.compare(name, self.effort.reads / weight, ours, "livez", floor)?);
        }
        Ok(rows)
    }

    fn changes(&self, options: &Options) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        // Of another class than before, and of the very one.
        for (name, classes) in [("put_1m", CLASSES), ("put_unchanged_1m", [CLASSES[1]; 2])] {
            if !options.wants(name) {
                continue;
            }
            let mut disk = self.disk()?;
            let ours = |connection: &mut Connection, number| put(connection, number, classes);
            let floor = |_: &mut Connection, _| {
                disk.write_all(&PAGES)?;
                Ok(disk.sync_data()?)
            };
            rows.extend(self.compare(name, self.effort.changes, ours, "write and sync", floor)?);
        }
        Ok(rows)
    }

    /// Rows of how long `count` calls take, one after the other, beside those of a floor.
    fn compare(
        &self,
        name: &str,
        count: u32,
        mut ours: impl FnMut(&mut Connection, u32) -> Result<()>,
        peer: &'static str,
        mut floor: impl FnMut(&mut Connection, u32) -> Result<()>,
    ) -> Result<[Row; 2]> {
        let mut sites = ["ours", peer];
        let samples = turns::take(
            self.effort.turns,
            name,
            &mut sites,
            |site| *site,
            |site| {
                let mut connection = Connection::open(self.socket)?;
                if *site == peer {
                    times(count, |number| floor(&mut connection, number))
                } else {
                    times(count, |number| ours(&mut connection, number))
                }
            },
        )?;
        Ok(percentiles(name, peer, &samples))
    }

    fn rates(&self, options: &Options) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let kinds: [(_, _, Ask); 2] = [
            ("rate_get_one_1m", READERS, |connection, number| {
                connection.get(&format!("/v1/subscribers/{}", scattered(number))).map(drop)
            }),
            ("rate_put_1m", WRITERS, |connection, number| put(connection, number, CLASSES)),
        ];
        for (name, many, ask) in kinds {
            if !options.wants(name) {
                continue;
            }
            let mut sites = [many, 1];
            let samples = turns::take(
                self.effort.turns,
                name,
                &mut sites,
                |many| if *many == 1 { "one connection" } else { "many connections" },
                |many| self.rate(*many, ask),
            )?;
            let pairs: Vec<_> = samples[0].iter().copied().zip(samples[1].iter().copied()).collect();
            rows.push(Row::new(&format!("{name}_{many}"), Unit::REQUESTS_PER_SECOND, "one connection", &pairs));
        }
        Ok(rows)
    }

    /// Requests per second by `many` connections, each of which asks for subscribers of its own.
    fn rate(&self, many: u32, ask: Ask) -> Result<f64> {
        let begun = Instant::now();
        let until = begun + self.effort.rate;
        let done: u32 = thread::scope(|scope| {
            let asking: Vec<_> = (0..many)
                .map(|who| {
                    scope.spawn(move || -> Result<u32> {
                        let mut connection = Connection::open(self.socket)?;
                        let mut done = 0;
                        // An even number, so that everybody is what he was.
                        while Instant::now() < until || done % 2 == 1 {
                            ask(&mut connection, who * 10_000 + done)?;
                            done += 1;
                        }
                        Ok(done)
                    })
                })
                .collect();
            asking.into_iter().map(|asking| asking.join().ok().context("a client panicked")?).sum::<Result<u32>>()
        })?;
        Ok(f64::from(done) / begun.elapsed().as_secs_f64())
    }

    /// Where the store is, too.
    fn disk(&self) -> Result<File> {
        let path = self.lab.folder().join("floor");
        OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))
    }
}

/// Puts a subscriber into one of two classes, in turns, so that after an even number of calls everybody is in the second.
fn put(connection: &mut Connection, number: u32, classes: [&str; 2]) -> Result<()> {
    connection.put(&scattered(number / 2), classes[usize::from(number % 2 == 1)])
}

/// An address out of the million; the same number is the same address.
fn scattered(number: u32) -> String {
    subscribers::address(scattered_place(number)).to_string()
}

fn scattered_place(number: u32) -> u32 {
    number.wrapping_mul(7_919) % subscribers::COUNT
}

/// Of each call, in microseconds.
fn times(count: u32, mut call: impl FnMut(u32) -> Result<()>) -> Result<Vec<f64>> {
    (0..count)
        .map(|number| {
            let begun = Instant::now();
            call(number)?;
            Ok(begun.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}

/// Rows of the median and the 99th percentile.
fn percentiles(name: &str, peer: &'static str, samples: &[Vec<Vec<f64>>]) -> [Row; 2] {
    [("p50", 50), ("p99", 99)].map(|(title, percent)| {
        let of = |times: &[f64]| {
            let mut times = times.to_vec();
            times.sort_by(f64::total_cmp);
            times.get(times.len() * percent / 100).copied().unwrap_or(f64::NAN)
        };
        let pairs: Vec<_> = samples[0].iter().zip(&samples[1]).map(|(ours, floor)| (of(ours), of(floor))).collect();
        Row::new(&format!("{name}_{title}"), Unit::MICROSECONDS, peer, &pairs)
    })
}
