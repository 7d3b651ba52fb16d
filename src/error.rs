//! What can go wrong, and what a client is told of it.
//!
//! One [`Error`] for the whole program. It has no `Display`, so that the text of a database can reach a client by no
//! accident: the two doors (`graphql`, `http`) say the [`Code`] and its message, and log an internal cause once.

use std::borrow::Cow;
use std::time::Duration;

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::limits::decoding::OverBudget;

/// The stable codes of every error that a client can meet, as `extensions.code` or the `code` of a problem document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is not well formed: malformed JSON, a missing member, a member of the wrong type.
    BadRequest,
    /// The body has more bytes than this door takes.
    PayloadTooLarge,
    /// The body is of a type that this door does not read: send `application/json` in UTF-8.
    UnsupportedMediaType,
    /// `Accept` allows none of the types that this door answers with.
    NotAcceptable,
    /// The method does not fit: a mutation by GET, or a method that the route does not have.
    MethodNotAllowed,
    /// The document does not parse.
    ParseFailed,
    /// The document does not fit the schema.
    ValidationFailed,
    /// The document has too many bytes, tokens or open brackets, or too long a name or number.
    DocumentTooLarge,
    /// The document asks for too much at once, or its answer would be too large.
    DocumentTooComplex,
    /// The variables have too many values or nest too deeply.
    VariablesTooLarge,
    /// The document has no operation of the name that was asked for.
    OperationNotFound,
    /// The document has several operations and none was chosen.
    OperationNameRequired,
    /// The hash names no document that is known: send the document along.
    PersistedQueryNotFound,
    /// This server runs listed documents only, and this is none of them.
    DocumentNotTrusted,
    /// An argument or a variable is out of its range or of the wrong kind, such as a cursor of another list.
    BadUserInput,
    /// No access token, or one that is expired, revoked or not ours.
    Unauthenticated,
    /// REST: unknown identifier or wrong password; the same for both.
    InvalidCredentials,
    /// Too many wrong passwords from this address or session, or for this identifier from everywhere; try again after the
    /// time given.
    LockedOut,
    /// REST: the right password, but the e-mail address must be verified before logging in.
    EmailNotVerified,
    /// Seen, but not permitted to this viewer, this origin or this host.
    Forbidden,
    /// Not there, or not there for this viewer.
    NotFound,
    /// Too many requests; try again after the time given.
    RateLimited,
    /// The cursor is older than what the event log keeps.
    CursorExpired,
    /// Overloaded, too slow, or a part that the request needs is away. Try again.
    Unavailable,
    /// A defect of the server; the request id finds it in the log.
    Internal,
}

impl Code {
    /// Every code, for the table in the documentation and its test.
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

    /// The code as clients see it.
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

    /// What it means, as the table in the documentation says it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::BadRequest => {
                "The request is not well formed: malformed JSON, a missing member, a member of the wrong type."
            }
            Self::PayloadTooLarge => "The body has more bytes than this door takes.",
            Self::UnsupportedMediaType => {
                "The body is of a type that this door does not read: send `application/json` in UTF-8."
            }
            Self::NotAcceptable => "`Accept` allows none of the types that this door answers with.",
            Self::MethodNotAllowed => {
                "The method does not fit: a mutation by GET, or a method that the route does not have."
            }
            Self::ParseFailed => "The document does not parse.",
            Self::ValidationFailed => "The document does not fit the schema.",
            Self::DocumentTooLarge => {
                "The document has too many bytes, tokens or open brackets, or too long a name or number."
            }
            Self::DocumentTooComplex => "The document asks for too much at once, or its answer would be too large.",
            Self::VariablesTooLarge => "The variables have too many values or nest too deeply.",
            Self::OperationNotFound => "The document has no operation of the name that was asked for.",
            Self::OperationNameRequired => "The document has several operations and none was chosen.",
            Self::PersistedQueryNotFound => "The hash names no document that is known: send the document along.",
            Self::DocumentNotTrusted => "This server runs listed documents only, and this is none of them.",
            Self::BadUserInput => {
                "An argument or a variable is out of its range or of the wrong kind, such as a cursor of another list."
            }
            Self::Unauthenticated => "No access token, or one that is expired, revoked or not ours.",
            Self::InvalidCredentials => "REST: unknown identifier or wrong password; the same for both.",
            Self::LockedOut => {
                "Too many wrong passwords from this address or session, or for this identifier; try again later."
            }
            Self::EmailNotVerified => {
                "REST: the right password, but the e-mail address must be verified before logging in."
            }
            Self::Forbidden => "Seen, but not permitted to this viewer, this origin or this host.",
            Self::NotFound => "Not there, or not there for this viewer.",
            Self::RateLimited => "Too many requests; try again after the time given.",
            Self::CursorExpired => "The cursor is older than what the event log keeps.",
            Self::Unavailable => "Overloaded, too slow, or a part that the request needs is away. Try again.",
            Self::Internal => "A defect of the server; the request id finds it in the log.",
        }
    }

    /// The HTTP status where the whole request fails with it.
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

    /// Whether it says something about the document of a request that is otherwise well formed: such an answer has the
    /// status 200 for clients that accept `application/json` alone.
    pub const fn is_of_document(self) -> bool {
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

    /// The code that is written so.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }
}

/// What is wrong with one field of an input, as `userErrors` tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, async_graphql::Enum)]
#[graphql(name = "UserErrorCode")]
pub enum FaultCode {
    /// Nothing but white space where something is needed, or null for what cannot be cleared.
    Blank,
    /// Shorter than the field allows.
    TooShort,
    /// Longer than the field allows; lengths count Unicode code points.
    TooLong,
    /// Not of the form the field asks for.
    Invalid,
    /// Somebody else has it already.
    Taken,
    /// There is no such object for this viewer.
    NotFound,
    /// A moment that has passed already.
    InThePast,
    /// The task cannot go from its present status to that one.
    InvalidStatusTransition,
    /// The project is archived and takes no new tasks.
    Archived,
    /// The object has moved on from the expected version; read it again.
    Conflict,
    /// The current password is not right.
    WrongPassword,
    /// The new password does not fit the server's policy or is too easy to guess.
    WeakPassword,
    /// The account, project or task holds as much as it may.
    QuotaExceeded,
}

impl FaultCode {
    /// The code as clients see it.
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

/// One thing that the caller can put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field of the input at fault; `None` when it is no single one.
    pub field: Option<&'static str>,
    /// Which kind of fault.
    pub code: FaultCode,
    /// For a person to read.
    pub message: Cow<'static, str>,
}

impl Fault {
    /// A fault of one field.
    pub fn new(field: &'static str, code: FaultCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { field: Some(field), code, message: message.into() }
    }
}

/// Everything that can go wrong on the way to an answer.
#[derive(Debug)]
pub enum Error {
    /// What the caller can put right; nothing was written.
    Faults(Vec<Fault>),
    /// The request is refused as a whole.
    Refused {
        /// Its stable code.
        code: Code,
        /// For a person to read.
        message: Cow<'static, str>,
        /// When to try again, if that helps.
        retry_after: Option<Duration>,
    },
    /// A rate limit is reached.
    RateLimited {
        /// What there is in a minute.
        limit: u32,
        /// When one more fits.
        retry_after: Duration,
    },
    /// The cursor is older than what the event log keeps.
    CursorExpired {
        /// The oldest cursor that works.
        oldest: String,
    },
    /// The database aborted a transaction for the sake of another one: it may be tried again.
    Aborted(DieselError),
    /// A defect or a broken part: logged, never told.
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

/// A result with the program's own error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A refusal with a code of the table.
    pub fn refused(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused { code, message: message.into(), retry_after: None }
    }

    /// One fault of one field.
    pub fn fault(field: &'static str, code: FaultCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::Faults(vec![Fault::new(field, code, message)])
    }

    /// There is no such object for this viewer, as a fault of the field that named it.
    pub fn not_found(field: &'static str, what: &'static str) -> Self {
        Self::fault(field, FaultCode::NotFound, format!("There is no such {what}."))
    }

    /// Whether doing the same in another way would take as long and come to nothing too.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Aborted(_) | Self::Refused { code: Code::Unavailable | Code::DocumentTooComplex, .. })
    }

    /// The answer has more bytes than are sent.
    pub fn too_large() -> Self {
        Self::refused(Code::DocumentTooComplex, "The answer would be larger than 4 MiB. Ask for less at once.")
    }

    /// An argument outside of what the field takes.
    pub fn bad_input(message: impl Into<Cow<'static, str>>) -> Self {
        Self::refused(Code::BadUserInput, message)
    }

    /// Not signed in.
    pub fn unauthenticated() -> Self {
        Self::refused(Code::Unauthenticated, "Sign in first: send a valid access token.")
    }

    /// Seen, but not permitted.
    pub fn forbidden() -> Self {
        Self::refused(Code::Forbidden, "You may not do this.")
    }

    /// The server cannot take this now.
    pub fn unavailable() -> Self {
        Self::Refused {
            code: Code::Unavailable,
            message: "The service is busy or a part of it is away. Try again.".into(),
            retry_after: Some(Duration::from_secs(1)),
        }
    }

    /// A defect, with its cause for the log.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }

    /// The rate limit that is reached, if that is it.
    pub const fn rate_limit(&self) -> Option<u32> {
        match self {
            Self::RateLimited { limit, .. } => Some(*limit),
            _ => None,
        }
    }

    /// What a client is told: code, message, when to try again. Logs an internal cause, so call it once, at the door.
    pub fn told(self) -> (Code, Cow<'static, str>, Option<Duration>) {
        match self {
            Self::Faults(faults) => {
                let message = faults.into_iter().next().map_or(Cow::Borrowed("Invalid input."), |fault| fault.message);
                (Code::BadUserInput, message, None)
            }
            Self::Refused { code, message, retry_after } => (code, message, retry_after),
            Self::RateLimited { retry_after, .. } => {
                (Code::RateLimited, "Too many requests. Try again later.".into(), Some(retry_after))
            }
            Self::CursorExpired { .. } => {
                let message = "The event log does not go back so far. Read again what you show, then go on after \
                     `oldestCursor` or, better, after the `extensions.sync.cursor` of that answer.";
                (Code::CursorExpired, message.into(), None)
            }
            Self::Aborted(cause) => {
                tracing::warn!(%cause, "aborted again and again");
                Self::unavailable().told()
            }
            Self::Internal(cause) => {
                tracing::error!(cause = %cause, "internal error");
                (Code::Internal, "Something went wrong on the server.".into(), None)
            }
        }
    }
}

/// What a database says of a trouble that passes, for which neither diesel nor the drivers have a kind: a lock or a
/// statement that took too long, a full disk, no memory, no connections left, a server that ends or begins.
const PASSING: [&str; 13] = [
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
            DieselError::DeserializationError(cause) if let Some(over) = cause.downcast_ref::<OverBudget>() => {
                (*over).into()
            }
            DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => Self::Aborted(error),
            DieselError::DatabaseError(_, info) if info.message().contains("deadlock detected") => Self::Aborted(error),
            DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _,
            ) => {
                tracing::warn!(cause = %error, "database away");
                Self::unavailable()
            }
            DieselError::DatabaseError(DatabaseErrorKind::Unknown, info)
                if PASSING.iter().any(|text| info.message().contains(text)) =>
            {
                tracing::warn!(cause = %error, "database busy");
                Self::unavailable()
            }
            _ => Self::Internal(Box::new(error)),
        }
    }
}

/// Whether a write failed because a row with that unique key is there already.
pub fn is_taken(error: &DieselError) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _))
}

/// Whether a write failed because the row it refers to is gone.
pub fn is_orphan(error: &DieselError) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::ForeignKeyViolation, _))
}
