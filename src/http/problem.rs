//! Errors outside of GraphQL: problem documents (RFC 9457) with a stable `code`.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::set_rate_limit;
use crate::error::{Code, Error, FaultCode};
use crate::time::whole_seconds;

/// A problem document.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    retry_after: Option<Duration>,
    /// The rate limit that is reached, if that is it.
    rate_limit: Option<u32>,
}

/// What is wrong with a field.
#[derive(Debug, Serialize, ToSchema)]
pub struct FieldError {
    /// Which one; null when it is no single one.
    field: Option<&'static str>,
    /// What is wrong, for a program to read.
    code: &'static str,
    /// What is wrong, for a person to read.
    message: Cow<'static, str>,
}

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document<'a> {
    /// Always `about:blank`: `code` says more.
    r#type: &'static str,
    /// The status in words.
    title: &'static str,
    /// The status.
    status: u16,
    /// Stable, for a program to read. Each answer lists those that it may have.
    code: &'static str,
    /// For a person to read.
    detail: &'a str,
    /// What is wrong with which field, if that is it; `code` is that of the first.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}

impl Problem {
    /// A problem with a code of the table.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            status,
            code: code.as_str(),
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            rate_limit: None,
        }
    }

    /// A body that could not be read, with the status that says why.
    pub fn bad_body(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::PAYLOAD_TOO_LARGE => (Code::PayloadTooLarge, "The body is too large."),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                (Code::UnsupportedMediaType, "Send `Content-Type: application/json`.")
            }
            StatusCode::UNPROCESSABLE_ENTITY => {
                (Code::BadRequest, "A field of the body is missing or of the wrong type.")
            }
            _ => (Code::BadRequest, "The body is not well-formed."),
        };
        Self { status, ..Self::new(code, detail) }
    }

    /// Something is there, but not for this method.
    pub fn method_not_allowed() -> Self {
        Self::new(Code::MethodNotAllowed, "This method is not allowed here.")
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Faults(faults) => {
                let taken = faults.iter().all(|fault| fault.code == FaultCode::Taken);
                let errors: Vec<FieldError> = faults
                    .into_iter()
                    .map(|fault| FieldError { field: fault.field, code: fault.code.as_str(), message: fault.message })
                    .collect();
                let first = errors.first();
                Self {
                    status: if taken { StatusCode::CONFLICT } else { StatusCode::UNPROCESSABLE_ENTITY },
                    code: first.map_or(Code::BadUserInput.as_str(), |error| error.code),
                    detail: first.map_or("Invalid input.".into(), |error| match error.field {
                        Some(field) => format!("{field}: {}", error.message).into(),
                        None => error.message.clone(),
                    }),
                    errors,
                    retry_after: None,
                    rate_limit: None,
                }
            }
            other => {
                let rate_limit = other.rate_limit();
                let (code, detail, retry_after) = other.told();
                Self { retry_after, rate_limit, ..Self::new(code, detail) }
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            errors: &self.errors,
        };
        let mut response = (self.status, Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // Whether an address has an account, or a login works, is for its asker alone.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let (Some(limit), Some(wait)) = (self.rate_limit, self.retry_after) {
            set_rate_limit(headers, limit, 0, wait);
        }
        if let Some(wait) = self.retry_after {
            // RFC 9110 section 10.2.3.
            headers.insert(header::RETRY_AFTER, whole_seconds(wait).into());
        }
        response
    }
}
