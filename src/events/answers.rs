//! Answers to one event that several subscriptions share: the first subscription that needs an answer makes it, the
//! others wait for it.
//!
//! Who makes the answer claims it only when ready to execute. Otherwise a subscription that waits for its turn to
//! execute would hold up all others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, watch};

/// The answers to one event, by the number of the question.
#[derive(Debug, Default)]
pub struct Answers(Mutex<HashMap<u64, Arc<SharedAnswer>>>);

impl Answers {
    /// The answer to a question.
    pub fn to(&self, question: u64) -> Arc<SharedAnswer> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(question).or_default())
    }
}

/// One answer, made or not.
#[derive(Debug, Default)]
pub struct SharedAnswer(watch::Sender<State>);

/// How far an answer is.
#[derive(Clone, Debug, Default)]
pub enum State {
    /// Nobody makes it yet.
    #[default]
    Unclaimed,
    /// One subscription makes it.
    Claimed,
    /// It is made.
    Made(Arc<Made>),
    /// It depends on the viewer: each subscription makes its own.
    Personal,
}

/// An answer with its share of the memory that answers may take.
#[derive(Debug)]
pub struct Made {
    /// The answer as JSON.
    pub payload: Arc<str>,
    /// Given back when the answer is dropped.
    pub bytes: OwnedSemaphorePermit,
}

impl SharedAnswer {
    /// How far it is now.
    pub fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// Waits until somebody makes it.
    pub async fn claimed(&self) {
        // Fails only without a sender, which is here.
        let _ = self.0.subscribe().wait_for(|state| !matches!(state, State::Unclaimed)).await;
    }

    /// Waits until nobody makes it any more; the answer, if there is one.
    pub async fn settled(&self) -> Option<Arc<str>> {
        let mut states = self.0.subscribe();
        let state = states.wait_for(|state| !matches!(state, State::Claimed)).await.ok()?;
        match &*state {
            State::Made(made) => Some(Arc::clone(&made.payload)),
            _ => None,
        }
    }

    /// Claims it; nothing if somebody else was faster.
    pub fn claim(self: &Arc<Self>) -> Option<Claim> {
        let is_free = self.0.send_if_modified(|state| {
            let is_free = matches!(state, State::Unclaimed);
            if is_free {
                *state = State::Claimed;
            }
            is_free
        });
        is_free.then(|| Claim(Arc::clone(self)))
    }
}

/// The right to make an answer; dropped without one, another subscription may claim it.
#[derive(Debug)]
pub struct Claim(Arc<SharedAnswer>);

impl Claim {
    /// Shares the answer.
    pub fn share(self, made: Made) {
        self.0.0.send_replace(State::Made(Arc::new(made)));
    }

    /// Says that each subscription has to make its own.
    pub fn is_personal(self) {
        self.0.0.send_replace(State::Personal);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.0.send_if_modified(|state| {
            let is_open = matches!(state, State::Claimed);
            if is_open {
                *state = State::Unclaimed;
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
        let answer = Answers::default().to(1);
        let claim = answer.claim().expect("unclaimed");
        assert!(answer.claim().is_none());
        drop(claim);
        assert!(answer.settled().await.is_none());
        let claim = answer.claim().expect("unclaimed again");
        answer.claimed().await;
        let (bytes, payload) = (Arc::new(Semaphore::new(1)), Arc::from("{}"));
        let share = async { claim.share(Made { payload, bytes: bytes.acquire_owned().await.expect("room") }) };
        let (settled, ()) = tokio::join!(answer.settled(), share);
        assert_eq!(settled.as_deref(), Some("{}"));
        assert!(answer.claim().is_none());
    }
}
