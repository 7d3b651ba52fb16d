//! The remaining points of the client.

use async_graphql::{Context, Object, SimpleObject};

use crate::limits::Standing;
use crate::time::Timestamp;

/// Cost of an operation, the remaining quota, and when the window ends.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// Points.
    pub cost: u32,
    /// `None` when rate limits are disabled.
    pub standing: Option<(Standing, Timestamp)>,
}

/// The caller's points: per user, or per address for anonymous requests, in a sliding window of one minute.
#[derive(SimpleObject)]
pub struct RateLimit {
    /// Points per minute.
    limit: u32,
    /// Points left.
    remaining: u32,
    /// Points used, including this operation's.
    used: u32,
    /// When the current minute ends and its used points begin to expire.
    reset_at: Timestamp,
    /// Points that this operation costs.
    cost: u32,
}

#[derive(Default)]
pub struct RateLimitQuery;

#[Object]
impl RateLimitQuery {
    /// The caller's remaining points. Null when the server has rate limits disabled. Anyone may ask.
    async fn rate_limit(&self, ctx: &Context<'_>) -> Option<RateLimit> {
        let spent = ctx.data_opt::<Spent>()?;
        let (standing, reset_at) = spent.standing?;
        Some(RateLimit {
            limit: standing.limit,
            remaining: standing.remaining(),
            used: standing.used,
            reset_at,
            cost: spent.cost,
        })
    }
}
