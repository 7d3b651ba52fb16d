//! Guards on GraphQL fields. The permission table is in [`crate::access`].

use async_graphql::{Context, Guard, Result};

use super::RequestContext;
use crate::access::{Action, Resource};
use crate::error::Error;

/// Requires a signed-in viewer.
pub fn require_viewer(ctx: &Context<'_>) -> Result<()> {
    RequestContext::of(ctx)
        .viewer()
        .map(|_| ())
        .map_err(Into::into)
}

/// Requires the permission for an action on the subject.
pub struct RequirePermission<S>(pub Action, pub S);

impl<S: Resource + Send + Sync> Guard for RequirePermission<S> {
    async fn check(&self, ctx: &Context<'_>) -> Result<()> {
        if RequestContext::of(ctx).may(self.0, &self.1)? {
            Ok(())
        } else {
            Err(Error::forbidden().into())
        }
    }
}
