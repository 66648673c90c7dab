//! The description: the copy that is committed, and the pages that show it.

use std::path::Path;

use redirect_ctl::api;

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
