//! GraphQL over Server-Sent Events in distinct connections mode: one request, one event stream. For
//! networks that break WebSockets.
//!
//! Each event of a subscription carries its cursor as `id`, and `Last-Event-ID` resumes after it. A
//! stream ends without `complete` when its token or session ends, when the server restarts, and
//! after a temporary error: the client should reconnect.
//!
//! The request itself opens the subscription, or executes the query or mutation, like any other
//! request. Only the delivery of events runs in a task of its own.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::poll_fn;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::ConnectionHandle;
use super::in_flight::reserved_bytes;
use super::negotiate::Media;
use super::operation::{GraphqlService, Operation};
use super::response::{GraphqlResponse, RequestError, too_large};
use super::subscription::{ActiveSubscription, SubscriptionMessage};
use crate::App;
use crate::access::Viewer;
use crate::auth::bearer;
use crate::error::{Code, Error};
use crate::limits::ClientKey;
use crate::metrics::Transport;

/// Length of the write queue.
const QUEUE_LENGTH: usize = 8;
/// Idle time after which a comment is sent, so that no intermediary drops the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// An SSE comment, which clients ignore.
const KEEP_ALIVE_COMMENT: &str = ":\n\n";
/// The last event of a stream.
const COMPLETE: &str = "event: complete\ndata: \n\n";

/// The request that opens a stream.
pub struct StreamClient {
    pub viewer: Option<Viewer>,
    pub request_id: Arc<str>,
    /// Delays shutdown while the stream is open.
    pub guard: ConnectionHandle,
}

/// Responds with a stream of one response, followed by `complete`.
pub fn single_response(answer: &GraphqlResponse, request_id: &str) -> Response {
    response((next(answer, request_id) + COMPLETE).into())
}

/// Opens a subscription and responds with a stream of its events.
pub async fn subscribe(
    service: &GraphqlService,
    operation: Operation,
    headers: &HeaderMap,
    listener: StreamClient,
) -> Result<Response, RequestError> {
    let after = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let socket_slot = match listener.viewer {
        Some(viewer) => {
            let slot = service
                .sockets
                .take(viewer.id, service.app.config.sockets.per_user);
            Some(slot.ok_or_else(|| {
                RequestError::new(Code::RateLimited, "Too many open streams. Close one first.")
            })?)
        }
        None => None,
    };
    let slot = service.subscription_slot(listener.viewer)?;
    let now = service.app.clock.now();
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(bearer);
    let access = token.and_then(|token| service.app.credentials.verify_access(now, token));
    let expires = access.map(|access| Instant::now() + access.expires_at.since(now));
    let request_id = Arc::clone(&listener.request_id);
    let subscription = match service
        .subscribe(operation, slot, after, listener.viewer, request_id)
        .await
    {
        Ok(subscription) => Box::new(subscription),
        Err(refused) if listener.viewer.is_some() && refused.ends_session() => {
            return Err(Error::unauthenticated().into());
        }
        Err(refused) if refused.retry_after.is_some() => return Err(Error::unavailable().into()),
        Err(refused) => return Ok(single_response(&refused, &listener.request_id)),
    };
    let (out, mut queue) = mpsc::channel(QUEUE_LENGTH);
    let (service, tasks) = (service.clone(), listener.guard.tasks.clone());
    tasks.spawn(async move {
        let _slot = socket_slot;
        let _open = service.app.metrics.open_socket(Transport::EventStream);
        let guard = listener.guard.clone();
        let ended = session_ended(&service, listener.viewer);
        let expired = async {
            match expires {
                Some(expires) => sleep_until(expires).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = guard.shutting_down() => {}
            () = ended => {}
            () = expired => {}
            () = out.closed() => {}
            result = send_events(&service.app, subscription, &listener, &out) => if result.is_err() {
                // Disconnects a client that does not read in time.
                guard.connection.cancel();
            }
        }
    });
    Ok(response(Body::from_stream(poll_fn(move |cx| {
        queue
            .poll_recv(cx)
            .map(|chunk| chunk.map(Ok::<_, Infallible>))
    }))))
}

fn response(body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, Media::EventStream.content_type());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Disables response buffering in proxies.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Waits until the session ends.
async fn session_ended(service: &GraphqlService, viewer: Option<Viewer>) {
    let Some(viewer) = viewer else {
        return std::future::pending().await;
    };
    loop {
        // Subscribe before the check, so that no change in between is missed.
        let mut watch = service.app.hub.watch_session(viewer);
        let current = service.app.sessions.viewer(
            &service.app.db,
            service.app.clock.now(),
            viewer.session_id,
        );
        if Box::pin(current).await.ok().flatten() != Some(viewer) {
            return;
        }
        watch.ended().await;
    }
}

/// The client does not read.
struct ClientStalled;

/// Sends all events to the client.
async fn send_events(
    app: &App,
    mut subscription: Box<ActiveSubscription>,
    listener: &StreamClient,
    out: &mpsc::Sender<Bytes>,
) -> Result<(), ClientStalled> {
    let (request_id, patience) = (&listener.request_id, app.config.sockets.write_timeout);
    let send = async |chunk: Bytes| {
        let sent = listener
            .guard
            .written
            .wait_while_progressing(patience, out.send(chunk))
            .await;
        sent.map(drop).ok_or(ClientStalled)
    };
    let count = |text: String| match listener.viewer {
        Some(viewer) => app
            .in_flight
            .reserve(ClientKey::User(viewer.id), text.len())
            .map(|reservation| reserved_bytes(text.into(), reservation)),
        None => Ok(text.into()),
    };
    // Sent immediately, so that the client sees the open stream.
    send(KEEP_ALIVE_COMMENT.into()).await?;
    loop {
        match with_keep_alive(subscription.next(), KEEP_ALIVE, || {
            send(KEEP_ALIVE_COMMENT.into())
        })
        .await?
        {
            None => break,
            Some(SubscriptionMessage::Event { payload, cursor }) => {
                match count(event(&payload, Some(&cursor))) {
                    Ok(chunk) => send(chunk).await?,
                    // Too many bytes are unread. The client resumes after the last event that it
                    // received.
                    Err(_) => return Ok(()),
                }
            }
            Some(SubscriptionMessage::Failed { answer, .. }) if answer.ends_session() => {
                return Ok(());
            }
            Some(SubscriptionMessage::Failed { answer, cursor }) => {
                let text = match answer.to_text() {
                    Some(json) => event(&json, cursor.as_deref()),
                    None => next(&answer, request_id),
                };
                send(text.into()).await?;
                if answer.retry_after.is_some() {
                    return Ok(());
                }
                break;
            }
        }
    }
    send(COMPLETE.into()).await
}

/// Waits for a future and runs `break_it`, which sends a keep-alive, after each interval of
/// `silence`. The same future is polled throughout, so nothing that it has already received is
/// lost.
async fn with_keep_alive<T, E, F>(
    wait: impl Future<Output = T>,
    silence: Duration,
    break_it: impl Fn() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<(), E>>,
{
    let mut wait = pin!(wait);
    loop {
        match timeout(silence, wait.as_mut()).await {
            Ok(waited) => return Ok(waited),
            Err(_) => break_it().await?,
        }
    }
}

fn next(answer: &GraphqlResponse, request_id: &str) -> String {
    match answer.to_text() {
        Some(json) => event(&json, None),
        None => next(
            &GraphqlResponse::from_error(too_large(), request_id),
            request_id,
        ),
    }
}

fn event(json: &str, cursor: Option<&str>) -> String {
    let id = cursor
        .map(|cursor| format!("id: {cursor}\n"))
        .unwrap_or_default();
    format!("event: next\n{id}data: {json}\n\n")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn what_was_taken_when_a_silence_is_broken_is_not_lost() {
        let (out, mut queue) = mpsc::channel(1);
        out.send("event").await.expect("room");
        let (broken, breaks) = (Notify::new(), Cell::new(0));
        let load = async {
            let taken = queue.recv().await;
            // Processing takes longer than the idle time.
            broken.notified().await;
            taken
        };
        let result = with_keep_alive(load, Duration::from_millis(1), async || {
            breaks.set(breaks.get() + 1);
            broken.notify_one();
            Ok::<_, ClientStalled>(())
        });
        assert!(matches!(result.await, Ok(Some("event"))));
        assert!(breaks.get() > 0, "the silence was broken");
    }
}
