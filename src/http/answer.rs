//! What a client is told of an operation: the library's response made fit to leave the house.
//!
//! A refused request has errors and no `data`; an executed one has `data`, if only null. Errors are few and short, each
//! has a code of the one table and the id of its request. An answer that would be too large is not sent at all.

use std::sync::Arc;
use std::time::Duration;

use async_graphql::{ErrorExtensionValues, Pos, Response, ServerError, Value};
use serde::Serialize;

use crate::admission::Refusal;
use crate::error::{Code, Error};
use crate::graphql::MAX_BYTES;
use crate::graphql::conflict::Conflict;
use crate::graphql::deprecation::Deprecation;
use crate::graphql::json::{self, Json, Serialized};
use crate::store::export;
use crate::time::whole_seconds;

const MAX_ERRORS: usize = 10;
const MAX_MESSAGE: usize = 200;

/// Why a request is not executed.
#[derive(Debug)]
pub struct Refused {
    /// The code of the table.
    pub code: Code,
    message: String,
    position: Option<(usize, usize)>,
    /// When to try again, if that helps.
    pub retry_after: Option<Duration>,
    /// The rate limit that is reached, if that is it.
    rate_limit: Option<u32>,
}

impl Refused {
    /// A refusal in these words.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), position: None, retry_after: None, rate_limit: None }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let rate_limit = error.rate_limit();
        let (code, message, retry_after) = error.told();
        Self { retry_after, rate_limit, ..Self::new(code, message) }
    }
}

impl From<Conflict> for Refused {
    fn from(Conflict { message, position }: Conflict) -> Self {
        let position = Some((position.line, position.column));
        Self { position, ..Self::new(Code::ValidationFailed, message) }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { position: refusal.location, ..Self::new(refusal.code, refusal.message) }
    }
}

/// The answer to one operation, or one event of a subscription.
#[derive(Debug)]
pub struct Answer {
    /// `None` when the request was not executed.
    data: Option<Value>,
    errors: Vec<ServerError>,
    extensions: Extensions,
    /// When to try again, if that helps.
    pub retry_after: Option<Duration>,
    /// The rate limit that is reached, if that is it.
    pub rate_limit: Option<u32>,
    /// Whether an account is in it: then it may be larger than others.
    pub is_export: bool,
}

impl Answer {
    /// The answer to a request that is not executed.
    pub fn refused(refused: Refused, request_id: &str) -> Self {
        let Refused { code, message, position, retry_after, rate_limit } = refused;
        let mut extensions = ErrorExtensionValues::default();
        extensions.set("code", code.as_str());
        if let Some(wait) = retry_after {
            extensions.set("retryAfter", whole_seconds(wait));
        }
        let mut error = ServerError::new(message, position.map(|(line, column)| Pos { line, column }));
        error.extensions = Some(extensions);
        finish(&mut error, Code::BadRequest, request_id);
        Self {
            data: None,
            errors: vec![error],
            extensions: Extensions::default(),
            retry_after,
            rate_limit,
            is_export: false,
        }
    }

    /// What the library made of an operation.
    pub fn of(response: Response, request_id: &str) -> Self {
        let Response { data, mut errors, .. } = response;
        // A part of an answer that is too large is none.
        if let Some(error) = errors.iter().find(|error| is_of(error, Code::DocumentTooComplex)) {
            return Self::refused(Refused::new(Code::DocumentTooComplex, error.message.clone()), request_id);
        }
        // What fails on the way to an answer has a path; without one it was the document or its variables.
        let refused = data == Value::Null && !errors.is_empty() && errors.iter().all(|error| error.path.is_empty());
        let default = if refused { Code::ValidationFailed } else { Code::BadUserInput };
        // Nothing came of it, and it may be sent again.
        let is_unavailable = |error| is_of(error, Code::Unavailable);
        let unavailable = !errors.is_empty() && is_empty(&data) && errors.iter().all(is_unavailable);
        errors.truncate(MAX_ERRORS);
        errors.iter_mut().for_each(|error| finish(error, default, request_id));
        Self {
            data: (!refused && !unavailable).then_some(data),
            errors,
            extensions: Extensions::default(),
            retry_after: unavailable.then_some(Duration::from_secs(1)),
            rate_limit: None,
            is_export: false,
        }
    }

    /// With what the operation cost, in points, and the place in the log from which on a stream misses nothing of what
    /// the operation has not seen.
    pub fn with(self, cost: u32, sync: Option<String>) -> Self {
        let sync = sync.map(|cursor| Sync { cursor });
        Self { extensions: Extensions { cost: Some(cost), sync, ..self.extensions }, ..self }
    }

    /// With what the operation uses that is going to be removed.
    pub fn warning(self, deprecations: Arc<[Deprecation]>) -> Self {
        Self { extensions: Extensions { deprecations, ..self.extensions }, ..self }
    }

    /// With an account in it.
    pub fn exporting(self, is_export: bool) -> Self {
        Self { is_export, ..self }
    }

    /// With the cursor from which a subscription that failed goes on.
    pub fn resumable(mut self, cursor: &str) -> Self {
        if let Some(error) = self.errors.first_mut() {
            error.extensions.get_or_insert_default().set("cursor", cursor);
        }
        self
    }

    /// Whether the operation was executed.
    pub fn is_executed(&self) -> bool {
        self.data.is_some()
    }

    /// Whether the operation was executed and yielded nothing but errors.
    pub fn is_fruitless(&self) -> bool {
        self.data.as_ref().is_none_or(|data| *data == Value::Null) && !self.errors.is_empty()
    }

    /// Whether it says that the session no longer holds. Of a running subscription that is not told as an event: the
    /// connection ends instead, and the client comes back with a fresh token and the operation.
    pub fn ends_session(&self) -> bool {
        self.is_fruitless() && self.code() == Some(Code::Unauthenticated)
    }

    /// Whether there are errors.
    pub fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// The code of the first error.
    pub fn code(&self) -> Option<Code> {
        let error = self.errors.first()?;
        match error.extensions.as_ref()?.get("code")? {
            Value::String(code) => Code::parse(code),
            _ => None,
        }
    }

    /// The answer as it is sent over HTTP; nothing if it is too large for that.
    pub fn to_body(&self) -> Option<Vec<u8>> {
        self.written(if self.is_export { MAX_BYTES + export::MAX_BYTES } else { MAX_BYTES })
    }

    fn written(&self, most: usize) -> Option<Vec<u8>> {
        let (errors, extensions) = (Serialized(&self.errors), Serialized(&self.extensions));
        let members: [Option<(&str, &dyn Json)>; 3] = [
            (!self.errors.is_empty()).then_some(("errors", &errors)),
            self.data.as_ref().map(|data| ("data", data as &dyn Json)),
            (!self.extensions.is_empty()).then_some(("extensions", &extensions)),
        ];
        let mut out = Vec::with_capacity(512);
        json::object(&mut out, members.into_iter().flatten(), |(name, value), out| json::member(out, name, value));
        (out.len() <= most).then_some(out)
    }

    /// The same as text, for a socket or a stream.
    pub fn to_text(&self) -> Option<String> {
        String::from_utf8(self.written(MAX_BYTES)?).ok()
    }

    /// The errors, as the `error` message of a socket has them.
    pub fn errors(&self) -> &[ServerError] {
        &self.errors
    }
}

fn is_of(error: &ServerError, code: Code) -> bool {
    let found = error.extensions.as_ref().and_then(|extensions| extensions.get("code"));
    matches!(found, Some(Value::String(found)) if found == code.as_str())
}

/// Whether there is nothing at the root but nulls.
fn is_empty(data: &Value) -> bool {
    match data {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(|value| *value == Value::Null),
        _ => false,
    }
}

/// The answer in place of one that is too large.
pub fn too_large() -> Refused {
    Error::too_large().into()
}

/// The answer in place of one to a mutation that was executed, while too much is unread.
pub fn unsent() -> Refused {
    let message = "It was executed, but its answer is not sent: too many bytes of earlier answers are unread.";
    Refused::new(Code::DocumentTooComplex, message)
}

#[derive(Debug, Default, Serialize)]
struct Extensions {
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sync: Option<Sync>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "members")]
    deprecations: Arc<[Deprecation]>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.cost.is_none() && self.sync.is_none() && self.deprecations.is_empty()
    }
}

/// Without a feature of its own, serde writes what is in an `Arc` and not the `Arc`.
fn members<S: serde::Serializer>(list: &Arc<[Deprecation]>, serializer: S) -> Result<S::Ok, S::Error> {
    list.as_ref().serialize(serializer)
}

#[derive(Debug, Serialize)]
struct Sync {
    cursor: String,
}

/// Cuts the message, and sees to it that there is a code of the table and the id of the request.
fn finish(error: &mut ServerError, default: Code, request_id: &str) {
    if let Some((end, _)) = error.message.char_indices().nth(MAX_MESSAGE) {
        error.message.truncate(end);
    }
    let extensions = error.extensions.get_or_insert_default();
    let code = match extensions.get("code") {
        None => default,
        Some(Value::String(code)) => Code::parse(code).unwrap_or(Code::Internal),
        Some(_) => Code::Internal,
    };
    extensions.set("code", code.as_str());
    extensions.set("requestId", request_id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_tell_what_there_is_to_tell() {
        let written = |answer: &Answer| answer.to_text().expect("small");
        let answer = || Answer::of(Response::new(Value::Null), "1");
        assert_eq!(written(&answer()), r#"{"data":null}"#);
        let deprecated = Deprecation { coordinate: "Task.name".to_owned(), reason: "Use `title`.".to_owned() };
        assert_eq!(
            written(&answer().with(3, None).warning([deprecated].into())),
            r#"{"data":null,"extensions":{"cost":3,"deprecations":[{"coordinate":"Task.name","reason":"Use `title`."}]}}"#
        );
    }
}
