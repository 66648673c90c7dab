//! Extractors that refuse in the API's own words: a problem with a pointer instead of a framework's sentence.

use std::{fmt, str::FromStr};

use axum::{
    body::{Bytes, to_bytes},
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::{
    blocking,
    error::{ApiError, Code},
};
use crate::{configuration::Document, desired::Invalid, limits};

/// The key in the path, in its own type.
pub(super) struct Key<K>(pub(super) K);

impl<S: Send + Sync, K: FromStr<Err: fmt::Display>> FromRequestParts<S> for Key<K> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(params) = Path::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| ApiError::at(Code::Invalid, "", &rejection.body_text()))?;
        let [(name, text)] = params.as_slice() else {
            return Err(ApiError::new(Code::Internal, "the path has no key"));
        };
        text.parse()
            .map(Self)
            .map_err(|fault: K::Err| ApiError::invalid(&format!("/{name}"), &Invalid(fault.to_string())))
    }
}

/// The query's parameters; unknown ones are refused.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                let text = rejection.body_text();
                let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                let name = backquoted(text).or_else(|| text.split_once(':').map(|(name, _)| name)).unwrap_or_default();
                Err(ApiError::at(Code::InvalidQuery, &format!("?{name}"), text))
            }
        }
    }
}

/// A body whose type needs something of the path.
pub(super) struct Members(pub(super) Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor).map(Self)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, Strict(value))) = access.next_entry::<String, Strict>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom(format_args!("duplicate field `{name}`")));
            }
            members.insert(name, value);
        }
        Ok(members)
    }
}

/// Any value, in which no object has two members of one name.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(Strict(value)) = access.next_element()? {
                    values.push(value);
                }
                Ok(values.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Value, A::Error> {
                MembersVisitor.visit_map(access).map(Value::Object)
            }
        }

        deserializer.deserialize_any(Any).map(Self)
    }
}

impl Members {
    /// The resource, whose key is among its members. `read_only` members are ignored.
    pub(super) fn named<T: DeserializeOwned>(mut self, read_only: &[&str]) -> Result<T, ApiError> {
        for member in read_only {
            self.0.remove(*member);
        }
        let text = Value::Object(self.0).to_string();
        from_json(text.as_bytes())
    }

    /// The resource whose `key` is the path's; in the body it may be left out, or be the same. `read_only` members are ignored.
    pub(super) fn resource<T: DeserializeOwned>(
        mut self,
        key: &'static str,
        in_path: &str,
        read_only: &[&str],
    ) -> Result<T, ApiError> {
        let said = self.0.insert(key.to_owned(), Value::from(in_path));
        if let Some(said) = said.filter(|said| !said.is_null() && said.as_str() != Some(in_path)) {
            let text = format!("{said} is not the {in_path} of the path; leave it out");
            return Err(ApiError::at(Code::Invalid, &format!("/{key}"), &text));
        }
        self.named(read_only)
    }
}

/// A body that is a file of text.
pub(super) struct File(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for File {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let too_large =
            || ApiError::at(Code::TooLarge, "", &format!("the file has more than {} bytes", limits::IMPORT_BYTES_MAX));
        let bytes = to_bytes(request.into_body(), limits::IMPORT_BYTES_MAX).await.map_err(|_| too_large())?;
        String::from_utf8(bytes.into()).map(Self).map_err(|error| {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = before.split(|byte| *byte == b'\n').count();
            ApiError::at(Code::Invalid, &format!("line {line}"), "is not UTF-8")
        })
    }
}

/// The JSON body: bounded, strict, its faults with their pointer.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        // Without a type it is taken for what it has to be.
        if parts.headers.contains_key(header::CONTENT_TYPE) {
            refuse_other_type(&parts.headers, "application/json")?;
        }
        let bytes = read_bytes(body, limits::BODY_BYTES_MAX, "send one resource at a time").await?;
        from_json(&bytes).map(Self)
    }
}

/// The configuration as a whole.
pub(super) struct Whole(pub(super) Document);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        if parts.headers.contains_key(header::CONTENT_TYPE) {
            refuse_other_type(&parts.headers, "application/json")?;
        }
        let bytes_max = limits::CONFIGURATION_BYTES_MAX;
        let bytes = read_bytes(body, bytes_max, "no configuration is as large").await?;
        // A hundred thousand routes take a while.
        blocking(move || from_json(&bytes).map_err(ApiError::silent_about_passwords_of_all)).await?.map(Self)
    }
}

/// A JSON body that says that it is of this type.
pub(super) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: axum::body::Body,
    media_type: &str,
) -> Result<T, ApiError> {
    refuse_other_type(headers, media_type)?;
    let bytes = read_bytes(body, limits::BODY_BYTES_MAX, "send one resource at a time").await?;
    from_json(&bytes)
}

fn refuse_other_type(headers: &HeaderMap, media_type: &str) -> Result<(), ApiError> {
    let said = headers.get(header::CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or_default());
    if said.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(media_type)) {
        return Ok(());
    }
    let text = format!("{said:?} is not understood; send {media_type}");
    Err(ApiError::at(Code::UnsupportedMediaType, "Content-Type:", &text))
}

/// A body that says how long it is was judged by the gate.
async fn read_bytes(body: axum::body::Body, bytes_max: usize, remedy: &str) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::at(Code::TooLarge, "", &format!("the body has more than {bytes_max} bytes; {remedy}"));
    // A body that ends early fails here as well, and its sender is not there to read the answer.
    to_bytes(body, bytes_max).await.map_err(|_| too_large())
}

pub(super) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Serde would take a list of the values in their order for the object.
    if bytes.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(match serde_json::from_slice::<IgnoredAny>(bytes) {
            Ok(_) => ApiError::at(Code::Invalid, "", "the body is not an object; see /openapi.json"),
            Err(error) => not_json(&error),
        });
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = pointer(error.path());
        let error = error.into_inner();
        let text = error.to_string();
        if !error.is_data() {
            return not_json(&error);
        }
        // The place in the text says less than the pointer.
        let text = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
        let member =
            ["unknown field", "missing field", "duplicate field"].iter().find(|start| text.starts_with(**start));
        let pointer = match member.and_then(|_| backquoted(text)).map(escape) {
            Some(member) if !path.ends_with(&format!("/{member}")) => format!("{path}/{member}"),
            _ => path,
        };
        ApiError::at(Code::Invalid, &pointer, text)
    })?;
    reader.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError::at(Code::InvalidJson, "", &format!("the body is not one JSON value: {error}"))
}

/// RFC 6901.
fn pointer(path: &serde_path_to_error::Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        pointer.push('/');
        match segment {
            Segment::Seq { index } => pointer.push_str(&index.to_string()),
            Segment::Map { key } => pointer.push_str(&escape(key)),
            Segment::Enum { variant } => pointer.push_str(&escape(variant)),
            Segment::Unknown => pointer.push('?'),
        }
    }
    // The place of a value that is no object at all.
    if pointer == "/?" { String::new() } else { pointer }
}

fn escape(member: &str) -> String {
    member.replace('~', "~0").replace('/', "~1")
}

fn backquoted(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('`')?;
    Some(rest.split_once('`')?.0)
}
