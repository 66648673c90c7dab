//! Tables for people: aligned columns, two spaces apart, nothing else, so that `awk` reads them as well.

pub(super) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(header: [&'static str; N], rows: impl IntoIterator<Item = [String; N]>) -> Self {
        Self { header: header.to_vec(), rows: rows.into_iter().map(Vec::from).collect() }
    }

    pub(super) fn render(self, headers: bool) -> String {
        let header = headers.then(|| self.header.iter().map(|&cell| cell.to_owned()).collect());
        let lines: Vec<Vec<String>> = header.into_iter().chain(self.rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A value, or a dash where there is none: an empty cell would shift the columns for `awk`.
pub(super) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// The word that the API has for a value.
pub(super) fn word(value: &impl serde::Serialize) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_one_line_for_each_row() {
        let table = || {
            Table::new(["NAME", "PORT"], [["a".to_owned(), "25".to_owned()], ["long".to_owned(), or_dash::<u8>(None)]])
        };
        assert_eq!(table().render(true), "NAME  PORT\na     25\nlong  -\n");
        assert_eq!(table().render(false), "a     25\nlong  -\n");
        assert_eq!(Table::new(["NAME"], []).render(false), "");
        assert_eq!(Table::new(["NAME"], []).render(true), "NAME\n");
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_660, "1h1m"), (90_000, "1d1h")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
