//! Responses to one event that several subscriptions share. The first subscription that needs a
//! response executes it; the others wait for the result.
//!
//! A subscription claims a response only once it has a permit to execute. If it claimed earlier,
//! all others would wait for that permit, too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, watch};

/// The responses to one event, by the number of the shared subscription.
#[derive(Debug, Default)]
pub struct SharedResponses(Mutex<HashMap<u64, Arc<SharedResponse>>>);

impl SharedResponses {
    /// The response for a shared subscription, created unclaimed if it is new.
    pub fn get(&self, question: u64) -> Arc<SharedResponse> {
        Arc::clone(
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(question)
                .or_default(),
        )
    }
}

/// A response and its state.
#[derive(Debug, Default)]
pub struct SharedResponse(watch::Sender<ResponseState>);

/// The state of a shared response.
#[derive(Clone, Debug, Default)]
pub enum ResponseState {
    #[default]
    Unclaimed,
    /// One subscription executes it.
    Claimed,
    Ready(Arc<ComputedResponse>),
    /// The response depends on the viewer, so each subscription executes on its own.
    Personal,
}

/// A completed response and its permit for memory.
#[derive(Debug)]
pub struct ComputedResponse {
    /// The response as JSON.
    pub payload: Arc<str>,
    /// Part of the memory budget of shared responses, released when the response is dropped.
    pub bytes: OwnedSemaphorePermit,
}

impl SharedResponse {
    pub fn state(&self) -> ResponseState {
        self.0.borrow().clone()
    }

    /// Waits until the response is no longer unclaimed.
    pub async fn wait_claimed(&self) {
        // Fails only if the sender is dropped, which `self` owns.
        let _ = self
            .0
            .subscribe()
            .wait_for(|state| !matches!(state, ResponseState::Unclaimed))
            .await;
    }

    /// Waits until no subscription executes it, and returns the response if there is one.
    pub async fn finished(&self) -> Option<Arc<str>> {
        let mut states = self.0.subscribe();
        let state = states
            .wait_for(|state| !matches!(state, ResponseState::Claimed))
            .await
            .ok()?;
        match &*state {
            ResponseState::Ready(made) => Some(Arc::clone(&made.payload)),
            _ => None,
        }
    }

    /// Claims the right to execute. `None` if the response is not unclaimed.
    pub fn claim(self: &Arc<Self>) -> Option<Claim> {
        let is_free = self.0.send_if_modified(|state| {
            let is_free = matches!(state, ResponseState::Unclaimed);
            if is_free {
                *state = ResponseState::Claimed;
            }
            is_free
        });
        is_free.then(|| Claim(Arc::clone(self)))
    }
}

/// The right to produce a response. If it is dropped unused, another subscription may claim it.
#[derive(Debug)]
pub struct Claim(Arc<SharedResponse>);

impl Claim {
    /// Publishes the response.
    pub fn complete(self, made: ComputedResponse) {
        self.0.0.send_replace(ResponseState::Ready(Arc::new(made)));
    }

    /// Marks the response as dependent on the viewer.
    pub fn mark_personal(self) {
        self.0.0.send_replace(ResponseState::Personal);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.0.send_if_modified(|state| {
            let is_open = matches!(state, ResponseState::Claimed);
            if is_open {
                *state = ResponseState::Unclaimed;
            }
            is_open
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn one_makes_the_answer_and_if_it_fails_another_does() {
        let answer = SharedResponses::default().get(1);
        let claim = answer.claim().expect("unclaimed");
        assert!(answer.claim().is_none());
        drop(claim);
        assert!(answer.finished().await.is_none());
        let claim = answer.claim().expect("unclaimed again");
        answer.wait_claimed().await;
        let (bytes, payload) = (Arc::new(Semaphore::new(1)), Arc::from("{}"));
        let share = async {
            claim.complete(ComputedResponse {
                payload,
                bytes: bytes.acquire_owned().await.expect("room"),
            })
        };
        let (settled, ()) = tokio::join!(answer.finished(), share);
        assert_eq!(settled.as_deref(), Some("{}"));
        assert!(answer.claim().is_none());
    }
}
