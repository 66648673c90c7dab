//! What commands print: data for programs, columns for people. A resource says its columns once ([`Columns`]), and every list and every
//! `get` comes in every form then. A table is aligned columns two spaces apart and nothing else, so that `awk` reads it as well.

use std::{
    cmp::Ordering,
    fmt::Write as _,
    io::{self, Write},
};

use ipnet::IpNet;
use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use super::Error;
use crate::{api::client, cli::Output};

/// What has columns in a table. The first of them is its name.
pub(super) trait Columns: Sized + 'static {
    const COLUMNS: &'static [Column<Self>];

    fn name(&self) -> String {
        (Self::COLUMNS[0].cell)(self).shown()
    }
}

/// A column: its title in upper case, and what a row has in it.
pub(super) struct Column<T> {
    title: &'static str,
    cell: fn(&T) -> Cell,
    /// Only `-o wide` shows it, unless it is named.
    wide: bool,
    /// Characters that it takes at least where rows are printed as they come.
    width: usize,
}

impl<T> Column<T> {
    pub(super) const fn new(title: &'static str, cell: fn(&T) -> Cell) -> Self {
        Self { title, cell, wide: false, width: 0 }
    }

    pub(super) const fn wide(title: &'static str, cell: fn(&T) -> Cell) -> Self {
        Self { title, cell, wide: true, width: 0 }
    }

    /// For rows that are printed as they come: nobody knows how wide the later ones will be.
    pub(super) const fn of_width(title: &'static str, width: usize, cell: fn(&T) -> Cell) -> Self {
        Self { title, cell, wide: false, width }
    }
}

/// What a row has in a column. It knows how it sorts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// A dash: an empty cell would shift the columns for `awk`.
    Nothing,
    Text(String),
    Number(u64),
    /// Seconds.
    Duration(u64),
    /// A word that tells how something is.
    State(String, Tone),
}

/// How a state is meant: a terminal shows it in green, yellow or red.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Warning,
    Bad,
}

#[expect(clippy::needless_pass_by_value, reason = "rows say what they show without a reference to it")]
impl Cell {
    pub(super) fn text(value: impl ToString) -> Self {
        match value.to_string() {
            text if text.is_empty() => Self::Nothing,
            text => Self::Text(text),
        }
    }

    pub(super) fn maybe(value: Option<impl ToString>) -> Self {
        value.map_or(Self::Nothing, Self::text)
    }

    pub(super) fn number(value: impl Into<u64>) -> Self {
        Self::Number(value.into())
    }

    /// Of seconds.
    pub(super) fn duration(seconds: impl Into<u64>) -> Self {
        Self::Duration(seconds.into())
    }

    /// Values in one word, so that they are one column for `awk`.
    pub(super) fn list<V: ToString>(values: impl IntoIterator<Item = V>) -> Self {
        Self::text(joined(values.into_iter().map(|value| value.to_string())))
    }

    pub(super) fn yes_or_no(yes: bool) -> Self {
        Self::text(if yes { "yes" } else { "no" })
    }

    pub(super) fn state(word: impl ToString, tone: Tone) -> Self {
        Self::State(word.to_string(), tone)
    }

    /// Control characters are shown, never obeyed: somebody else may have written them.
    fn shown(&self) -> String {
        let text = match self {
            Self::Nothing => return "-".to_owned(),
            Self::Number(number) => return number.to_string(),
            Self::Duration(seconds) => return duration(*seconds),
            Self::Text(text) | Self::State(text, _) => text,
        };
        let mut shown = String::new();
        for char in text.chars() {
            if char.is_control() { shown.extend(char.escape_default()) } else { shown.push(char) }
        }
        shown
    }

    fn order(&self, other: &Self) -> Ordering {
        let number = |cell: &Self| match cell {
            Self::Number(number) | Self::Duration(number) => Some(*number),
            Self::Nothing | Self::Text(_) | Self::State(..) => None,
        };
        match (self, other) {
            (Self::Nothing, Self::Nothing) => Ordering::Equal,
            (Self::Nothing, _) => Ordering::Less,
            (_, Self::Nothing) => Ordering::Greater,
            _ => match (number(self), number(other)) {
                (Some(one), Some(two)) => one.cmp(&two),
                _ => natural(&self.shown(), &other.shown()),
            },
        }
    }
}

/// Has a terminal begin a new screen.
pub(super) const CLEAR: &str = "\x1b[H\x1b[2J";

/// How rows are wanted: the form, which columns, in which order.
#[derive(Clone)]
pub(super) struct Layout {
    pub(super) form: Output,
    pub(super) columns: Vec<String>,
    pub(super) sort: Option<String>,
    pub(super) headers: bool,
    /// JSON in several lines.
    pub(super) pretty: bool,
    pub(super) colours: bool,
}

impl Layout {
    /// Whether people are to read it.
    pub(super) fn is_for_people(&self) -> bool {
        match self.form {
            Output::Table | Output::Wide => true,
            Output::Json | Output::Yaml | Output::Ndjson | Output::Name => false,
        }
    }

    /// Whether rows can be printed before the last one is known.
    pub(super) fn is_row_by_row(&self) -> bool {
        matches!(self.form, Output::Ndjson | Output::Name) && self.sort.is_none()
    }

    /// Prints a list.
    pub(super) fn items<T: Columns + Serialize>(&self, out: &mut dyn Write, items: &[T]) -> Result<(), Error> {
        let items = self.sorted(T::COLUMNS, items)?;
        match self.form {
            Output::Json | Output::Yaml => self.data(out, &items),
            Output::Ndjson | Output::Name => {
                let mut out = io::BufWriter::new(out);
                items.iter().try_for_each(|item| self.row(&mut out, *item))?;
                Ok(out.flush()?)
            }
            Output::Table | Output::Wide => Ok(out.write_all(self.table(T::COLUMNS, &items)?.as_bytes())?),
        }
    }

    /// Prints an answer: the columns are for people who read `rows`, made from it.
    pub(super) fn answer<T>(
        &self,
        out: &mut dyn Write,
        answer: &impl Serialize,
        columns: &[Column<T>],
        rows: &[T],
    ) -> Result<(), Error> {
        match self.form {
            Output::Json | Output::Yaml | Output::Ndjson => self.data(out, answer),
            Output::Name => Err(Error::Usage("nothing here has a name: -o name is for lists of resources".to_owned())),
            Output::Table | Output::Wide => {
                Ok(out.write_all(self.table(columns, &self.sorted(columns, rows)?)?.as_bytes())?)
            }
        }
    }

    /// Prints one value in the form for programs.
    pub(super) fn data(&self, out: &mut dyn Write, value: &impl Serialize) -> Result<(), Error> {
        let mut out = io::BufWriter::new(out);
        match self.form {
            Output::Yaml => yaml(&mut out, value)?,
            Output::Json | Output::Ndjson => json(&mut out, value, self.pretty)?,
            Output::Table | Output::Wide | Output::Name => json(&mut out, value, true)?,
        }
        Ok(out.flush()?)
    }

    /// Prints the titles, for rows that are printed as they come.
    pub(super) fn titles<T: Columns>(&self, out: &mut dyn Write) -> Result<(), Error> {
        if !self.is_for_people() || !self.headers {
            return Ok(());
        }
        let columns = self.chosen(T::COLUMNS)?;
        let cells = columns.iter().map(|column| Shown { text: column.title.to_owned(), tone: None });
        let widths: Vec<usize> = columns.iter().map(|column| column.width.max(column.title.len())).collect();
        Ok(out.write_all(line(cells, &widths).as_bytes())?)
    }

    /// Prints a row as it comes: an object a line for programs.
    pub(super) fn row<T: Columns + Serialize>(&self, out: &mut dyn Write, row: &T) -> Result<(), Error> {
        match self.form {
            Output::Json | Output::Ndjson => json(out, row, false),
            Output::Yaml => {
                writeln!(out, "---")?;
                yaml(out, row)
            }
            Output::Name => Ok(writeln!(out, "{}", row.name())?),
            Output::Table | Output::Wide => {
                let columns = self.chosen(T::COLUMNS)?;
                let widths: Vec<usize> = columns.iter().map(|column| column.width.max(column.title.len())).collect();
                let cells = columns.iter().map(|column| self.shown(&(column.cell)(row)));
                Ok(out.write_all(line(cells, &widths).as_bytes())?)
            }
        }
    }

    /// A table with a line for each row.
    pub(super) fn table<T>(&self, columns: &[Column<T>], rows: &[&T]) -> Result<String, Error> {
        let columns = self.chosen(columns)?;
        let titles = columns.iter().map(|column| Shown { text: column.title.to_owned(), tone: None }).collect();
        let rows = rows.iter().map(|row| columns.iter().map(|column| self.shown(&(column.cell)(row))).collect());
        let lines: Vec<Vec<Shown>> = self.headers.then_some(titles).into_iter().chain(rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].text.width()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        Ok(lines.into_iter().map(|cells| line(cells.into_iter(), &widths)).collect())
    }

    fn shown(&self, cell: &Cell) -> Shown {
        let tone = match cell {
            Cell::State(_, tone) if self.colours => Some(*tone),
            _ => None,
        };
        Shown { text: cell.shown(), tone }
    }

    /// The columns that were named, else those that the form has.
    fn chosen<'c, T>(&self, columns: &'c [Column<T>]) -> Result<Vec<&'c Column<T>>, Error> {
        if self.columns.is_empty() {
            return Ok(columns.iter().filter(|column| !column.wide || self.form == Output::Wide).collect());
        }
        self.columns.iter().map(|name| find(columns, name)).collect()
    }

    /// The rows in the order that was asked for.
    pub(super) fn sorted<'r, T>(&self, columns: &[Column<T>], rows: &'r [T]) -> Result<Vec<&'r T>, Error> {
        let mut rows: Vec<&T> = rows.iter().collect();
        let Some(sort) = &self.sort else { return Ok(rows) };
        let (name, backwards) = sort.strip_prefix('-').map_or((sort.as_str(), false), |name| (name, true));
        let column = find(columns, name)?;
        rows.sort_by(|one, two| {
            let order = (column.cell)(one).order(&(column.cell)(two));
            if backwards { order.reverse() } else { order }
        });
        Ok(rows)
    }
}

fn yaml(out: &mut dyn Write, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_saphyr::to_string(value).map_err(|error| client::Error::Answer(error.to_string()))?;
    Ok(writeln!(out, "{}", text.trim_end())?)
}

/// Without the whole text in memory. A reader who has gone is an error of writing, not of the answer.
fn json(out: &mut dyn Write, value: &impl Serialize, pretty: bool) -> Result<(), Error> {
    let written =
        if pretty { serde_json::to_writer_pretty(&mut *out, value) } else { serde_json::to_writer(&mut *out, value) };
    written.map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

fn find<'c, T>(columns: &'c [Column<T>], name: &str) -> Result<&'c Column<T>, Error> {
    let same = |title: &str| title.eq_ignore_ascii_case(&name.replace('_', "-"));
    columns.iter().find(|column| same(column.title)).ok_or_else(|| {
        let titles = joined(columns.iter().map(|column| column.title.to_owned()));
        Error::Usage(format!("there is no column {name:?}; there are {titles}"))
    })
}

/// A cell as it is printed.
struct Shown {
    text: String,
    tone: Option<Tone>,
}

fn line(cells: impl Iterator<Item = Shown>, widths: &[usize]) -> String {
    let mut line = String::new();
    let mut gap = 0;
    for (Shown { text, tone }, width) in cells.zip(widths) {
        line.extend(std::iter::repeat_n(' ', gap));
        gap = width.saturating_sub(text.width()) + 2;
        match tone {
            None => line.push_str(&text),
            Some(tone) => {
                let code = match tone {
                    Tone::Good => 32,
                    Tone::Warning => 33,
                    Tone::Bad => 31,
                };
                // Writing into a string cannot fail.
                let _ = write!(line, "\x1b[{code}m{text}\x1b[0m");
            }
        }
    }
    line.push('\n');
    line
}

/// Addresses and prefixes by their numbers, other text so that `mx2` stands before `mx10`.
fn natural(one: &str, two: &str) -> Ordering {
    match (address(one), address(two)) {
        (Some(one), Some(two)) => one.cmp(&two),
        _ => pieces(one).cmp(pieces(two)).then_with(|| one.cmp(two)),
    }
}

fn address(text: &str) -> Option<(IpNet, u16)> {
    let bare = |text: &str| text.parse::<std::net::IpAddr>().ok().map(|address| (address.into(), 0));
    let endpoint = |text: &str| text.parse::<std::net::SocketAddr>().ok().map(|end| (end.ip().into(), end.port()));
    bare(text).or_else(|| text.parse().ok().map(|prefix| (prefix, 0))).or_else(|| endpoint(text))
}

/// Text and numbers in turns; leading zeros do not count.
fn pieces(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let is_digit = rest.chars().next()?.is_ascii_digit();
        let end = rest.find(|char: char| char.is_ascii_digit() != is_digit).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        let number = piece.trim_start_matches('0');
        Some(if is_digit { (number.len(), number) } else { (usize::MAX, piece) })
    })
}

/// A line of a sheet: what, and what of it.
pub(super) struct Fact {
    pub(super) fact: String,
    pub(super) value: Cell,
}

impl Columns for Fact {
    const COLUMNS: &'static [Column<Self>] =
        &[Column::new("FACT", |fact| Cell::text(&fact.fact)), Column::new("VALUE", |fact| fact.value.clone())];
}

pub(super) fn fact(fact: impl Into<String>, value: Cell) -> Fact {
    Fact { fact: fact.into(), value }
}

/// The word that the API has for a value.
pub(super) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("a word of the API is text: {other:?}"),
    }
}

/// A list in one word, so that it is one column for `awk`.
pub(super) fn joined(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(",")
}

/// Seconds as people say them, two units at most.
pub(super) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// Bytes as people say them, rounded up.
pub(super) fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Serialize)]
    struct Host {
        name: &'static str,
        port: Option<u16>,
        idle_s: u64,
    }

    impl Columns for Host {
        const COLUMNS: &'static [Column<Self>] = &[
            Column::new("NAME", |host| Cell::text(host.name)),
            Column::new("PORT", |host| Cell::maybe(host.port)),
            Column::wide("IDLE-TIME", |host| Cell::duration(host.idle_s)),
        ];
    }

    const HOSTS: [Host; 3] = [
        Host { name: "mx10", port: Some(25), idle_s: 61 },
        Host { name: "mx9", port: None, idle_s: 3_600 },
        Host { name: "\u{1b}[2J 日本", port: Some(2_525), idle_s: 59 },
    ];

    fn layout(form: Output) -> Layout {
        Layout { form, columns: Vec::new(), sort: None, headers: true, pretty: form == Output::Json, colours: false }
    }

    fn print(layout: &Layout) -> String {
        let mut out = Vec::new();
        match layout.items(&mut out, &HOSTS) {
            Ok(()) => String::from_utf8(out).unwrap(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn one_description_gives_every_form() {
        for (form, expected) in [
            (Output::Table, "NAME            PORT\nmx10            25\nmx9             -\n\\u{1b}[2J 日本  2525\n"),
            (
                Output::Wide,
                "NAME            PORT  IDLE-TIME\nmx10            25    1m1s\nmx9             -     1h0m\n\\u{1b}[2J 日本  2525  59s\n",
            ),
            (
                Output::Ndjson,
                "{\"name\":\"mx10\",\"port\":25,\"idle_s\":61}\n{\"name\":\"mx9\",\"port\":null,\"idle_s\":3600}\n\
                 {\"name\":\"\\u001b[2J 日本\",\"port\":2525,\"idle_s\":59}\n",
            ),
            (Output::Name, "mx10\nmx9\n\\u{1b}[2J 日本\n"),
            (
                Output::Yaml,
                "- name: mx10\n  port: 25\n  idle_s: 61\n- name: mx9\n  port: null\n  idle_s: 3600\n\
                 - name: \"\\e[2J 日本\"\n  port: 2525\n  idle_s: 59\n",
            ),
        ] {
            assert_eq!(print(&layout(form)), expected);
        }
        let json: serde_json::Value = serde_json::from_str(&print(&layout(Output::Json))).unwrap();
        assert_eq!(json[1], serde_json::json!({"name": "mx9", "port": null, "idle_s": 3_600}));
    }

    #[test]
    fn columns_are_chosen_by_name_and_rows_sorted_as_people_do() {
        let shown = |columns: &[&str], sort: &str| {
            let columns = columns.iter().map(|&column| column.to_owned()).collect();
            let sort = (!sort.is_empty()).then(|| sort.to_owned());
            print(&Layout { columns, sort, headers: false, ..layout(Output::Table) })
        };
        assert_eq!(shown(&["idle_time", "NAME"], "-idle-time"), "1h0m  mx9\n1m1s  mx10\n59s   \\u{1b}[2J 日本\n");
        assert_eq!(shown(&["name"], "name"), "\\u{1b}[2J 日本\nmx9\nmx10\n");
        assert_eq!(shown(&["port"], "port"), "-\n25\n2525\n");
        assert_eq!(shown(&["colour"], ""), "there is no column \"colour\"; there are NAME,PORT,IDLE-TIME");
        assert_eq!(shown(&[], "age"), "there is no column \"age\"; there are NAME,PORT,IDLE-TIME");
    }

    #[test]
    fn addresses_sort_by_their_numbers() {
        let mut addresses = [
            "fd00::10",
            "10.0.0.10/32",
            "fd00::9",
            "9.0.0.1",
            "10.0.0.9/32",
            "10.0.0.0/8",
            "[fd00::9]:25",
            "10.0.0.9:2525",
            "10.0.0.9:25",
        ];
        addresses.sort_by(|one, two| natural(one, two));
        assert_eq!(
            addresses,
            [
                "9.0.0.1",
                "10.0.0.0/8",
                "10.0.0.9/32",
                "10.0.0.9:25",
                "10.0.0.9:2525",
                "10.0.0.10/32",
                "fd00::9",
                "[fd00::9]:25",
                "fd00::10"
            ]
        );
    }

    #[test]
    fn colours_take_no_room() {
        struct Light(&'static str);
        impl Columns for Light {
            const COLUMNS: &'static [Column<Self>] = &[
                Column::new("STATE", |light| Cell::state(light.0, Tone::Bad)),
                Column::new("TEXT", |_| Cell::text("x")),
            ];
        }
        let coloured = Layout { colours: true, ..layout(Output::Table) };
        let text = coloured.table(Light::COLUMNS, &[&Light("down")]).unwrap();
        assert_eq!(text, "STATE  TEXT\n\x1b[31mdown\x1b[0m   x\n");
        let text = layout(Output::Table).table(Light::COLUMNS, &[&Light("down")]).unwrap();
        assert_eq!(text, "STATE  TEXT\ndown   x\n");
    }

    #[test]
    fn an_empty_list_has_titles_only() {
        let mut out = Vec::new();
        layout(Output::Table).items::<Host>(&mut out, &[]).unwrap();
        layout(Output::Json).items::<Host>(&mut out, &[]).unwrap();
        layout(Output::Ndjson).items::<Host>(&mut out, &[]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME  PORT\n[]\n");
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_660, "1h1m"), (90_000, "1d1h")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
