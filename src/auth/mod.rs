//! Authentication: from the `Authorization` of a request or of `connection_init` to the [`Viewer`].

pub mod credential;
pub mod sessions;
pub mod unsubscribe;

use crate::App;
use crate::access::Viewer;
use crate::error::{Error, Result};

/// The bearer token of an `Authorization` value (RFC 6750). The scheme is case-insensitive.
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The viewer of an access token. Session, role and status are those in the database: a logout or a
/// change of role takes effect with the next request on this instance, and within a second on
/// others ([`sessions`]).
pub async fn authenticate(app: &App, token: &str) -> Result<Viewer> {
    let now = app.clock.now();
    let access = app
        .credentials
        .verify_access(now, token)
        .ok_or_else(Error::unauthenticated)?;
    let viewer = app.sessions.viewer(&app.db, now, access.session_id).await?;
    viewer.ok_or_else(Error::unauthenticated)
}
