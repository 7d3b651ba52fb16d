//! Background jobs: the event log tail, sending mail, updating inboxes, and purging expired rows.
//!
//! Jobs use the background pool, except for mail, and stop with the server. Each step of a job is
//! safe to abort and to repeat. Instances may run the same job at the same time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::App;
use crate::db::{CommitSignal, Db};
use crate::error::Result;
use crate::events::LogPosition;
use crate::mail::Mailer;
use crate::store::{
    PURGE_BATCH, audit, email_change, event, lockout, mail_quota, notification, session, token,
    username_change,
};

/// Poll interval of the mail queue. Mail queued by this instance is sent at once.
const MAIL_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between purges of expired rows.
const PURGE_INTERVAL: Duration = Duration::from_secs(600);
/// Interval between checks for expired events.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);
/// Retention of notifications, read or unread.
const NOTIFICATION_RETENTION: Duration = Duration::from_secs(90 * 86_400);
/// Pause after a failed inbox update.
const INBOX_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between inbox updates. Under load, one update covers many events.
const INBOX_MIN_INTERVAL: Duration = Duration::from_millis(50);
/// Retention of ended sessions, for inspection.
const ENDED_SESSION_RETENTION: Duration = Duration::from_secs(30 * 86_400);

/// Purges in batches, until a batch is not full. (A macro, because in a generic function the
/// compiler cannot prove that the future is `Send`.)
macro_rules! purge_all {
    ($step:expr) => {
        async {
            while $step.await? >= PURGE_BATCH {}
            Result::<()>::Ok(())
        }
        .await
    };
}

/// Starts the tail of the event log and all jobs. They end when the token is cancelled.
pub fn start(app: &Arc<App>, stop: &CancellationToken) -> Result<TaskTracker> {
    let tracker = TaskTracker::new();
    tracker.spawn(app.hub.clone().tail(
        app.db.background_pool(),
        Arc::clone(&app.hints),
        stop.clone(),
    ));
    tracker.spawn(Arc::clone(&app.hints).run(app.db.background_pool(), stop.clone()));
    let mailer = Mailer::new(Arc::clone(app))?;
    tracker.spawn(run_every(
        MAIL_POLL_INTERVAL,
        Some((app.db.clone(), CommitSignal::Mail)),
        stop.clone(),
        async move || mailer.send_due().await,
    ));
    tracker.spawn(run_inbox(Arc::clone(app), stop.clone()));
    let cleaning = Arc::clone(app);
    tracker.spawn(run_every(
        PURGE_INTERVAL,
        None,
        stop.clone(),
        async move || {
            let (db, config, now) = (
                &cleaning.db.background_pool(),
                &cleaning.config,
                cleaning.clock.now(),
            );
            // All purges run, even if one fails.
            let cleared = [
                purge_all!(session::purge_expired(
                    db,
                    now.minus(ENDED_SESSION_RETENTION)
                )),
                purge_all!(token::purge_expired(db, now)),
                purge_all!(mail_quota::purge_expired(db, now)),
                purge_all!(email_change::purge_expired(db, now)),
                purge_all!(username_change::purge_expired(db, now)),
                purge_all!(lockout::purge_expired(
                    db,
                    now.minus(lockout::retention(config.lockout))
                )),
                purge_all!(audit::purge_older(db, now.minus(config.audit_retention))),
                purge_all!(notification::purge_older(
                    db,
                    now.minus(NOTIFICATION_RETENTION)
                )),
            ];
            cleared.into_iter().collect()
        },
    ));
    let expiring = Arc::clone(app);
    tracker.spawn(run_every(
        EXPIRY_INTERVAL,
        None,
        stop.clone(),
        async move || {
            let (db, retention) = (
                &expiring.db.background_pool(),
                expiring.config.event_retention,
            );
            let done = *expiring.inbox.borrow();
            while event::expire(db, retention, expiring.clock.now(), done).await? {}
            Ok(())
        },
    ));
    tracker.close();
    Ok(tracker)
}

/// Updates inboxes up to the position that the tail has reached, and publishes its own position.
async fn run_inbox(app: Arc<App>, stop: CancellationToken) {
    let db = app.db.background_pool();
    let (mut tail, mut position) = (app.hub.tail_position(), LogPosition::default());
    loop {
        let next = Instant::now() + INBOX_MIN_INTERVAL;
        let done = tokio::select! {
            () = stop.cancelled() => return,
            done = notification::advance_inboxes(&db, position) => done,
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
                let (code, ..) = error.into_client();
                tracing::warn!(code = code.as_str(), "inbox update failed, retrying");
                tail.mark_changed();
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(INBOX_RETRY_INTERVAL) => {}
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // Never an error: the hub keeps the sender alive.
            _ = tail.changed() => tokio::time::sleep_until(next).await,
        }
    }
}

/// Runs a job repeatedly, after the pause or on the commit signal. A failed run is retried after
/// the pause. A shutdown aborts a run, which every step of a job tolerates.
async fn run_every(
    pause: Duration,
    signal: Option<(Db, CommitSignal)>,
    stop: CancellationToken,
    job: impl AsyncFn() -> Result<()>,
) {
    loop {
        let done = tokio::select! {
            () = stop.cancelled() => return,
            done = job() => done,
        };
        if let Err(error) = done {
            let (code, ..) = error.into_client();
            tracing::warn!(code = code.as_str(), "background job failed, retrying");
        }
        let rung = async {
            match &signal {
                Some((db, signal)) => db.signalled(*signal).await,
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
