//! What the client has left of its points.

use async_graphql::{Context, Object, SimpleObject};

use crate::limits::Standing;
use crate::time::Timestamp;

/// What an operation costs and what that leaves, with the moment at which the minute ends: the data of each request.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// In points.
    pub cost: u32,
    /// Nothing where requests are not limited.
    pub standing: Option<(Standing, Timestamp)>,
}

/// The points that operations cost, per user, or per address when nobody is signed in, in a sliding window of a minute.
#[derive(SimpleObject)]
pub struct RateLimit {
    /// How many points there are in a minute.
    limit: u32,
    /// How many are left.
    remaining: u32,
    /// How many are used up, this operation's included.
    used: u32,
    /// When the running minute ends, and what was used in it begins to run out.
    reset_at: Timestamp,
    /// What this operation costs.
    cost: u32,
}

/// The query of the limit.
#[derive(Default)]
pub struct RateLimitQuery;

#[Object]
impl RateLimitQuery {
    /// What is left of the points that operations cost; null where requests are not limited. For everybody.
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
