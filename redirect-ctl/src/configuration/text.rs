//! The forms of a file that holds a configuration: TOML, JSON and YAML say the same.

use serde_json::Value;

use super::Document;
use crate::{dataplane::words, desired::Invalid, limits};

words! {
    /// The form of a file that holds a configuration.
    #[derive(Default)]
    DocumentFormat {
        #[default]
        Json = "json",
        Toml = "toml",
        Yaml = "yaml",
    }
}

impl DocumentFormat {
    /// By the end of a file's name.
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "json" => Some(Self::Json),
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }

    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Toml => "application/toml",
            Self::Yaml => "application/yaml",
        }
    }

    /// The form that an `Accept` header (RFC 9110 section 12.5.1) likes best; JSON where it likes all the same.
    pub fn accepted(header: &str) -> Option<Self> {
        let mut best: Option<(f32, Self)> = None;
        for range in header.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "*/*" | "application/*" | "application/json" => Self::Json,
                "application/toml" => Self::Toml,
                "application/yaml" | "application/x-yaml" | "text/yaml" => Self::Yaml,
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |weight| weight.parse().ok());
            let weight: f32 = weight.unwrap_or(0.0);
            if weight > 0.0 && best.is_none_or(|(known, _)| weight > known) {
                best = Some((weight, format));
            }
        }
        best.map(|(_, format)| format)
    }
}

/// The document in this form, with an end of line.
pub fn write(document: &Document, format: DocumentFormat) -> Result<String, Invalid> {
    let value = document.to_value();
    let failed = |error: &dyn std::fmt::Display| Invalid(format!("cannot be said in {format}: {error}"));
    let mut text = match format {
        DocumentFormat::Json => serde_json::to_string_pretty(&value).map_err(|error| failed(&error))?,
        DocumentFormat::Toml => toml::to_string_pretty(&value).map_err(|error| failed(&error))?,
        DocumentFormat::Yaml => serde_saphyr::to_string(&value).map_err(|error| failed(&error))?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// The value that a file in this form holds; what it means is for [`Document`].
pub fn read(text: &str, format: DocumentFormat) -> Result<Value, Invalid> {
    let failed = |error: &dyn std::fmt::Display| Invalid(format!("is not {format}: {error}"));
    match format {
        DocumentFormat::Json => serde_json::from_str(text).map_err(|error| failed(&error)),
        DocumentFormat::Toml => toml::from_str(text).map_err(|error| failed(&error)),
        DocumentFormat::Yaml => serde_saphyr::from_str_with_options(text, yaml()).map_err(|error| failed(&error)),
    }
}

/// As large a document as may be committed can be read, and no alias makes a larger one of a small file.
fn yaml() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: limits::YAML_NODES_MAX,
            max_events: 2 * limits::YAML_NODES_MAX,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Text that one form or another takes for something else.
    const TRAPS: &[&str] = &[
        "",
        "yes",
        "no",
        "on",
        "null",
        "~",
        "true",
        "0x1F",
        "0o7",
        "1e3",
        ".inf",
        "-",
        "- a",
        "a: b",
        "a #b",
        " a",
        "a ",
        "'",
        "\"",
        "<<",
        "=",
        "*a",
        "&a",
        "!a",
        "|",
        ">",
        "%a",
        "@a",
        "`a",
        "12:30:45",
        "2026-01-01",
        "1_000",
        "\u{feff}",
        "\u{85}a",
        "\\n",
        "[",
        "{}",
        "2001:db8::1",
        "\u{1F600}",
        "a\u{2028}b",
        "007",
        "+1",
        "?",
        "? a",
        "...",
        "---",
    ];

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![prop::sample::select(TRAPS).prop_map(str::to_owned), "\\PC{0,40}", "[ -~]{0,40}",]
    }

    prop_compose! {
        fn document()(
            texts in prop::collection::vec(text(), 1..6),
            user in "[a-zé@][^\\p{C}]{0,20}[a-z]",
            min in 0_u64..i64::MAX as u64,
            rate in 1_u32..1_000_000,
        ) -> Document {
            let gateways: Vec<_> = texts
                .iter()
                .enumerate()
                .map(|(n, text)| json!({"name": format!("g{n}"), "address": "2001:db8::1", "description": text,
                    "account": {"username": text}, "verification": {"mode": "ca", "file": text}}))
                .collect();
            let routes: Vec<_> = texts
                .iter()
                .enumerate()
                .map(|(n, text)| json!({"domain": format!("d{n}.example"), "gateway": "g0", "note": text, "sender": "<>",
                    "size": {"min": min}, "priority": {"min": -9, "max": 9}}))
                .collect();
            serde_json::from_value(json!({
                "users": [{"name": user}],
                "gateways": gateways,
                "routes": routes,
                "classes": [{"name": "1e3", "action": "pass", "limits": {"rate": rate}}, {"name": "null", "action": "redirect",
                    "relays": [{"name": "embedded"}], "smtp": {"unauthenticated": {"deny": ["::/0"]}, "tarpit": {"delay_s": 1, "delay_max_s": 9}}}],
                "certificates": [{"name": "0x7", "chain": texts.join("\n") + "\n"}],
                "managed_domains": [{"domain": "example.net", "target": {"group": "b"}}],
            }))
            .unwrap()
        }
    }

    proptest! {
        #[test]
        fn every_form_says_the_same(document in document()) {
            for format in [DocumentFormat::Json, DocumentFormat::Toml, DocumentFormat::Yaml] {
                let text = write(&document, format).unwrap();
                let value = read(&text, format).unwrap_or_else(|error| panic!("{format}: {error}\n{text}"));
                prop_assert_eq!(&value, &document.to_value(), "{}:\n{}", format, text);
                let again: Document = serde_json::from_value(value).unwrap();
                prop_assert_eq!(&again, &document, "{}", format);
            }
        }

        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,200}|[-:{}\\[\\]a \\n\"'#&*!|>%]{0,200}") {
            for format in [DocumentFormat::Json, DocumentFormat::Toml, DocumentFormat::Yaml] {
                let _ = read(&text, format);
            }
        }
    }

    #[test]
    fn what_a_client_likes_best() {
        let check = |header: &str, expected: Option<DocumentFormat>| {
            assert_eq!(DocumentFormat::accepted(header), expected, "{header:?}");
        };
        check("application/json", Some(DocumentFormat::Json));
        check("*/*", Some(DocumentFormat::Json));
        check("text/html, application/toml", Some(DocumentFormat::Toml));
        check("application/json;q=0.5, Application/YAML;charset=utf-8;q=0.6", Some(DocumentFormat::Yaml));
        check("application/json;q=0", None);
        check("application/json;q=much", None);
        check("text/html", None);
        check("", None);
    }

    #[test]
    fn bombs_and_doubles_are_refused() {
        let bomb = (1..40).fold("a0: &a0 [x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
            format!("{text}a{n}: &a{n} [*a{m},*a{m},*a{m},*a{m},*a{m},*a{m},*a{m},*a{m}]\n", m = n - 1)
        });
        assert!(read(&bomb, DocumentFormat::Yaml).is_err());
        assert!(read("a: 1\na: 2\n", DocumentFormat::Yaml).is_err());
        assert!(read("a = 1\na = 2\n", DocumentFormat::Toml).is_err());
        assert!(read(&"[".repeat(100_000), DocumentFormat::Json).is_err());
        assert!(read(&"[".repeat(100_000), DocumentFormat::Yaml).is_err());
        assert!(read(&format!("a = {}", "[".repeat(100_000)), DocumentFormat::Toml).is_err());
    }
}
