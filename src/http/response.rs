//! GraphQL responses as clients see them: the library's response, made safe to send.
//!
//! A rejected request has `errors` and no `data`; an executed one has `data`, possibly null. The
//! number and length of errors are limited, and each error has a stable code and the id of its
//! request. A response that exceeds the size limit is replaced by an error.

use std::sync::Arc;
use std::time::Duration;

use async_graphql::{ErrorExtensionValues, Pos, Response, ServerError, Value};
use serde::Serialize;

use crate::admission::AdmissionError;
use crate::error::{Code, Error};
use crate::graphql::MAX_RESPONSE_BYTES;
use crate::graphql::deprecation::Deprecation;
use crate::graphql::field_merging::FieldConflict;
use crate::graphql::json::{self, ViaSerde, WriteJson};
use crate::store::export;
use crate::time::whole_seconds;

const MAX_ERRORS: usize = 10;
const MAX_MESSAGE_CHARS: usize = 200;

/// A request error: why an operation was not executed.
#[derive(Debug)]
pub struct RequestError {
    /// Stable error code.
    pub code: Code,
    message: String,
    position: Option<(usize, usize)>,
    /// When a retry may succeed.
    pub retry_after: Option<Duration>,
    /// The exceeded rate limit, if any.
    rate_limit: Option<u32>,
}

impl RequestError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            position: None,
            retry_after: None,
            rate_limit: None,
        }
    }
}

impl From<Error> for RequestError {
    fn from(error: Error) -> Self {
        let rate_limit = error.rate_limit();
        let (code, message, retry_after) = error.into_client();
        Self {
            retry_after,
            rate_limit,
            ..Self::new(code, message)
        }
    }
}

impl From<FieldConflict> for RequestError {
    fn from(FieldConflict { message, position }: FieldConflict) -> Self {
        let position = Some((position.line, position.column));
        Self {
            position,
            ..Self::new(Code::ValidationFailed, message)
        }
    }
}

impl From<AdmissionError> for RequestError {
    fn from(refusal: AdmissionError) -> Self {
        Self {
            position: refusal.location,
            ..Self::new(refusal.code, refusal.message)
        }
    }
}

/// The response to an operation, or to one event of a subscription.
#[derive(Debug)]
pub struct GraphqlResponse {
    /// `None` when the request was not executed.
    data: Option<Value>,
    errors: Vec<ServerError>,
    extensions: ResponseExtensions,
    /// When a retry may succeed.
    pub retry_after: Option<Duration>,
    /// The exceeded rate limit, if any.
    pub rate_limit: Option<u32>,
    /// Whether it contains an account export, which has a higher size limit.
    pub is_export: bool,
}

impl GraphqlResponse {
    /// Response to a request that is not executed.
    pub fn from_error(refused: RequestError, request_id: &str) -> Self {
        let RequestError {
            code,
            message,
            position,
            retry_after,
            rate_limit,
        } = refused;
        let mut extensions = ErrorExtensionValues::default();
        extensions.set("code", code.as_str());
        if let Some(wait) = retry_after {
            extensions.set("retryAfter", whole_seconds(wait));
        }
        let mut error =
            ServerError::new(message, position.map(|(line, column)| Pos { line, column }));
        error.extensions = Some(extensions);
        sanitize_error(&mut error, Code::BadRequest, request_id);
        Self {
            data: None,
            errors: vec![error],
            extensions: ResponseExtensions::default(),
            retry_after,
            rate_limit,
            is_export: false,
        }
    }

    /// Converts a response of the library.
    pub fn from_response(response: Response, request_id: &str) -> Self {
        let Response {
            data, mut errors, ..
        } = response;
        // A response that is too large has no usable part.
        if let Some(error) = errors
            .iter()
            .find(|error| has_code(error, Code::DocumentTooComplex))
        {
            return Self::from_error(
                RequestError::new(Code::DocumentTooComplex, error.message.clone()),
                request_id,
            );
        }
        // Execution errors have a path. An error without one concerns the document or its
        // variables.
        let refused = data == Value::Null
            && !errors.is_empty()
            && errors.iter().all(|error| error.path.is_empty());
        let default = if refused {
            Code::ValidationFailed
        } else {
            Code::BadUserInput
        };
        // Nothing was resolved, so the client can retry.
        let is_unavailable = |error| has_code(error, Code::Unavailable);
        let unavailable =
            !errors.is_empty() && is_empty(&data) && errors.iter().all(is_unavailable);
        errors.truncate(MAX_ERRORS);
        errors
            .iter_mut()
            .for_each(|error| sanitize_error(error, default, request_id));
        Self {
            data: (!refused && !unavailable).then_some(data),
            errors,
            extensions: ResponseExtensions::default(),
            retry_after: unavailable.then_some(Duration::from_secs(1)),
            rate_limit: None,
            is_export: false,
        }
    }

    /// Adds the cost in points, and the cursor from which a subscription delivers every event that
    /// the operation did not observe.
    pub fn with_extensions(self, cost: u32, sync: Option<String>) -> Self {
        let sync = sync.map(|cursor| SyncExtension { cursor });
        Self {
            extensions: ResponseExtensions {
                cost: Some(cost),
                sync,
                ..self.extensions
            },
            ..self
        }
    }

    /// Adds warnings about the deprecated parts of the schema that the operation uses.
    pub fn with_deprecations(self, deprecations: Arc<[Deprecation]>) -> Self {
        Self {
            extensions: ResponseExtensions {
                deprecations,
                ..self.extensions
            },
            ..self
        }
    }

    /// Marks whether the response contains an account export.
    pub fn with_export_flag(self, is_export: bool) -> Self {
        Self { is_export, ..self }
    }

    /// Adds the cursor from which a failed subscription can resume.
    pub fn with_resume_cursor(mut self, cursor: &str) -> Self {
        if let Some(error) = self.errors.first_mut() {
            error
                .extensions
                .get_or_insert_default()
                .set("cursor", cursor);
        }
        self
    }

    pub fn is_executed(&self) -> bool {
        self.data.is_some()
    }

    /// Whether the response has errors and no data.
    pub fn has_only_errors(&self) -> bool {
        self.data.as_ref().is_none_or(|data| *data == Value::Null) && !self.errors.is_empty()
    }

    /// Whether it reports that the session has ended. A running subscription does not send this as
    /// an event: the connection ends, and the client reconnects with a fresh token.
    pub fn ends_session(&self) -> bool {
        self.has_only_errors() && self.code() == Some(Code::Unauthenticated)
    }

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

    /// Serializes the response for HTTP. Returns `None` if it is too large.
    pub fn to_body(&self) -> Option<Vec<u8>> {
        self.serialize(if self.is_export {
            MAX_RESPONSE_BYTES + export::MAX_EXPORT_BYTES
        } else {
            MAX_RESPONSE_BYTES
        })
    }

    fn serialize(&self, max: usize) -> Option<Vec<u8>> {
        let (errors, extensions) = (ViaSerde(&self.errors), ViaSerde(&self.extensions));
        let members: [Option<(&str, &dyn WriteJson)>; 3] = [
            (!self.errors.is_empty()).then_some(("errors", &errors)),
            self.data
                .as_ref()
                .map(|data| ("data", data as &dyn WriteJson)),
            (!self.extensions.is_empty()).then_some(("extensions", &extensions)),
        ];
        let mut out = Vec::with_capacity(512);
        json::write_object(
            &mut out,
            members.into_iter().flatten(),
            |(name, value), out| json::write_member(out, name, value),
        );
        (out.len() <= max).then_some(out)
    }

    /// Serializes the response as text, for a socket or an event stream. Returns `None` if it is
    /// too large.
    pub fn to_text(&self) -> Option<String> {
        String::from_utf8(self.serialize(MAX_RESPONSE_BYTES)?).ok()
    }

    /// The errors, for the `error` message of a socket.
    pub fn errors(&self) -> &[ServerError] {
        &self.errors
    }
}

fn has_code(error: &ServerError, code: Code) -> bool {
    let found = error
        .extensions
        .as_ref()
        .and_then(|extensions| extensions.get("code"));
    matches!(found, Some(Value::String(found)) if found == code.as_str())
}

/// Whether every root field is null.
fn is_empty(data: &Value) -> bool {
    match data {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(|value| *value == Value::Null),
        _ => false,
    }
}

/// The error that replaces a response that is too large.
pub fn too_large() -> RequestError {
    Error::too_large().into()
}

/// The error that replaces the response to an executed mutation while the client has too many
/// unread bytes.
pub fn response_dropped() -> RequestError {
    let message = "The mutation was executed, but its response is not sent: too many earlier bytes are unread.";
    RequestError::new(Code::DocumentTooComplex, message)
}

#[derive(Debug, Default, Serialize)]
struct ResponseExtensions {
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sync: Option<SyncExtension>,
    #[serde(
        skip_serializing_if = "<[_]>::is_empty",
        serialize_with = "serialize_deprecations"
    )]
    deprecations: Arc<[Deprecation]>,
}

impl ResponseExtensions {
    fn is_empty(&self) -> bool {
        self.cost.is_none() && self.sync.is_none() && self.deprecations.is_empty()
    }
}

/// serde serializes `Arc` only with its `rc` feature.
fn serialize_deprecations<S: serde::Serializer>(
    list: &Arc<[Deprecation]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    list.as_ref().serialize(serializer)
}

#[derive(Debug, Serialize)]
struct SyncExtension {
    cursor: String,
}

/// Truncates the message, and sets a known code and the id of the request.
fn sanitize_error(error: &mut ServerError, default: Code, request_id: &str) {
    if let Some((end, _)) = error.message.char_indices().nth(MAX_MESSAGE_CHARS) {
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
    fn extensions_have_what_is_set() {
        let written = |answer: &GraphqlResponse| answer.to_text().expect("small");
        let answer = || GraphqlResponse::from_response(Response::new(Value::Null), "1");
        assert_eq!(written(&answer()), r#"{"data":null}"#);
        let deprecated = Deprecation {
            coordinate: "Task.name".to_owned(),
            reason: "Use `title`.".to_owned(),
        };
        assert_eq!(
            written(
                &answer()
                    .with_extensions(3, None)
                    .with_deprecations([deprecated].into())
            ),
            r#"{"data":null,"extensions":{"cost":3,"deprecations":[{"coordinate":"Task.name","reason":"Use `title`."}]}}"#
        );
    }
}
