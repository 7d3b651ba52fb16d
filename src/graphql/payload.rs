//! Payloads of mutations: the object, or the user errors that explain why nothing was written.

use async_graphql::{Context, Result, SimpleObject};

use super::RequestContext;
use crate::App;
use crate::access::Viewer;
use crate::db::OperationScope;
use crate::error::{Error, UserError, UserErrorCode};
use std::sync::Arc;

/// A validation error that the client can correct. Nothing was written.
#[derive(Clone, Debug, SimpleObject)]
#[graphql(name = "UserError")]
pub struct UserErrorPayload {
    /// Path of the invalid input field, such as `["input", "title"]`; null if no single field is
    /// invalid.
    field: Option<Vec<&'static str>>,
    /// Human-readable message.
    message: String,
    /// Machine-readable code.
    code: UserErrorCode,
}

impl From<UserError> for UserErrorPayload {
    fn from(fault: UserError) -> Self {
        Self {
            field: fault.field.map(|field| vec!["input", field]),
            message: fault.message.into_owned(),
            code: fault.code,
        }
    }
}

/// Runs a write and returns the object or the user errors; any other error is a top-level error.
/// The write runs in a task of its own, so that it completes even if the client disconnects.
pub async fn run_mutation<T, F>(
    ctx: &Context<'_>,
    work: impl FnOnce(Arc<App>, Viewer) -> F,
) -> Result<(Option<T>, Vec<UserErrorPayload>)>
where
    T: Send + 'static,
    F: Future<Output = crate::error::Result<T>> + Send + 'static,
{
    let caller = RequestContext::of(ctx);
    let work = OperationScope::inherit(work(Arc::clone(caller.app()), *caller.viewer()?));
    match caller
        .app()
        .writes
        .spawn(work)
        .await
        .unwrap_or_else(|error| Err(Error::internal(error)))
    {
        Ok(object) => Ok((Some(object), Vec::new())),
        Err(Error::UserErrors(faults)) => Ok((
            None,
            faults.into_iter().map(UserErrorPayload::from).collect(),
        )),
        Err(other) => Err(other.into()),
    }
}
