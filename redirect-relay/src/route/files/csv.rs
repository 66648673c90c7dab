//! CSV (RFC 4180) with a header line: columns in any order, known by their names.

use csv::{ReaderBuilder, StringRecord, WriterBuilder};

use crate::{
    gateway::PriorityRange,
    route::{
        Route, SizeRange, Target,
        files::{ImportFault, Reader, without_mark},
        model::usual_order,
    },
};

const COLUMNS: [&str; 11] = [
    "domain",
    "gateway",
    "group",
    "sender",
    "class",
    "size_min",
    "size_max",
    "priority_min",
    "priority_max",
    "order",
    "note",
];
/// A spreadsheet takes a cell that begins like this for a formula. Such cells are written with an apostrophe before them.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// Reads routes; empty lines and those that begin with `#` are passed over.
///
/// All or nothing: an error lists what is wrong, line by line, 100 faults at most. `refuse` knows what a route may not be for what is around it, such as a managed domain.
pub fn import_csv(text: &str, refuse: impl Fn(&Route) -> Option<String>) -> Result<Vec<Route>, Vec<ImportFault>> {
    let text = without_mark(text);
    let mut reader = Reader::new(refuse);
    let mut csv = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut columns = None;
    let mut record = StringRecord::new();
    let (mut line, mut seen) = (1, 0);
    loop {
        let read = csv.read_record(&mut record);
        // Where the record is said to begin there may be empty lines yet; lines are counted once.
        let at =
            record.position().map_or(seen, |at| usize::try_from(at.byte()).unwrap_or(seen)).clamp(seen, text.len());
        let start = at + text.as_bytes()[at..].iter().take_while(|octet| matches!(octet, b'\r' | b'\n')).count();
        line += memchr::memchr_iter(b'\n', &text.as_bytes()[seen..start]).count();
        seen = start;
        match (read, &columns) {
            (Ok(false), None) => {
                reader.fault(1, NO_HEADER);
                return reader.finish();
            }
            (Ok(false), Some(_)) => return reader.finish(),
            (Ok(true), _) if record.get(0).is_some_and(|cell| cell.starts_with('#')) => {}
            (Ok(true), None) => match self::columns(&record) {
                Ok(found) => columns = Some(found),
                Err(fault) => {
                    reader.fault(line, fault);
                    return reader.finish();
                }
            },
            (Ok(true), Some(columns)) => match route(&record, columns) {
                Ok(route) => reader.route(line, route),
                Err(fault) => reader.fault(line, fault),
            },
            (Err(error), _) => reader.fault(line, error.to_string()),
        }
    }
}

const NO_HEADER: &str = "the first line must name the columns, domain among them";

/// What each column means, by its place.
fn columns(headers: &StringRecord) -> Result<Vec<&'static str>, String> {
    let mut columns = Vec::new();
    for header in headers {
        let name = header.trim().to_ascii_lowercase();
        let known = COLUMNS.iter().find(|column| **column == name);
        let column = known.ok_or_else(|| format!("{header:?} is not a column: use {}", COLUMNS.join(", ")))?;
        if columns.contains(column) {
            return Err(format!("the column {column} is there twice"));
        }
        columns.push(column);
    }
    if columns.contains(&"domain") { Ok(columns) } else { Err(NO_HEADER.into()) }
}

fn route(record: &StringRecord, columns: &[&'static str]) -> Result<Route, String> {
    if record.len() > columns.len() {
        return Err(format!("has {} cells, and there are {} columns", record.len(), columns.len()));
    }
    let cell = |name: &str| {
        let index = columns.iter().position(|column| *column == name)?;
        record.get(index).map(unescape).filter(|cell| !cell.is_empty())
    };
    let number =
        |name: &str| cell(name).map(|cell| cell.parse::<u64>().map_err(|_| format!("{name}: {cell:?} is no size")));
    let priority = |name: &str| {
        cell(name).map(|cell| cell.parse::<i8>().map_err(|_| format!("{name}: {cell:?} is no priority from -9 to 9")))
    };
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let domain = cell("domain").ok_or("the domain is missing")?.parse().map_err(|e| text(&e))?;
    let target = match (cell("gateway"), cell("group")) {
        (Some(name), None) => Target::Gateway(name.parse().map_err(|e| text(&e))?),
        (None, Some(name)) => Target::Group(name.parse().map_err(|e| text(&e))?),
        (_, _) => return Err("must have a gateway or a group, and not both".into()),
    };
    let mut route = Route::new(domain, target);
    let conditions = &mut route.conditions;
    conditions.sender = cell("sender").map(str::parse).transpose().map_err(|e| text(&e))?;
    conditions.class = cell("class").map(str::parse).transpose().map_err(|e| text(&e))?;
    conditions.size = match (number("size_min").transpose()?, number("size_max").transpose()?) {
        (None, None) => None,
        (min, max) => Some(SizeRange { min: min.unwrap_or(0), max: max.unwrap_or(u64::MAX) }),
    };
    conditions.priority = match (priority("priority_min").transpose()?, priority("priority_max").transpose()?) {
        (None, None) => None,
        (min, max) => Some(PriorityRange { min: min.unwrap_or(-9), max: max.unwrap_or(9) }),
    };
    if let Some(order) = cell("order") {
        route.order = order.parse().map_err(|_| format!("order: {order:?} is no number from 0 to 65535"))?;
    }
    cell("note").unwrap_or_default().clone_into(&mut route.note);
    Ok(route)
}

fn unescape(cell: &str) -> &str {
    match cell.strip_prefix('\'') {
        Some(rest) if rest.starts_with('\'') || rest.starts_with(FORMULA) => rest,
        _ => cell,
    }
}

/// All columns, one line for each route. A program that opens the file takes none of its cells for a formula.
pub fn export_csv(routes: &[Route]) -> String {
    let mut csv = WriterBuilder::new().from_writer(Vec::new());
    let in_memory = "a buffer in memory takes every write";
    csv.write_record(COLUMNS).expect(in_memory);
    for route in routes {
        let (gateway, group) = match &route.target {
            Target::Gateway(name) => (name.as_str(), ""),
            Target::Group(name) => ("", name.as_str()),
        };
        let show = |value: Option<&dyn ToString>| value.map(ToString::to_string).unwrap_or_default();
        let conditions = &route.conditions;
        let (size, priority) = (conditions.size.as_ref(), conditions.priority.as_ref());
        let note = if route.note.starts_with(FORMULA) || route.note.starts_with('\'') {
            format!("'{}", route.note)
        } else {
            route.note.clone()
        };
        let cells = [
            route.domain.to_string(),
            gateway.to_owned(),
            group.to_owned(),
            show(conditions.sender.as_ref().map(|sender| sender as &dyn ToString)),
            show(conditions.class.as_ref().map(|class| class as &dyn ToString)),
            show(size.map(|range| &range.min as &dyn ToString)),
            show(
                size.map(|range| &range.max as &dyn ToString)
                    .filter(|_| size.is_some_and(|range| range.max != u64::MAX)),
            ),
            show(priority.map(|range| &range.min as &dyn ToString)),
            show(priority.map(|range| &range.max as &dyn ToString)),
            if route.order == usual_order() { String::new() } else { route.order.to_string() },
            note,
        ];
        csv.write_record(cells).expect(in_memory);
    }
    let octets = csv.into_inner().map_err(|error| error.to_string()).expect(in_memory);
    String::from_utf8(octets).expect("what was text is text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[&str], &[&str]>) {
        let own = |route: &Route| (route.domain.to_string() == "own.example").then(|| "is a managed domain".to_owned());
        let got = import_csv(text, own);
        let show = |routes: Vec<Route>| -> Vec<_> {
            routes.iter().map(|r| format!("{r} {} {:?}", r.target, r.note)).collect()
        };
        let got = got.map(show).map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>());
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(got, expected.map(owned).map_err(owned), "{text:?}");
    }

    #[test]
    fn files() {
        check("domain,gateway\na.example,mx\n", Ok(&["a.example gateway mx \"\""]));
        check("\u{feff}Domain,GATEWAY\r\nB\u{fc}cher.example,mx\r\n", Ok(&["xn--bcher-kva.example gateway mx \"\""]));
        check(
            "# first\n\ngateway,domain,note\n# a \"comment\n\nmx,*,\"x, \"\"y\"\"\"\n",
            Ok(&["* gateway mx \"x, \\\"y\\\"\""]),
        );
        check(
            "domain,group,class,size_min,priority_max\n.a,g,guests,5,3\n",
            Ok(&[".a (class guests, size from 5, priority -9 to 3) group g \"\""]),
        );
        check("domain,gateway,note\na,mx,'=1+1\n", Ok(&["a gateway mx \"=1+1\""]));
        check("domain,gateway,note\na,mx,'tis\n", Ok(&["a gateway mx \"'tis\""]));
        check("domain,gateway\n", Ok(&[]));
    }

    #[test]
    fn faults_have_their_lines() {
        check("", Err(&["line 1: the first line must name the columns, domain among them"]));
        check(
            "a.example,mx\n",
            Err(&[
                "line 1: \"a.example\" is not a column: use domain, gateway, group, sender, class, size_min, size_max, priority_min, priority_max, order, note",
            ]),
        );
        check("domain,domain\n", Err(&["line 1: the column domain is there twice"]));
        check(
            "domain,gateway,class,size_max,order,priority_min\n\
               a b,mx,,,,\n\
               # c\n\
               a,,,,,\n\
               a,m x,,,,\n\
               b,mx,c d,,,\n\
               c,mx,,x,,\n\
               d,mx,,,-1,\n\
               e,mx,,,,200\n\
               f,mx,,,,,,,,\n\
               OWN.example,mx,,,,\n\
               g,mx,,,,\n\
               \"h\",mx,,,,\n\
               G,mx,,,,\n\
               i,mx,,,,-10\n",
            Err(&[
                "line 2: \"a b\" is neither a domain, nor a domain after a dot, nor *",
                "line 4: must have a gateway or a group, and not both",
                "line 5: \"m x\" is not a name: use letters, digits, '.', '_' and '-', a letter or digit first, at most 64",
                "line 6: \"c d\" is not a name: use letters, digits, '.', '_' and '-', a letter or digit first, at most 64",
                "line 7: size_max: \"x\" is no size",
                "line 8: order: \"-1\" is no number from 0 to 65535",
                "line 9: priority_min: \"200\" is no priority from -9 to 9",
                "line 10: has 10 cells, and there are 6 columns",
                "line 11: is a managed domain",
                "line 14: g is in line 12 already",
                "line 15: the priority range is not within -9 to 9",
            ]),
        );
    }

    #[test]
    fn a_formula_is_no_formula() {
        let mut route = Route::new("a".parse().unwrap(), Target::Gateway("mx".parse().unwrap()));
        route.note = "=cmd|' /C calc'!A0".into();
        assert_eq!(export_csv(&[route]).lines().nth(1), Some("a,mx,,,,,,,,,'=cmd|' /C calc'!A0"));
    }
}
