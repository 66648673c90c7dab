//! The description: the copy that is committed, and the pages that show it.

use std::path::Path;

use redirect_ctl::api;
use serde_json::Value;

use crate::support::Lab;

#[test]
fn the_committed_description_is_what_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let mut served = serde_json::to_string_pretty(&api::description()).unwrap();
    served.push('\n');
    if std::env::var_os("RENEW_OPENAPI").is_some() {
        std::fs::write(&path, &served).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if committed != served {
        let line = committed.lines().zip(served.lines()).take_while(|(before, after)| before == after).count() + 1;
        panic!(
            "docs/openapi.json differs from the handlers at line {line}; look at the change, then write it anew: \
             RENEW_OPENAPI=1 cargo test -p redirect-ctl --test control the_committed_description"
        );
    }
}

/// A part that takes no other members would forbid those of the parts beside it.
#[test]
fn no_part_of_an_answer_is_closed() {
    let description = api::description();
    let mut values = vec![&description];
    let mut parts = 0;
    while let Some(value) = values.pop() {
        for part in value["allOf"].as_array().into_iter().flatten() {
            let part = part["$ref"].as_str().map_or(part, |at| description.pointer(&at[1..]).unwrap());
            assert_ne!(part["additionalProperties"], false, "{part}");
            parts += 1;
        }
        match value {
            Value::Object(members) => values.extend(members.values()),
            Value::Array(items) => values.extend(items),
            _ => {}
        }
    }
    assert!(parts > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_of_the_description_need_nothing_from_elsewhere() {
    let lab = Lab::start().await;
    lab.get("/docs").await.expect_either(303, 308);
    let page = lab.get("/docs/").await.expect(200);
    let mut sources = page.text.split("src=\"").skip(1).chain(page.text.split("href=\"").skip(1)).peekable();
    assert!(sources.peek().is_some());
    for source in sources {
        let source = source.split('"').next().unwrap();
        assert!(!source.contains("//"), "{source}");
        lab.get(&format!("/docs/{}", source.trim_start_matches("./"))).await.expect(200);
    }
    let start = lab.get("/docs/swagger-initializer.js").await.expect(200);
    assert!(start.text.contains("/openapi.json") && !start.text.contains("http"), "{}", start.text);
    lab.stop().await;
}
