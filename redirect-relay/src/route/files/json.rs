//! JSON: an array of routes.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::route::{
    Route,
    files::{ImportFault, Reader, without_mark},
};

/// Reads an array of routes. A fault's line is the one where its route begins. All or nothing, as [`import_csv`](crate::route::import_csv).
pub fn import_json(text: &str, refuse: impl Fn(&Route) -> Option<String>) -> Result<Vec<Route>, Vec<ImportFault>> {
    let text = without_mark(text);
    let mut reader = Reader::new(refuse);
    let items: Vec<&RawValue> = match serde_json::from_str(text) {
        Ok(items) => items,
        Err(error) => {
            // What ends too early ends in its last line, not in the one after it.
            reader.fault(error.line().clamp(1, text.lines().count().max(1)), words(&error));
            return reader.finish();
        }
    };
    let (mut line, mut seen) = (1, 0);
    for item in items {
        // Items borrow from the text, so their place is known; lines are counted once.
        let start = item.get().as_ptr().addr() - text.as_ptr().addr();
        line += memchr::memchr_iter(b'\n', &text.as_bytes()[seen..start]).count();
        seen = start;
        match serde_json::from_str(item.get()) {
            Ok(route) => match fault_of_members(item) {
                Some(fault) => reader.fault(line, fault),
                None => reader.route(line, route),
            },
            Err(error) => reader.fault(line, words(&error)),
        }
    }
    reader.finish()
}

/// The members of [`Route`], which serde cannot know: it is put together of parts.
const MEMBERS: [&str; 9] = ["domain", "order", "sender", "class", "size", "priority", "gateway", "group", "note"];

/// What a route would lose without a word.
fn fault_of_members(route: &RawValue) -> Option<String> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(route.get()).unwrap_or_default();
    if let Some(name) = members.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
        return Some(format!("{name:?} is no member of a route: use {}", MEMBERS.join(", ")));
    }
    (members.contains_key("gateway") && members.contains_key("group"))
        .then(|| "give a gateway or a group, not both".to_owned())
}

/// The error without its place, which would be that within the item.
fn words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// One route on each line.
pub fn export_json(routes: &[Route]) -> String {
    let lines =
        routes.iter().map(|route| serde_json::to_string(route).expect("routes hold nothing that JSON does not"));
    format!("[\n{}\n]\n", lines.collect::<Vec<_>>().join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<usize, &[&str]>) {
        let own = |route: &Route| (route.domain.to_string() == "own.example").then(|| "is a managed domain".to_owned());
        let got = import_json(text, own).map(|routes| routes.len());
        let got = got.map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(got, expected.map_err(|list| list.iter().map(|text| (*text).to_owned()).collect()), "{text}");
    }

    #[test]
    fn files() {
        check("[]", Ok(0));
        check("[{\"domain\":\"a\",\"gateway\":\"mx\"},\r\n{\"domain\":\"b\",\"group\":\"g\"}]", Ok(2));
        check("\u{feff}[]", Ok(0));
    }

    #[test]
    fn members_that_would_be_lost() {
        let unknown = |line: usize, name: &str| {
            let members = "domain, order, sender, class, size, priority, gateway, group, note";
            format!("line {line}: \"{name}\" is no member of a route: use {members}")
        };
        check(
            "[{\"domain\":\"a\",\"gateway\":\"mx\"},\n{\"domain\":\"b\",\"gatway\":\"x\",\"group\":\"g\"},\n\
             {\"domain\":\"c\",\n\"gateway\":\"mx\",\"size\":{\"mix\":5}},{\"key\":\"d\",\"domain\":\"d\",\"gateway\":\"mx\"},\n\
             {\"domain\":\"e\",\"gateway\":\"mx\",\"group\":\"g\"}]",
            Err(&[
                &unknown(2, "gatway"),
                "line 3: unknown field `mix`, expected `min` or `max`",
                &unknown(4, "key"),
                "line 5: give a gateway or a group, not both",
            ]),
        );
    }

    #[test]
    fn faults_have_their_lines() {
        check("", Err(&["line 1: EOF while parsing a value"]));
        check("\n", Err(&["line 1: EOF while parsing a value"]));
        check("{}", Err(&["line 1: invalid type: map, expected a sequence"]));
        check("[\n{]\n", Err(&["line 2: key must be a string"]));
        check(
            "[\n {\"domain\":\"a b\",\"gateway\":\"mx\"},\n {\n  \"domain\":\"a\",\n  \"gateway\":\"m x\"\n }, {\"domain\":\"a\"},\n\
             {\"domain\":\"own.example\",\"gateway\":\"mx\"},\n{\"domain\":\"c\",\"gateway\":\"x\"},\n{\"domain\":\"C\",\"gateway\":\"y\"}]",
            Err(&[
                "line 2: \"a b\" is neither a domain, nor a domain after a dot, nor *",
                "line 3: \"m x\" is not a name: use letters, digits, '.', '_' and '-', a letter or digit first, at most 64",
                "line 6: no variant of enum Target found in flattened data",
                "line 7: is a managed domain",
                "line 9: c is in line 8 already",
            ]),
        );
    }
}
