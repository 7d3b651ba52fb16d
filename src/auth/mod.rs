//! From a request, or a socket's `connection_init`, to the [`Viewer`] it speaks for.

pub mod credential;
pub mod sessions;
pub mod unsubscribe;

use crate::App;
use crate::access::Viewer;
use crate::error::{Error, Result};

/// The token of an `Authorization` value (RFC 6750, the scheme without regard to case).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whom an access token speaks for. Session, role and activity are those of the database: a logout or a change of role
/// holds from the next request on ([`sessions`]).
pub async fn viewer(app: &App, token: &str) -> Result<Viewer> {
    let now = app.clock.now();
    let access = app.credentials.access(now, token).ok_or_else(Error::unauthenticated)?;
    let viewer = app.sessions.viewer(&app.db, now, access.session_id).await?;
    viewer.ok_or_else(Error::unauthenticated)
}
