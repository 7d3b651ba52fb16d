//! The error type of the program, and what clients see of it.
//!
//! [`Error`] has no `Display`, so that internal details, such as a database message, cannot reach a
//! client by accident. The entry points in `graphql` and `http` call [`Error::into_client`], which
//! returns a [`Code`] and a safe message, and logs an internal cause once.

use std::borrow::Cow;
use std::time::Duration;

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::limits::decode_budget::OverBudget;

/// The stable codes of all errors that clients see, as `extensions.code` of a GraphQL error or
/// `code` of a problem document. [`Code::description`] describes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    BadRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
    NotAcceptable,
    MethodNotAllowed,
    ParseFailed,
    ValidationFailed,
    DocumentTooLarge,
    DocumentTooComplex,
    VariablesTooLarge,
    OperationNotFound,
    OperationNameRequired,
    PersistedQueryNotFound,
    DocumentNotTrusted,
    BadUserInput,
    Unauthenticated,
    InvalidCredentials,
    LockedOut,
    EmailNotVerified,
    Forbidden,
    NotFound,
    RateLimited,
    CursorExpired,
    Unavailable,
    Internal,
}

impl Code {
    /// All codes, for the table in the documentation and its test.
    pub const ALL: [Self; 25] = [
        Self::BadRequest,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::NotAcceptable,
        Self::MethodNotAllowed,
        Self::ParseFailed,
        Self::ValidationFailed,
        Self::DocumentTooLarge,
        Self::DocumentTooComplex,
        Self::VariablesTooLarge,
        Self::OperationNotFound,
        Self::OperationNameRequired,
        Self::PersistedQueryNotFound,
        Self::DocumentNotTrusted,
        Self::BadUserInput,
        Self::Unauthenticated,
        Self::InvalidCredentials,
        Self::LockedOut,
        Self::EmailNotVerified,
        Self::Forbidden,
        Self::NotFound,
        Self::RateLimited,
        Self::CursorExpired,
        Self::Unavailable,
        Self::Internal,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BAD_REQUEST",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::UnsupportedMediaType => "UNSUPPORTED_MEDIA_TYPE",
            Self::NotAcceptable => "NOT_ACCEPTABLE",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::ParseFailed => "GRAPHQL_PARSE_FAILED",
            Self::ValidationFailed => "GRAPHQL_VALIDATION_FAILED",
            Self::DocumentTooLarge => "DOCUMENT_TOO_LARGE",
            Self::DocumentTooComplex => "DOCUMENT_TOO_COMPLEX",
            Self::VariablesTooLarge => "VARIABLES_TOO_LARGE",
            Self::OperationNotFound => "OPERATION_NOT_FOUND",
            Self::OperationNameRequired => "OPERATION_NAME_REQUIRED",
            Self::PersistedQueryNotFound => "PERSISTED_QUERY_NOT_FOUND",
            Self::DocumentNotTrusted => "DOCUMENT_NOT_TRUSTED",
            Self::BadUserInput => "BAD_USER_INPUT",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::InvalidCredentials => "INVALID_CREDENTIALS",
            Self::LockedOut => "LOCKED_OUT",
            Self::EmailNotVerified => "EMAIL_NOT_VERIFIED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::RateLimited => "RATE_LIMITED",
            Self::CursorExpired => "CURSOR_EXPIRED",
            Self::Unavailable => "SERVICE_UNAVAILABLE",
            Self::Internal => "INTERNAL_SERVER_ERROR",
        }
    }

    /// The meaning, as in the API documentation.
    pub const fn description(self) -> &'static str {
        match self {
            Self::BadRequest => {
                "The request is malformed: invalid JSON, a missing member, or a member of the wrong type."
            }
            Self::PayloadTooLarge => "The request body is too large.",
            Self::UnsupportedMediaType => {
                "The media type of the body is not supported: send UTF-8 encoded `application/json`."
            }
            Self::NotAcceptable => "`Accept` excludes every media type of the response.",
            Self::MethodNotAllowed => {
                "The method is not allowed: a mutation by GET, or a method that the route does not support."
            }
            Self::ParseFailed => "The document does not parse.",
            Self::ValidationFailed => "The document is not valid for the schema.",
            Self::DocumentTooLarge => {
                "The document has too many bytes, tokens or nested brackets, or an overlong name or number."
            }
            Self::DocumentTooComplex => {
                "The document requests too much, or its response would be too large."
            }
            Self::VariablesTooLarge => "The variables have too many values or nest too deeply.",
            Self::OperationNotFound => "The document has no operation with the requested name.",
            Self::OperationNameRequired => {
                "The document has several operations and `operationName` is missing."
            }
            Self::PersistedQueryNotFound => "The document hash is unknown: send the document, too.",
            Self::DocumentNotTrusted => {
                "The server executes listed documents only, and this one is not listed."
            }
            Self::BadUserInput => {
                "An argument or variable is out of range or of the wrong kind, such as a cursor of another list."
            }
            Self::Unauthenticated => "The access token is missing, expired, revoked or invalid.",
            Self::InvalidCredentials => "REST: the identifier is unknown or the password is wrong.",
            Self::LockedOut => {
                "Too many wrong passwords from this address or session, or for this identifier. Try again later."
            }
            Self::EmailNotVerified => {
                "REST: the password is correct, but the e-mail address must be verified before logging in."
            }
            Self::Forbidden => "The action is not permitted for this viewer, origin or host name.",
            Self::NotFound => "The object does not exist or is not visible to the viewer.",
            Self::RateLimited => {
                "Too many requests. Try again after the time given in `Retry-After`."
            }
            Self::CursorExpired => "The cursor is older than the oldest event in the log.",
            Self::Unavailable => {
                "The server is overloaded, timed out, or lacks a component it needs. Try again."
            }
            Self::Internal => "An internal error. Find its cause in the server log by request id.",
        }
    }

    /// The HTTP status if the whole request fails with this code.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest
            | Self::ParseFailed
            | Self::DocumentTooLarge
            | Self::VariablesTooLarge
            | Self::PersistedQueryNotFound
            | Self::BadUserInput
            | Self::CursorExpired => 400,
            Self::Unauthenticated | Self::InvalidCredentials => 401,
            Self::DocumentNotTrusted | Self::EmailNotVerified | Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::PayloadTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::ValidationFailed
            | Self::DocumentTooComplex
            | Self::OperationNotFound
            | Self::OperationNameRequired => 422,
            Self::RateLimited | Self::LockedOut => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// Whether the code concerns the document or variables of a well-formed request. Clients that
    /// accept `application/json` only then get status 200 (GraphQL over HTTP).
    pub const fn is_document_error(self) -> bool {
        matches!(
            self,
            Self::ParseFailed
                | Self::ValidationFailed
                | Self::DocumentTooLarge
                | Self::DocumentTooComplex
                | Self::VariablesTooLarge
                | Self::OperationNotFound
                | Self::OperationNameRequired
                | Self::PersistedQueryNotFound
                | Self::BadUserInput
        )
    }

    /// The inverse of [`as_str`](Self::as_str).
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }
}

/// The kind of a user error, an expected failure that the client can correct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, async_graphql::Enum)]
#[graphql(name = "UserErrorCode")]
pub enum UserErrorCode {
    /// The value is required but is empty, only white space, or null.
    Blank,
    /// The value is too short. Lengths are counted in Unicode code points.
    TooShort,
    /// The value is too long. Lengths are counted in Unicode code points.
    TooLong,
    /// The value has the wrong format or is not allowed here.
    Invalid,
    /// The value is already in use.
    Taken,
    /// The object does not exist or is not visible to the viewer.
    NotFound,
    /// The time has already passed.
    InThePast,
    /// The task cannot change from its current status to the requested one.
    InvalidStatusTransition,
    /// The project is archived and accepts no new tasks.
    Archived,
    /// The object has changed since `expectedVersion`. Read it again.
    Conflict,
    /// The current password is wrong.
    WrongPassword,
    /// The new password violates the password policy or is too common.
    WeakPassword,
    /// The account, project or task holds as much as it may.
    QuotaExceeded,
}

impl UserErrorCode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blank => "BLANK",
            Self::TooShort => "TOO_SHORT",
            Self::TooLong => "TOO_LONG",
            Self::Invalid => "INVALID",
            Self::Taken => "TAKEN",
            Self::NotFound => "NOT_FOUND",
            Self::InThePast => "IN_THE_PAST",
            Self::InvalidStatusTransition => "INVALID_STATUS_TRANSITION",
            Self::Archived => "ARCHIVED",
            Self::Conflict => "CONFLICT",
            Self::WrongPassword => "WRONG_PASSWORD",
            Self::WeakPassword => "WEAK_PASSWORD",
            Self::QuotaExceeded => "QUOTA_EXCEEDED",
        }
    }
}

/// A user error: an expected failure that the client can correct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserError {
    /// The input field concerned. `None` if the error concerns no single field.
    pub field: Option<&'static str>,
    pub code: UserErrorCode,
    /// A human-readable description.
    pub message: Cow<'static, str>,
}

impl UserError {
    /// A user error about one field.
    pub fn new(
        field: &'static str,
        code: UserErrorCode,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            field: Some(field),
            code,
            message: message.into(),
        }
    }
}

/// The error of a request or command.
#[derive(Debug)]
pub enum Error {
    /// User errors. Nothing was written.
    UserErrors(Vec<UserError>),
    /// A request error: the request is refused as a whole.
    Refused {
        code: Code,
        /// A human-readable description.
        message: Cow<'static, str>,
        /// When to try again, if that can help.
        retry_after: Option<Duration>,
    },
    /// The client has exhausted a rate limit.
    RateLimited {
        /// The limit per minute.
        limit: u32,
        /// When the next request fits.
        retry_after: Duration,
    },
    /// The cursor is older than the retention horizon of the event log.
    CursorExpired {
        /// The oldest valid cursor.
        oldest: String,
    },
    /// The database aborted the transaction (serialization failure or deadlock). It can be retried.
    Aborted(DieselError),
    /// A defect or a failed component. Logged, never sent to clients.
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

/// A result with the program's own error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A request error.
    pub fn refused(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused {
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    /// A single user error about one field.
    pub fn user_error(
        field: &'static str,
        code: UserErrorCode,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::UserErrors(vec![UserError::new(field, code, message)])
    }

    /// A user error: the object named by `field` does not exist or is not visible to the viewer.
    pub fn not_found(field: &'static str, what: &'static str) -> Self {
        Self::user_error(
            field,
            UserErrorCode::NotFound,
            format!("There is no such {what}."),
        )
    }

    /// Whether the slow path would fail the same way: async-graphql's executor, which takes over
    /// when batch resolution (`graphql::batch`) fails. Not about retries by the client.
    pub const fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::Aborted(_)
                | Self::Refused {
                    code: Code::Unavailable | Code::DocumentTooComplex,
                    ..
                }
        )
    }

    /// The response exceeds 4 MiB.
    pub fn too_large() -> Self {
        Self::refused(
            Code::DocumentTooComplex,
            "The response would exceed 4 MiB. Request fewer items or fields.",
        )
    }

    /// An argument or variable is invalid.
    pub fn bad_input(message: impl Into<Cow<'static, str>>) -> Self {
        Self::refused(Code::BadUserInput, message)
    }

    /// The operation requires an authenticated user.
    pub fn unauthenticated() -> Self {
        Self::refused(
            Code::Unauthenticated,
            "Authentication required: send a valid access token.",
        )
    }

    /// The object is visible, but the action is not permitted.
    pub fn forbidden() -> Self {
        Self::refused(Code::Forbidden, "You are not permitted to do this.")
    }

    /// The server is overloaded or a component is unavailable. Suggests a retry after one second.
    pub fn unavailable() -> Self {
        Self::Refused {
            code: Code::Unavailable,
            message: "The service is temporarily unavailable. Try again.".into(),
            retry_after: Some(Duration::from_secs(1)),
        }
    }

    /// An internal error with its cause, which only the log shows.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }

    /// The exhausted limit, if this is a rate limit error.
    pub const fn rate_limit(&self) -> Option<u32> {
        match self {
            Self::RateLimited { limit, .. } => Some(*limit),
            _ => None,
        }
    }

    /// Converts to what a client may see: code, message, and when to try again. Logs an internal
    /// cause, so call it once, at the entry point.
    pub fn into_client(self) -> (Code, Cow<'static, str>, Option<Duration>) {
        match self {
            Self::UserErrors(faults) => {
                let message = faults
                    .into_iter()
                    .next()
                    .map_or(Cow::Borrowed("Invalid input."), |fault| fault.message);
                (Code::BadUserInput, message, None)
            }
            Self::Refused {
                code,
                message,
                retry_after,
            } => (code, message, retry_after),
            Self::RateLimited { retry_after, .. } => (
                Code::RateLimited,
                "Too many requests. Try again later.".into(),
                Some(retry_after),
            ),
            Self::CursorExpired { .. } => {
                let message = "The cursor has expired. Reload your data, then continue after the \
                     `extensions.sync.cursor` of that response, or after `oldestCursor`.";
                (Code::CursorExpired, message.into(), None)
            }
            Self::Aborted(cause) => {
                tracing::warn!(%cause, "transaction aborted, retries exhausted");
                Self::unavailable().into_client()
            }
            Self::Internal(cause) => {
                tracing::error!(cause = %cause, "internal error");
                (Code::Internal, "Internal server error.".into(), None)
            }
        }
    }
}

/// Messages of transient database errors for which neither diesel nor the drivers have a kind: lock
/// and statement timeouts, a full disk, no memory, no connections, a server that starts or stops.
const TRANSIENT: [&str; 13] = [
    "database is locked",
    "database or disk is full",
    "statement timeout",
    "lock timeout",
    "user request",
    "terminating connection",
    "the database system is",
    "too many connections",
    "too many clients",
    "remaining connection slots",
    "could not extend file",
    "No space left on device",
    "out of shared memory",
];

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        match &error {
            DieselError::DeserializationError(cause)
                if let Some(over) = cause.downcast_ref::<OverBudget>() =>
            {
                (*over).into()
            }
            DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => {
                Self::Aborted(error)
            }
            DieselError::DatabaseError(_, info) if info.message().contains("deadlock detected") => {
                Self::Aborted(error)
            }
            DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _,
            ) => {
                tracing::warn!(cause = %error, "database connection lost");
                Self::unavailable()
            }
            DieselError::DatabaseError(DatabaseErrorKind::Unknown, info)
                if TRANSIENT.iter().any(|text| info.message().contains(text)) =>
            {
                tracing::warn!(cause = %error, "transient database error");
                Self::unavailable()
            }
            _ => Self::Internal(Box::new(error)),
        }
    }
}

/// Whether a write violates a unique constraint.
pub fn is_unique_violation(error: &DieselError) -> bool {
    matches!(
        error,
        DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _)
    )
}

/// Whether a write violates a foreign key: a row it refers to does not exist.
pub fn is_fk_violation(error: &DieselError) -> bool {
    matches!(
        error,
        DieselError::DatabaseError(DatabaseErrorKind::ForeignKeyViolation, _)
    )
}
