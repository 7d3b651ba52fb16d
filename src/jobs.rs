//! What happens on time: mail is sent, what has ended is cleared away.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::App;
use crate::db::{Bell, Db};
use crate::error::Result;
use crate::events::Position;
use crate::mail::Mailer;
use crate::store::{CLEARED, audit, email_change, event, lockout, mail_quota, notification, session, token};

/// How often the mail queue is looked at; what is queued here is sent at once.
const MAIL: Duration = Duration::from_secs(5);
/// How often what has ended is cleared away.
const CLEANING: Duration = Duration::from_secs(600);
/// How often it is looked whether events have expired.
const EXPIRING: Duration = Duration::from_secs(60);
/// How long notifications are kept, read or not.
const NOTIFICATIONS: Duration = Duration::from_secs(90 * 86_400);
/// Making notifications is tried again so long after it failed.
const INBOX: Duration = Duration::from_secs(1);
/// However much happens, they are made no more often than this, each time for all that has happened.
const INBOX_PACE: Duration = Duration::from_millis(50);
/// How long ended sessions are kept, to be looked at.
const ENDED_SESSIONS: Duration = Duration::from_secs(30 * 86_400);

/// Clears away step by step, until a step has dropped less than it may. (No function: with its future in that of another
/// the compiler cannot see that it is `Send`.)
macro_rules! all {
    ($step:expr) => {
        async {
            while $step.await? >= CLEARED {}
            Result::<()>::Ok(())
        }
        .await
    };
}

/// Starts everything that runs beside the requests: the tail of the event log and the jobs. They end with the token.
pub fn start(app: &Arc<App>, stop: &CancellationToken) -> Result<TaskTracker> {
    let tracker = TaskTracker::new();
    tracker.spawn(app.hub.clone().tail(app.db.aside(), Arc::clone(&app.hints), stop.clone()));
    tracker.spawn(Arc::clone(&app.hints).carry(app.db.aside(), stop.clone()));
    let mailer = Mailer::new(Arc::clone(app))?;
    tracker.spawn(every(MAIL, Some((app.db.clone(), Bell::Mail)), stop.clone(), async move || mailer.send_due().await));
    tracker.spawn(inbox(Arc::clone(app), stop.clone()));
    let cleaning = Arc::clone(app);
    tracker.spawn(every(CLEANING, None, stop.clone(), async move || {
        let (db, config, now) = (&cleaning.db.aside(), &cleaning.config, cleaning.clock.now());
        // What cannot be cleared away keeps nothing else.
        let cleared = [
            all!(session::drop_ended(db, now.minus(ENDED_SESSIONS))),
            all!(token::drop_ended(db, now)),
            all!(mail_quota::purge_expired(db, now)),
            all!(email_change::purge_expired(db, now)),
            all!(lockout::drop_ended(db, now.minus(lockout::retention(config.lockout)))),
            all!(audit::drop_older(db, now.minus(config.audit_retention))),
            all!(notification::drop_older(db, now.minus(NOTIFICATIONS))),
        ];
        cleared.into_iter().collect()
    }));
    let expiring = Arc::clone(app);
    tracker.spawn(every(EXPIRING, None, stop.clone(), async move || {
        let (db, retention) = (&expiring.db.aside(), expiring.config.event_retention);
        let done = *expiring.inbox.borrow();
        while event::expire(db, retention, expiring.clock.now(), done).await? {}
        Ok(())
    }));
    tracker.close();
    Ok(tracker)
}

/// Makes notifications of what the tail of the log has come to, and says how far it is.
async fn inbox(app: Arc<App>, stop: CancellationToken) {
    let db = app.db.aside();
    let (mut tail, mut position) = (app.hub.reached(), Position::default());
    loop {
        let next = Instant::now() + INBOX_PACE;
        let done = tokio::select! {
            () = stop.cancelled() => return,
            done = notification::project(&db, position) => done,
        };
        match done {
            Ok((reached, more)) => {
                position = reached;
                app.inbox.send_replace(position);
                if more {
                    continue;
                }
            }
            Err(error) => {
                let (code, ..) = error.told();
                tracing::warn!(code = code.as_str(), "cannot make notifications; it is tried again");
                tail.mark_changed();
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(INBOX) => {}
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // The tail lives as long as the server.
            _ = tail.changed() => tokio::time::sleep_until(next).await,
        }
    }
}

/// Does a job, and again after the pause or when the bell rings. One that fails is tried again; what is under way when
/// the server stops is broken off, as every step of a job may be.
async fn every(pause: Duration, bell: Option<(Db, Bell)>, stop: CancellationToken, job: impl AsyncFn() -> Result<()>) {
    loop {
        let done = tokio::select! {
            () = stop.cancelled() => return,
            done = job() => done,
        };
        if let Err(error) = done {
            let (code, ..) = error.told();
            tracing::warn!(code = code.as_str(), "a job failed; it is tried again");
        }
        let rung = async {
            match &bell {
                Some((db, bell)) => db.rung(*bell).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = rung => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}
