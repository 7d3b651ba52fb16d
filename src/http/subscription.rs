//! A subscription from its words to what it tells: opened by the library's executor, which checks it and its arguments,
//! then told event by event.
//!
//! An event is answered once for everybody who asked the same in the same words, as long as nothing in the answer hangs
//! on who asks: then no resolver has asked the [`Caller`] for its viewer. Whether somebody may see the event at all was
//! asked of each before ([`crate::graphql::live`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_graphql::parser::types::{
    DocumentOperations, ExecutableDocument, Field, OperationType, Selection, SelectionSet,
};
use async_graphql::{PathSegment, Pos, Request, Response, ServerError, Variables};
use async_graphql_value::Value as Literal;
use aws_lc_rs::digest::{SHA256, digest};
use futures_util::StreamExt;
use tokio::task::coop::unconstrained;
use tracing::{Instrument, Span};

use super::answer::{Answer, too_large};
use super::document::Document;
use super::later;
use super::operation::{Door, Operation, checked, word};
use crate::App;
use crate::access::Viewer;
use crate::error::Code;
use crate::graphql::collect::{collected, has_values};
use crate::graphql::complete::{Shape, chosen};
use crate::graphql::deprecation::Deprecation;
use crate::graphql::live::{Happening, Happenings, Opening};
use crate::graphql::{Caller, Manner, Telling, event, telling};
use crate::metrics::{Executed, Open};

/// What the operations that are open are answered by.
pub struct Subscriptions {
    app: Arc<App>,
    telling: Telling,
    shape: Arc<Shape>,
    numbers: AtomicU64,
    questions: Mutex<HashMap<Vec<u8>, Weak<Question>>>,
}

/// What any number of subscribers ask in the same words.
struct Question {
    number: u64,
    document: Arc<Document>,
    name: Option<String>,
    /// What is to be executed of it, as a query of [`Telling`].
    executed: ExecutableDocument,
    /// The key of what is answered.
    field: String,
    variables: Variables,
    /// The answer was found to hang on who asks.
    personal: AtomicBool,
}

/// What a subscriber is told.
pub enum Told {
    /// Something happened.
    Event {
        /// The answer as JSON.
        payload: Arc<str>,
        /// The event's place in the log.
        cursor: String,
    },
    /// It cannot go on.
    Failed(Answer),
}

/// A subscription that is open. When it ends it is counted.
pub struct Subscription {
    happenings: Happenings,
    subscriber: Subscriber,
    /// Told once, with the first event.
    deprecations: Arc<[Deprecation]>,
    failure: Option<Code>,
    _open: Open,
}

/// Who asks what.
struct Subscriber {
    subscriptions: Arc<Subscriptions>,
    question: Arc<Question>,
    viewer: Option<Viewer>,
    request_id: Arc<str>,
}

impl Subscriptions {
    /// With none open.
    pub fn new(app: Arc<App>, shape: Arc<Shape>) -> Self {
        Self { app, telling: telling(), shape, numbers: AtomicU64::default(), questions: Mutex::default() }
    }

    fn question(&self, query: &str, document: Arc<Document>, request: &Request) -> Arc<Question> {
        let name = request.operation_name.clone();
        let root = chosen(&document, name.as_deref())
            .and_then(|operation| root_field(&document, &operation.selection_set.node));
        let field = root.map(|root| root.response_key().node.to_string()).unwrap_or_default();
        let variables = variables(query, root, request);
        // Sorted by name: in which order a client writes them says nothing.
        let mut sorted: Vec<_> = variables.iter().collect();
        sorted.sort_unstable_by_key(|(name, _)| *name);
        let words = digest(&SHA256, &serde_json::to_vec(&(query, &name, sorted)).unwrap_or_default());
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        let place = questions.entry(words.as_ref().to_vec()).or_default();
        if let Some(question) = place.upgrade() {
            return question;
        }
        let mut executed = collected(&self.shape, &document, name.as_deref(), &variables);
        match &mut executed.operations {
            DocumentOperations::Single(operation) => operation.node.ty = OperationType::Query,
            DocumentOperations::Multiple(operations) => {
                operations.values_mut().for_each(|operation| operation.node.ty = OperationType::Query);
            }
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let personal = AtomicBool::new(false);
        let question = Arc::new(Question { number, document, name, executed, field, variables, personal });
        *place = Arc::downgrade(&question);
        if questions.len() == questions.capacity() {
            questions.retain(|_, question| question.strong_count() > 0);
        }
        question
    }
}

/// The root field of a subscription, which has one.
fn root_field<'a>(document: &'a ExecutableDocument, set: &'a SelectionSet) -> Option<&'a Field> {
    set.items.iter().find_map(|selection| match &selection.node {
        Selection::Field(field) => Some(&field.node),
        Selection::InlineFragment(fragment) => root_field(document, &fragment.node.selection_set.node),
        Selection::FragmentSpread(spread) => {
            let fragment = document.fragments.get(&spread.node.fragment_name.node)?;
            root_field(document, &fragment.node.selection_set.node)
        }
    })
}

/// The variables but for the cursor it goes on after, which is heeded once, when the subscription is opened.
fn variables(query: &str, root: Option<&Field>, request: &Request) -> Variables {
    let mut variables = request.variables.clone();
    if let Some(Literal::Variable(name)) = root.and_then(|root| root.get_argument("after")).map(|after| &after.node)
        // Named where it is declared and there, and nowhere else.
        && query.match_indices(&format!("${name}")).count() == 2
    {
        variables.remove(name);
    }
    variables
}

impl Door {
    /// Opens a subscription, after this cursor if it is given, whatever the document says.
    pub async fn subscribe(
        &self,
        operation: Operation,
        after: Option<&str>,
        viewer: Option<Viewer>,
        request_id: Arc<str>,
    ) -> Result<Subscription, Answer> {
        let Operation { spent, document, manner, deprecations, mut request, query, client, .. } = operation;
        let question = self.subscriptions.question(&query, Arc::clone(&document), &request);
        let traced = self.app.traces.operation(word(OperationType::Subscription), question.name.as_deref());
        let opening = Opening::after(after);
        let (name, variables) = (request.operation_name.as_deref(), &request.variables);
        let as_written = manner.as_written && has_values(&document, name, variables);
        let mut refused = match as_written {
            true => None,
            false => self.schema.execute_stream(checked(&document, &request)).next().await,
        };
        if refused.is_none() {
            let (schema, document) = match as_written {
                true => (&self.schema, ExecutableDocument::clone(&document)),
                false => (&self.unchecked, collected(&self.shape, &document, name, variables)),
            };
            request.set_parsed_query(document);
            let caller = Caller::new(Arc::clone(&self.app), viewer, Manner::default(), client);
            refused = schema.execute_stream(request.data(caller).data(spent).data(opening.clone())).next().await;
        }
        match (refused, opening.take()) {
            (None, Some(happenings)) => Ok(Subscription {
                happenings,
                subscriber: Subscriber { subscriptions: Arc::clone(&self.subscriptions), question, viewer, request_id },
                deprecations,
                failure: None,
                _open: self.app.metrics.subscription(),
            }),
            (refused, _) => {
                let nothing = || ServerError::new("Nothing is left of it to subscribe to.", None);
                let refused = refused.unwrap_or_else(|| Response::from_errors(vec![nothing()]));
                let answer = Answer::of(refused, &request_id);
                if let Some(traced) = traced {
                    traced.ended(answer.code());
                }
                self.app.metrics.executed(executed(question.name.as_deref(), answer.code(), viewer));
                Err(answer)
            }
        }
    }
}

fn executed(name: Option<&str>, failure: Option<Code>, viewer: Option<Viewer>) -> Executed<'_> {
    let kind = word(OperationType::Subscription);
    Executed { name, kind, failure, signed_in: viewer.is_some(), took: None }
}

impl Subscription {
    /// What there is to tell next; nothing when there will be nothing more.
    pub async fn next(&mut self) -> Option<Told> {
        let happening = match self.happenings.next().await? {
            Ok(happening) => happening,
            Err(error) => {
                let error = self.subscriber.span().in_scope(|| async_graphql::Error::from(error));
                let error = error.into_server_error(Pos::default());
                let error = error.with_path(vec![PathSegment::Field(self.subscriber.question.field.clone())]);
                return Some(self.failed(Answer::of(Response::from_errors(vec![error]), &self.subscriber.request_id)));
            }
        };
        let cursor = event::cursor(happening.delivery.event.position());
        let deprecations = std::mem::take(&mut self.deprecations);
        // On the heap: it is rare next to waiting for it.
        match Box::pin(self.subscriber.answer(happening, deprecations)).await {
            Ok(payload) => Some(Told::Event { payload, cursor }),
            Err(answer) => Some(self.failed(*answer)),
        }
    }

    fn failed(&mut self, answer: Answer) -> Told {
        self.failure = self.failure.or_else(|| answer.code());
        Told::Failed(answer)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Subscriber { subscriptions, question, viewer, .. } = &self.subscriber;
        subscriptions.app.metrics.executed(executed(question.name.as_deref(), self.failure, *viewer));
    }
}

impl Subscriber {
    /// The answer to an event, everybody's or one's own; if nothing came of it, why.
    async fn answer(&self, happening: Happening, deprecations: Arc<[Deprecation]>) -> Result<Arc<str>, Box<Answer>> {
        let question = &self.question;
        let of_one = happening.notification.is_some() || !deprecations.is_empty();
        let common = match happening.delivery.objects.get() {
            Some(objects) if !of_one && !question.personal.load(Ordering::Relaxed) => {
                Some(objects.answers.to(question.number))
            }
            _ => None,
        };
        if let Some(common) = common {
            let mut own = None;
            let answered = common.get_or_init(async || {
                let (answer, viewer_mattered) = self.executed(happening.clone()).await;
                question.personal.fetch_or(viewer_mattered, Ordering::Relaxed);
                let is_common = !viewer_mattered && !answer.has_errors();
                match self.written(answer) {
                    Ok(payload) if is_common => Some(payload),
                    told => {
                        own = Some(told);
                        None
                    }
                }
            });
            if let Some(payload) = answered.await {
                return Ok(Arc::clone(payload));
            }
            if let Some(own) = own {
                return own;
            }
        }
        let (answer, _) = self.executed(happening).await;
        self.written(answer.warning(deprecations))
    }

    /// An answer as it is told. One of which nothing came is not: whoever goes on after the last event gets this one.
    fn written(&self, answer: Answer) -> Result<Arc<str>, Box<Answer>> {
        if !answer.is_executed() {
            return Err(Box::new(answer));
        }
        let text = answer.to_text().ok_or_else(|| Box::new(Answer::refused(too_large(), &self.request_id)))?;
        Ok(text.into())
    }

    fn span(&self) -> Span {
        later(&self.request_id, self.question.name.as_deref())
    }

    /// Answers an event for this subscriber, and whether it mattered who that is.
    async fn executed(&self, happening: Happening) -> (Answer, bool) {
        let Subscriptions { app, telling, shape, .. } = &*self.subscriptions;
        let Question { document, name, executed, variables, .. } = &*self.question;
        let traced = app.traces.event(word(OperationType::Subscription), name.as_deref());
        let caller = Caller::about(Arc::clone(app), self.viewer, Arc::clone(&happening.delivery));
        let mut request = Request::new(String::new()).variables(variables.clone());
        request.operation_name.clone_from(name);
        request.set_parsed_query(executed.clone());
        let response = telling.execute(request.data(caller.clone()).data(happening));
        let mut response = unconstrained(response.instrument(self.span())).await;
        shape.plan(document, name.as_deref()).complete(&mut response);
        let answer = Answer::of(response, &self.request_id);
        if let Some(traced) = traced {
            traced.ended(answer.code());
        }
        (answer, caller.viewer_mattered())
    }
}
