//! Checks every answer of the `/auth` routes in any test against the OpenAPI document.

use std::sync::LazyLock;

use fasttrack::http::openapi;
use jsonschema::Validator;
use reqwest::Request;
use serde_json::{Map, Value, json};

use super::Reply;

pub(crate) static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(&openapi::document()).expect("JSON"));

/// Builds a validator for a schema of the document. With `closed`, undeclared members are errors.
pub(crate) fn validator(schema: &Value, closed: bool) -> Validator {
    let mut schema = schema.as_object().cloned().unwrap_or_else(Map::new);
    schema.insert("components".to_owned(), DOCUMENT["components"].clone());
    if closed {
        schema.insert("unevaluatedProperties".to_owned(), json!(false));
    }
    jsonschema::validator_for(&Value::Object(schema)).expect("a schema")
}

/// Asserts that status, content type and body of an answer are documented.
pub(crate) fn check(request: &Request, reply: &Reply) {
    let (method, path) = (
        request.method().as_str().to_ascii_lowercase(),
        request.url().path(),
    );
    let what = format!("{method} {path}: {} {}", reply.status, reply.body);
    if path.starts_with("/auth/") && method == "post" {
        assert_eq!(
            reply
                .headers
                .get("cache-control")
                .map(|value| value.as_bytes()),
            Some(&b"no-store"[..]),
            "{what}"
        );
    }
    if reply.status == 429 && reply.body["code"] != "LOCKED_OUT" {
        assert!(
            reply.headers.contains_key("retry-after"),
            "{what}: without retry-after"
        );
        // The concurrency limit applies even with rate limits disabled; there is no quota to report
        // then.
        let is_concurrency = reply.body["errors"][0]["message"]
            .as_str()
            .is_some_and(|text| text.contains("concurrent"));
        let names = ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"];
        let stated = names
            .iter()
            .filter(|name| reply.headers.contains_key(**name))
            .count();
        assert!(
            stated == names.len() || (is_concurrency && stated == 0),
            "{what}: without RateLimit headers"
        );
    }
    if !path.starts_with("/auth/")
        || ["NOT_FOUND", "METHOD_NOT_ALLOWED"]
            .iter()
            .any(|code| reply.body["code"] == *code)
    {
        return;
    }
    let operation = &DOCUMENT["paths"][path][method.as_str()];
    if operation.is_null() {
        assert_eq!(method, "get", "{what}: not documented");
        return;
    }
    let answer = &operation["responses"][reply.status.as_str()];
    assert!(answer.is_object(), "{what}: status not documented");
    let Some((kind, content)) = answer["content"]
        .as_object()
        .and_then(|content| content.iter().next())
    else {
        assert_eq!(reply.body, Value::Null, "{what}: body not documented");
        return;
    };
    assert_eq!(reply.headers["content-type"], kind.as_str(), "{what}");
    if let Err(error) = validator(&content["schema"], true).validate(&reply.body) {
        panic!("{what}: {error}");
    }
}
