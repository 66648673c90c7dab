//! What is wrong is refused on every endpoint, with a pointer, and nothing comes of it. The endpoints are those of the description, so that
//! one that is added is tried as well.

use redirect_ctl::{api, limits};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::{
    conditions::resources,
    support::{Answer, Lab},
};

struct Endpoint {
    method: String,
    pattern: String,
    /// With values for what is required.
    target: String,
    body: Option<String>,
    codes: Vec<String>,
}

/// All of the description; keys are those of resources that are there.
fn endpoints() -> Vec<Endpoint> {
    let description = api::description();
    let mut all = Vec::new();
    for (pattern, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let known = resources().into_iter().find(|resource| resource.0 == pattern);
            let mut target = known.map_or_else(|| in_place_of_keys(pattern, "192.0.2.1"), |known| known.1.to_owned());
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let required = parameters.iter().filter(|one| one["in"] == "query" && one["required"] == true);
            let pairs: Vec<_> = required
                .map(|one| format!("{}={}", one["name"].as_str().unwrap(), first_value(&description, &one["schema"])))
                .collect();
            if !pairs.is_empty() {
                target = format!("{target}?{}", pairs.join("&"));
            }
            let body = operation["requestBody"]["content"].as_object().map(|all| all.keys().next().unwrap().clone());
            let codes = operation["responses"].as_object().unwrap().keys().cloned().collect();
            all.push(Endpoint { method: method.to_uppercase(), pattern: pattern.clone(), target, body, codes });
        }
    }
    all
}

fn in_place_of_keys(pattern: &str, value: &str) -> String {
    match (pattern.find('{'), pattern.find('}')) {
        (Some(start), Some(end)) => format!("{}{value}{}", &pattern[..start], &pattern[end + 1..]),
        _ => pattern.to_owned(),
    }
}

fn first_value(description: &Value, schema: &Value) -> String {
    let schema = schema["$ref"].as_str().map_or(schema, |at| description.pointer(&at[1..]).unwrap());
    schema["enum"][0].as_str().unwrap_or("192.0.2.1").to_owned()
}

async fn lab() -> Lab {
    let lab = Lab::start().await;
    for (_, path, make, _) in resources() {
        lab.put(path, &make).await.expect(201);
    }
    lab
}

/// The revision, and what the store holds.
async fn everything(lab: &Lab) -> String {
    let mut all = lab.get("/v1/status").await.json()["revision"].to_string();
    for (_, path, ..) in resources() {
        all += &lab.get(path).await.json()["revision"].to_string();
    }
    all
}

impl Endpoint {
    fn refused(&self, what: &str, answer: &Answer) -> Value {
        let place = format!("{} {} {what}: {}\n{}", self.method, self.pattern, answer.head, answer.text);
        assert!((400..500).contains(&answer.status), "{place}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{place}");
        assert!(self.codes.contains(&answer.status.to_string()), "not described: {place}");
        let problem = answer.json();
        assert_eq!(problem["trace_id"].as_str(), answer.header("x-request-id"), "{place}");
        assert!(problem["errors"][0]["pointer"].is_string(), "no pointer: {place}");
        assert!(!problem["errors"][0]["detail"].as_str().unwrap().is_empty(), "{place}");
        problem
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused_by_every_endpoint() {
    let lab = lab().await;
    let before = everything(&lab).await;
    let deep = "[".repeat(20_000);
    let deep_member = format!("{{\"x\":{deep}");
    let long = format!("{{\"x\":\"{}\"}}", "x".repeat(limits::IMPORT_BYTES_MAX));
    // What it is, the body, and where the fault is, if that is the same for all.
    let bodies: &[(&str, &[u8], Option<&str>)] = &[
        ("nothing", b"", Some("")),
        ("half", b"{", Some("")),
        ("two", b"{} {}", Some("")),
        ("a list", b"[]", Some("")),
        ("null", b"null", Some("")),
        ("a text", b"\"x\"", Some("")),
        ("a number", b"7", Some("")),
        ("deep", deep.as_bytes(), Some("")),
        ("deep inside", deep_member.as_bytes(), None),
        ("an unknown member", br#"{"no/such":1}"#, Some("/no~1such")),
        ("a unicode member", "{\"b\u{fc}cher\u{202e}\":1}".as_bytes(), Some("/b\u{fc}cher\u{202e}")),
        ("a member twice", br#"{"x":1,"x":2}"#, Some("/x")),
        ("a member twice, escaped", br#"{"x":1,"\u0078":2}"#, Some("/x")),
        ("a huge number", br#"{"x":1e999}"#, None),
        ("a bad text", b"{\"x\":\"\xff\xfe\"}", None),
        ("a lone surrogate", br#"{"x":"\ud800"}"#, None),
        ("a byte order mark", b"\xef\xbb\xbf{}", Some("")),
        ("NUL", b"\0", Some("")),
        ("a long one", long.as_bytes(), None),
    ];
    for endpoint in endpoints() {
        let Some(kind) = endpoint.body.as_deref() else { continue };
        // Lines have tests of their own, and none at all is a file too.
        if !kind.ends_with("json") || kind.ends_with("x-ndjson") {
            continue;
        }
        for (what, body, pointer) in bodies {
            let answer = lab.raw(&endpoint.method, &endpoint.target, &format!("Content-Type: {kind}\r\n"), body).await;
            let problem = endpoint.refused(what, &answer);
            if let Some(pointer) = pointer
                && !problem["errors"][0]["pointer"].as_str().unwrap().eq(*pointer)
                // A member that is missing may be noticed before one that is unknown.
                && !problem["detail"].as_str().unwrap().contains("missing field")
            {
                panic!("{} {} {what}: {problem}", endpoint.method, endpoint.pattern);
            }
        }
        for kind in ["text/plain", "application/xml", "", "application/jsonx"] {
            let headers = format!("Content-Type: {kind}\r\n");
            let answer = lab.raw(&endpoint.method, &endpoint.target, &headers, b"{}").await;
            assert_eq!(endpoint.refused(kind, &answer)["code"], "unsupported_media_type");
        }
    }
    assert_eq!(everything(&lab).await, before, "nothing was changed");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_members_are_refused_by_every_resource() {
    let lab = lab().await;
    let before = everything(&lab).await;
    let wrong = [
        "true",
        "[[]]",
        "-1",
        "1e300",
        "18446744073709551616",
        "\"\\u0000\"",
        "\"b\u{fc}cher \u{1f4e7}\"",
        "{\"x\":{}}",
    ];
    for (_, path, ..) in resources() {
        let shown = lab.get(path).await.json();
        for (member, now) in shown.as_object().unwrap() {
            // What only answers have is ignored, and a text may be free.
            let free = ["description", "note"].contains(&member.as_str());
            let ignored = ["revision", "facts", "state", "health", "flows", "names", "not_before", "not_after"];
            let ignored = ignored.contains(&member.as_str())
                || (["source", "status"].contains(&member.as_str())
                    && (path.contains("relays") || path.contains("interfaces")));
            if ignored {
                continue;
            }
            for wrong in wrong {
                let fits = free && wrong.starts_with('"') || now.is_boolean() && wrong == "true";
                let name = member == "password" && wrong.starts_with('"');
                if fits || name {
                    continue;
                }
                let patch = format!("{{\"{member}\":{wrong}}}");
                let headers = "Content-Type: application/merge-patch+json\r\n";
                let answer = lab.raw("PATCH", path, headers, patch.as_bytes()).await;
                assert!((400..500).contains(&answer.status), "{path} {patch}: {}\n{}", answer.head, answer.text);
                let pointer = answer.json()["errors"][0]["pointer"].clone();
                assert!(pointer.is_string(), "{path} {patch}: {}", answer.text);
            }
        }
    }
    assert_eq!(everything(&lab).await, before, "nothing was changed");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_targets_are_refused_by_every_endpoint() {
    let lab = lab().await;
    let before = everything(&lab).await;
    for endpoint in endpoints() {
        let kind = endpoint.body.as_deref().unwrap_or("application/json");
        let ask =
            async |target: &str| lab.raw(&endpoint.method, target, &format!("Content-Type: {kind}\r\n"), b"{}").await;
        let joint = if endpoint.target.contains('?') { '&' } else { '?' };
        for (query, name) in [("no_such=1", "?no_such"), ("b%C3%BCcher", "?b\u{fc}cher"), ("%FF=1", "?\u{fffd}")] {
            let answer = ask(&format!("{}{joint}{query}", endpoint.target)).await;
            let problem = endpoint.refused(query, &answer);
            assert_eq!(
                (problem["code"].as_str(), problem["errors"][0]["pointer"].as_str()),
                (Some("invalid_query"), Some(name))
            );
        }
        if endpoint.pattern.contains('{') {
            endpoint.refused("%FF", &ask(&in_place_of_keys(&endpoint.pattern, "%FF")).await);
            for key in ["%00", "a%0Ab", "%20"] {
                let answer = ask(&in_place_of_keys(&endpoint.pattern, key)).await;
                endpoint.refused(key, &answer);
            }
        }
    }
    assert_eq!(everything(&lab).await, before, "nothing was changed");
    lab.stop().await;
}

/// A gibibyte without a line's end is refused early, and never in memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_is_not_held_by_any_endpoint() {
    const CHUNK: usize = 64 * 1024;
    let lab = lab().await;
    let before = everything(&lab).await;
    for endpoint in endpoints() {
        let Some(kind) = &endpoint.body else { continue };
        let rss_before = resident_bytes();
        let mut stream = UnixStream::connect(&lab.settings.sockets[0]).await.unwrap();
        let Endpoint { method, target, .. } = &endpoint;
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut chunk = format!("{CHUNK:x}\r\n").into_bytes();
        chunk.resize(chunk.len() + CHUNK, b'x');
        chunk.extend(b"\r\n");
        let (mut reader, mut writer) = stream.split();
        let mut answer = Vec::new();
        let mut most = 0;
        let write = async {
            for _ in 0..(1 << 30) / CHUNK {
                if writer.write_all(&chunk).await.is_err() {
                    return;
                }
                most = most.max(resident_bytes());
            }
            let _ = writer.write_all(b"0\r\n\r\n").await;
        };
        // An answer may come before the end, and the rest is of no use then.
        tokio::select! {
            _ = reader.read_to_end(&mut answer) => {}
            () = write => { let _ = reader.read_to_end(&mut answer).await; }
        }
        let answer = Answer::parse(&answer);
        endpoint.refused("a gibibyte", &answer);
        let grown = most.saturating_sub(rss_before);
        assert!(grown < 200 << 20, "{method} {target} took {grown} bytes");
    }
    assert_eq!(everything(&lab).await, before, "nothing was changed");
    lab.stop().await;
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}
