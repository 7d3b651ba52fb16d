//! Errors outside GraphQL: problem documents (RFC 9457) with a stable `code`. GraphQL errors are in
//! [`super::response`].

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::set_rate_limit;
use crate::error::{Code, Error, UserErrorCode};
use crate::time::whole_seconds;

/// A problem response.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    retry_after: Option<Duration>,
    /// The exceeded rate limit, if any.
    rate_limit: Option<u32>,
}

/// An error about one field of the request.
#[derive(Debug, Serialize, ToSchema)]
pub struct FieldError {
    /// The name of the field, or null if the error is about no single field.
    field: Option<&'static str>,
    /// A stable error code, for programs.
    code: &'static str,
    /// A message for the user.
    message: Cow<'static, str>,
}

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemDocument<'a> {
    /// Always `about:blank`: `code` says more.
    r#type: &'static str,
    /// The reason phrase of the status.
    title: &'static str,
    /// The HTTP status code.
    status: u16,
    /// A stable error code, for programs. Each response of an operation lists its codes.
    code: &'static str,
    /// A message for the user.
    detail: &'a str,
    /// Errors by field, if any. `code` is the code of the first one.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}

impl Problem {
    /// A problem with a stable error code.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let status =
            StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            status,
            code: code.as_str(),
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            rate_limit: None,
        }
    }

    /// A problem with the request body. The status says which.
    pub fn bad_body(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::PAYLOAD_TOO_LARGE => {
                (Code::PayloadTooLarge, "The request body is too large.")
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => (
                Code::UnsupportedMediaType,
                "Send `Content-Type: application/json`.",
            ),
            StatusCode::UNPROCESSABLE_ENTITY => (
                Code::BadRequest,
                "A field of the request body is missing or has the wrong type.",
            ),
            _ => (Code::BadRequest, "The request body is malformed."),
        };
        Self {
            status,
            ..Self::new(code, detail)
        }
    }

    /// The route exists, but not for this method.
    pub fn method_not_allowed() -> Self {
        Self::new(Code::MethodNotAllowed, "This method is not allowed here.")
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::UserErrors(faults) => {
                let taken = faults
                    .iter()
                    .all(|fault| fault.code == UserErrorCode::Taken);
                let errors: Vec<FieldError> = faults
                    .into_iter()
                    .map(|fault| FieldError {
                        field: fault.field,
                        code: fault.code.as_str(),
                        message: fault.message,
                    })
                    .collect();
                let first = errors.first();
                Self {
                    status: if taken {
                        StatusCode::CONFLICT
                    } else {
                        StatusCode::UNPROCESSABLE_ENTITY
                    },
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
                let (code, detail, retry_after) = other.into_client();
                Self {
                    retry_after,
                    rate_limit,
                    ..Self::new(code, detail)
                }
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = ProblemDocument {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            errors: &self.errors,
        };
        let mut response = (self.status, Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // Responses may reveal whether a login works, so they must not be cached.
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
