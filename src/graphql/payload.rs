//! What a mutation answers: the object, or what the caller can put right.

use async_graphql::{Context, Result, SimpleObject};

use super::Caller;
use crate::App;
use crate::access::Viewer;
use crate::db::OperationScope;
use crate::error::{Error, Fault, FaultCode};
use std::sync::Arc;

/// Something in the input that the caller can put right. Nothing was written.
#[derive(Clone, Debug, SimpleObject)]
pub struct UserError {
    /// Path of the input field at fault, such as `["input", "title"]`; null when it is no single one.
    field: Option<Vec<&'static str>>,
    /// What is wrong, for a person to read.
    message: String,
    /// What is wrong, for a program to read.
    code: FaultCode,
}

impl From<Fault> for UserError {
    fn from(fault: Fault) -> Self {
        Self {
            field: fault.field.map(|field| vec!["input", field]),
            message: fault.message.into_owned(),
            code: fault.code,
        }
    }
}

/// Runs a write to its end, even when the client goes away in the middle, and sorts what came of it: the object, or
/// the user errors. Everything else is a top-level error.
pub async fn write<T, F>(
    ctx: &Context<'_>,
    work: impl FnOnce(Arc<App>, Viewer) -> F,
) -> Result<(Option<T>, Vec<UserError>)>
where
    T: Send + 'static,
    F: Future<Output = crate::error::Result<T>> + Send + 'static,
{
    let caller = Caller::of(ctx);
    let work = OperationScope::inherited(work(Arc::clone(caller.app()), *caller.viewer()?));
    match caller.app().writes.spawn(work).await.unwrap_or_else(|error| Err(Error::internal(error))) {
        Ok(object) => Ok((Some(object), Vec::new())),
        Err(Error::Faults(faults)) => Ok((None, faults.into_iter().map(UserError::from).collect())),
        Err(other) => Err(other.into()),
    }
}
