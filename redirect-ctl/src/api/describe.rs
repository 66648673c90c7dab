//! Completes the description of the API with what holds for every endpoint of a kind, so that no handler has to repeat it and none can
//! forget it: conditions and PATCH of resources, problems of bodies, parameters and changes.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{
    error, lines, patch, request_id,
    types::{APPLIED_HEADER, REVISION_HEADER},
};

const METHODS: [&str; 5] = ["get", "put", "patch", "post", "delete"];

pub(super) fn complete(description: &mut Value) {
    open_parts(description);
    let Some(paths) = description["paths"].as_object_mut() else { return };
    for item in paths.values_mut().filter_map(Value::as_object_mut) {
        let is_resource = item.contains_key("get") && item.contains_key("put");
        if is_resource {
            let patch = patch_of(&item["put"]);
            item.insert("patch".to_owned(), patch);
        }
        for method in METHODS {
            if let Some(operation) = item.get_mut(method).and_then(Value::as_object_mut) {
                if is_resource {
                    conditions(method, operation);
                }
                common(method, operation);
            }
        }
    }
    visit(description, &mut |object| {
        if object.get("in") == Some(&json!("header"))
            && [json!("If-Match"), json!("If-None-Match")].contains(&object["name"])
        {
            object.insert("schema".to_owned(), json!({"type": "string", "pattern": ENTITY_TAGS}));
        }
    });
}

/// What an answer says beside a body that takes no other members, such as its revision, is a part of an `allOf`; and a part that is closed would
/// forbid the members of those beside it (JSON Schema, section 10.3.2.3). So it is open there, under another name.
fn open_parts(description: &mut Value) {
    let closed = |(name, schema): (&String, &Value)| {
        let mut open = schema.as_object().filter(|schema| schema.get(CLOSED) == Some(&json!(false)))?.clone();
        open.remove(CLOSED);
        Some((format!("{SCHEMAS}{name}"), (format!("{name}_Members"), Value::Object(open))))
    };
    let schemas = description["components"]["schemas"].as_object();
    let closed: HashMap<_, _> = schemas.into_iter().flatten().filter_map(closed).collect();
    let mut opened = Map::new();
    visit(description, &mut |object| {
        for part in object.get_mut("allOf").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some((name, open)) = part["$ref"].as_str().and_then(|name| closed.get(name)) {
                *part = json!({"$ref": format!("{SCHEMAS}{name}")});
                opened.insert(name.clone(), open.clone());
            } else if let Some(part) = part.as_object_mut() {
                part.remove(CLOSED);
            }
        }
    });
    if let Some(schemas) = description["components"]["schemas"].as_object_mut() {
        schemas.append(&mut opened);
    }
}

/// A star, or tags (RFC 9110 section 8.8.3).
const ENTITY_TAGS: &str = r#"^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$"#;

const SCHEMAS: &str = "#/components/schemas/";
const CLOSED: &str = "additionalProperties";

/// Every object, the outer ones first.
fn visit(value: &mut Value, act: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            act(object);
            object.values_mut().for_each(|value| visit(value, act));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| visit(value, act)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// As PUT, of any members.
fn patch_of(put: &Value) -> Value {
    let mut patch = put.clone();
    patch["operationId"] = json!(put["operationId"].as_str().unwrap_or_default().replacen("put_", "patch_", 1));
    patch["description"] = json!(
        "Changes the members that a merge patch (RFC 7396) names; null removes one. Judged as the PUT of the whole, in one step with it."
    );
    patch["requestBody"] = json!({"required": true, "content": {patch::MEDIA_TYPE: {"schema": {"type": "object"}}}});
    if let Some(responses) = patch["responses"].as_object_mut() {
        responses.remove("201");
        problem(responses, "404");
        problem(responses, "409");
    }
    patch
}

fn conditions(method: &str, operation: &mut Map<String, Value>) {
    let header = |name: &str, text: &str| json!({"name": name, "in": "header", "description": text, "schema": {"type": "string"}});
    if let Some(parameters) = operation.entry("parameters").or_insert_with(|| json!([])).as_array_mut() {
        parameters
            .push(header("If-Match", "Entity tags, or `*`: only if the resource is in one of these states; else 412."));
        let text = match method {
            "get" => "Entity tags: 304 if the resource is in one of these states.",
            _ => "`*`: only if there is no such resource; else 412.",
        };
        parameters.push(header("If-None-Match", text));
    }
    let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { return };
    problem(responses, "400");
    problem(responses, "412");
    if method == "get" {
        responses.insert("304".to_owned(), json!({"description": "It is as the entity tag says."}));
    }
    for (code, response) in responses {
        let change = method != "get" && matches!(code.as_str(), "200" | "201" | "204");
        let tagged = matches!(code.as_str(), "200" | "201" | "304");
        let header = |text: &str, kind: &str| json!({"description": text, "schema": {"type": kind}});
        if tagged {
            response["headers"]["ETag"] = header("The revision that changed it last, in quotes", "string");
        }
        if change {
            response["headers"][canonical(REVISION_HEADER)] =
                header("The revision of the configuration at which the change can be seen", "integer");
            response["headers"][canonical(APPLIED_HEADER)] =
                header("`false`: the kernel does not hold it yet", "string");
        }
    }
}

fn common(method: &str, operation: &mut Map<String, Value>) {
    let has_body = operation.contains_key("requestBody");
    let has_parameters = operation.get("parameters").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { return };
    for code in ["400", "403", "500", "503"] {
        problem(responses, code);
    }
    if has_parameters {
        problem(responses, "422");
    }
    if has_body {
        for code in ["413", "415", "422"] {
            problem(responses, code);
        }
    }
    if method != "get" {
        problem(responses, "507");
    }
    if let Some(content) = responses.get_mut("200").and_then(|response| response.get_mut("content")?.as_object_mut())
        && content
            .values()
            .any(|content| content["schema"]["$ref"].as_str().is_some_and(|page| page.contains("/Page_")))
    {
        content.insert(lines::MEDIA_TYPE.to_owned(), json!({"schema": {"type": "string"}}));
    }
    for (code, response) in responses {
        if let Some(content) = response.get_mut("content").and_then(Value::as_object_mut)
            && code.parse::<u16>().is_ok_and(|code| code >= 400)
            && content.values().any(|content| content["schema"]["$ref"] == PROBLEM)
        {
            *content = Map::from_iter([(error::MEDIA_TYPE.to_owned(), json!({"schema": {"$ref": PROBLEM}}))]);
        }
        if response["description"].as_str().is_none_or(str::is_empty) {
            response["description"] = json!(meaning(code));
        }
        response["headers"][canonical(request_id::HEADER)] =
            json!({"description": "Names the request in redirectd's log", "schema": {"type": "string"}});
    }
}

const PROBLEM: &str = "#/components/schemas/Problem";

fn problem(responses: &mut Map<String, Value>, code: &str) {
    responses.entry(code).or_insert_with(
        || json!({"description": meaning(code), "content": {error::MEDIA_TYPE: {"schema": {"$ref": PROBLEM}}}}),
    );
}

fn meaning(code: &str) -> &'static str {
    match code {
        "200" => "Done, or shown.",
        "201" => "It was not there, and is.",
        "204" => "It is gone.",
        "400" => "The body is no JSON, or a parameter or header cannot be read.",
        "403" => "The client may not do this.",
        "404" => "There is no such thing.",
        "409" => "Something else is in the way.",
        "412" => "The resource is not in the state that the request insists on.",
        "413" => "The body is too large.",
        "415" => "The body is of another type than this takes.",
        "422" => "A value cannot be; the pointer says which.",
        "500" => "A fault of redirectd; the cause is in its log.",
        "503" => "Not at the moment; try again.",
        "507" => "The store's disk is full; nothing was changed.",
        _ => "See the code of the problem.",
    }
}

/// As headers are written.
fn canonical(header: &str) -> String {
    let capital = |part: &str| {
        let (first, rest) = part.split_at(part.len().min(1));
        first.to_ascii_uppercase() + rest
    };
    header.split('-').map(capital).collect::<Vec<_>>().join("-")
}
