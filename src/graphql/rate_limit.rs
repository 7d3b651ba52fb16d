//! The `rateLimit` query. The limits themselves are in [`crate::limits`].

use async_graphql::{Context, Object, SimpleObject};

use crate::limits::RateLimitStatus;
use crate::time::Timestamp;

/// Cost of an operation, the remaining quota, and when the window ends.
#[derive(Clone, Copy, Debug)]
pub struct OperationCharge {
    /// In points.
    pub cost: u32,
    /// `None` when rate limits are disabled.
    pub quota: Option<(RateLimitStatus, Timestamp)>,
}

/// Rate limit in points over a sliding window of one minute, counted per user or, for anonymous
/// requests, per IP address.
#[derive(SimpleObject)]
pub struct RateLimit {
    /// Points per minute.
    limit: u32,
    /// Remaining points.
    remaining: u32,
    /// Points used in the window, including this operation.
    used: u32,
    /// When the current minute ends and the points used in it begin to expire.
    reset_at: Timestamp,
    /// Cost of this operation in points.
    cost: u32,
}

#[derive(Default)]
pub struct RateLimitQuery;

#[Object]
impl RateLimitQuery {
    /// Rate limit of the client; null if rate limits are disabled. Available without signing in.
    async fn rate_limit(&self, ctx: &Context<'_>) -> Option<RateLimit> {
        let spent = ctx.data_opt::<OperationCharge>()?;
        let (standing, reset_at) = spent.quota?;
        Some(RateLimit {
            limit: standing.limit,
            remaining: standing.remaining(),
            used: standing.used,
            reset_at,
            cost: spent.cost,
        })
    }
}
