//! A subscription from request to responses. The library's executor opens it and validates its
//! arguments; after that each event is executed as a query of its own.
//!
//! Subscriptions with the same document and variables share the response to an event, unless a
//! resolver asked the [`RequestContext`] for its viewer while it was computed. Whether a viewer may
//! see the event at all is checked for each subscriber before that
//! ([`crate::graphql::event_stream`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_graphql::parser::types::{
    DocumentOperations, ExecutableDocument, Field, OperationType, Selection, SelectionSet,
};
use async_graphql::{PathSegment, Pos, Request, Response, ServerError, Variables};
use async_graphql_value::Value as Literal;
use aws_lc_rs::digest::{SHA256, digest};
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::coop::unconstrained;
use tracing::{Instrument, Span};

use super::background_span;
use super::concurrency_limit::{Permit, WaitPolicy};
use super::fifo_cache::FifoCache;
use super::operation::{DEADLINE, GraphqlService, Operation, kind_name, validation_request};
use super::prepared_document::{DocumentReader, MIN_CACHED_BYTES, PreparedDocument};
use super::response::{GraphqlResponse, RequestError, too_large};
use super::user_slots::UserSlot;
use crate::App;
use crate::access::Viewer;
use crate::error::{Code, Error};
use crate::events::LogPosition;
use crate::events::shared_response::{Claim, ComputedResponse, ResponseState};
use crate::graphql::collect::{collect_fields, has_all_values};
use crate::graphql::deprecation::Deprecation;
use crate::graphql::event_stream::{EventStream, SubscriptionEvent, SubscriptionHandle};
use crate::graphql::null_propagation::{SchemaIndex, operation_named};
use crate::graphql::{EventSchema, ExecutionHints, RequestContext, event_schema};
use crate::limits::{ClientKey, RateLimitBucket as Limited};
use crate::metrics::{OpenGauge, OperationOutcome};

/// Maximum size of the variables of a subscription, in bytes. They stay in memory while it is open.
const MAX_VARIABLE_BYTES: usize = 8 * 1024;
/// Capacity of the cache of parsed subscriptions, in bytes of document and variables. The parsed
/// form takes up to a hundred times as much, so a subscription keeps only its text and is parsed
/// again when it is not in this cache.
const MAX_CACHED_BYTES: usize = 256 * 1024;
/// Maximum size of the responses that wait to be shared with other subscriptions, in bytes.
const MAX_SHARED_BYTES: usize = 32 * 1024 * 1024;

/// State shared by all open subscriptions.
pub struct Subscriptions {
    app: Arc<App>,
    schema: EventSchema,
    shape: Arc<SchemaIndex>,
    reader: Arc<DocumentReader>,
    next_number: AtomicU64,
    shared_subscriptions: Mutex<HashMap<[u8; 32], Weak<SharedSubscription>>>,
    parsed: FifoCache<Arc<ParsedSubscription>>,
    shared_bytes: Arc<Semaphore>,
}

/// A document with variables, shared by all subscriptions that are equal in both. Stored as text,
/// because there may be many and each may be as long as a document may be.
struct SharedSubscription {
    number: u64,
    query: Box<str>,
    name: Option<Box<str>>,
    /// Response key of the root field.
    field: Box<str>,
    /// Variables as JSON.
    variables: Box<str>,
    /// Cost of one event, in points.
    cost: u32,
    /// Bytes of text that its searches may scan.
    search_bytes: u64,
    /// Set once a response depended on the viewer. Responses are not shared from then on.
    is_personal: AtomicBool,
}

/// The parsed form of a subscription.
struct ParsedSubscription {
    document: Arc<PreparedDocument>,
    /// The document to execute for each event, as a query against [`EventSchema`].
    executed: ExecutableDocument,
    variables: Variables,
}

/// A message to a subscriber.
pub enum SubscriptionMessage {
    /// An event.
    Event {
        /// The response as JSON.
        payload: Arc<str>,
        /// Cursor of the event.
        cursor: String,
    },
    /// The subscription failed and ends.
    Failed {
        /// The error response.
        answer: GraphqlResponse,
        /// Cursor from which the client can resume.
        cursor: Option<String>,
    },
}

/// An open subscription. Dropping it records its end in the metrics.
pub struct ActiveSubscription {
    events: EventStream,
    subscriber: SubscriptionClient,
    /// Position of the last event that was processed.
    position: Option<LogPosition>,
    /// Sent once, with the first event.
    deprecations: Arc<[Deprecation]>,
    failure: Option<Code>,
    _slot: Option<UserSlot>,
    _open: OpenGauge,
}

/// One subscriber: a viewer and what it has subscribed to.
struct SubscriptionClient {
    subscriptions: Arc<Subscriptions>,
    shared_subscription: Arc<SharedSubscription>,
    viewer: Option<Viewer>,
    request_id: Arc<str>,
}

impl Subscriptions {
    pub fn new(app: Arc<App>, shape: Arc<SchemaIndex>, reader: Arc<DocumentReader>) -> Self {
        Self {
            app,
            schema: event_schema(),
            shape,
            reader,
            next_number: AtomicU64::default(),
            shared_subscriptions: Mutex::default(),
            parsed: FifoCache::new(MAX_CACHED_BYTES),
            shared_bytes: Arc::new(Semaphore::new(MAX_SHARED_BYTES)),
        }
    }

    fn shared_subscription(
        &self,
        query: &str,
        document: &Arc<PreparedDocument>,
        request: &Request,
        cost: u32,
        search_bytes: u64,
    ) -> Result<Arc<SharedSubscription>, RequestError> {
        let name = request.operation_name.as_deref();
        let root = operation_named(document, name)
            .and_then(|operation| root_field(document, &operation.selection_set.node));
        let variables = variables(query, document, root, request);
        let variables = serde_json::to_string(&variables).unwrap_or_default();
        if variables.len() > MAX_VARIABLE_BYTES {
            let message =
                format!("The variables of a subscription exceed {MAX_VARIABLE_BYTES} bytes.");
            return Err(RequestError::new(Code::VariablesTooLarge, message));
        }
        let graphql_request = digest(
            &SHA256,
            &serde_json::to_vec(&(query, name, &variables)).unwrap_or_default(),
        );
        let graphql_request = graphql_request.as_ref().try_into().unwrap_or_default();
        let mut questions = self
            .shared_subscriptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let place = questions.entry(graphql_request).or_default();
        if let Some(shared_subscription) = place.upgrade() {
            return Ok(shared_subscription);
        }
        let shared_subscription = Arc::new(SharedSubscription {
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            query: query.into(),
            name: name.map(Into::into),
            field: root
                .map(|root| root.response_key().node.as_str().into())
                .unwrap_or_default(),
            variables: variables.into(),
            cost,
            search_bytes,
            is_personal: AtomicBool::new(false),
        });
        *place = Arc::downgrade(&shared_subscription);
        if questions.len() == questions.capacity() {
            questions.retain(|_, shared_subscription| shared_subscription.strong_count() > 0);
        }
        Ok(shared_subscription)
    }

    /// Returns the parsed form of a shared subscription, from the cache if possible.
    fn parsed(
        &self,
        shared_subscription: &SharedSubscription,
    ) -> Result<Arc<ParsedSubscription>, RequestError> {
        let key = shared_subscription.number.to_string();
        if let Some(prepared) = self.parsed.get(&key) {
            return Ok(prepared);
        }
        let document = self.reader.read(&shared_subscription.query)?;
        let variables =
            serde_json::from_str(&shared_subscription.variables).map_err(Error::internal)?;
        let variables = Variables::from_json(variables);
        let mut executed = collect_fields(
            &self.shape,
            &document,
            shared_subscription.name.as_deref(),
            &variables,
        );
        match &mut executed.operations {
            DocumentOperations::Single(operation) => operation.node.ty = OperationType::Query,
            DocumentOperations::Multiple(operations) => {
                operations
                    .values_mut()
                    .for_each(|operation| operation.node.ty = OperationType::Query);
            }
        }
        let prepared = Arc::new(ParsedSubscription {
            document,
            executed,
            variables,
        });
        let bytes = shared_subscription.query.len() + shared_subscription.variables.len();
        self.parsed
            .insert(&key, bytes.max(MIN_CACHED_BYTES), Arc::clone(&prepared));
        Ok(prepared)
    }
}

/// The root field. Admission ensures that there is exactly one.
fn root_field<'a>(document: &'a ExecutableDocument, set: &'a SelectionSet) -> Option<&'a Field> {
    set.items
        .iter()
        .find_map(|selection| match &selection.node {
            Selection::Field(field) => Some(&field.node),
            Selection::InlineFragment(fragment) => {
                root_field(document, &fragment.node.selection_set.node)
            }
            Selection::FragmentSpread(spread) => {
                let fragment = document.fragments.get(&spread.node.fragment_name.node)?;
                root_field(document, &fragment.node.selection_set.node)
            }
        })
}

/// The declared variables, sorted by name. A variable that is only used as the `after` cursor is
/// left out: it is used once, when the subscription opens, and would prevent sharing.
fn variables(
    query: &str,
    document: &PreparedDocument,
    root: Option<&Field>,
    request: &Request,
) -> BTreeMap<String, serde_json::Value> {
    let definitions = operation_named(document, request.operation_name.as_deref()).into_iter();
    let declared = definitions
        .flat_map(|operation| &operation.variable_definitions)
        .map(|it| &it.node.name.node);
    let mut variables: BTreeMap<String, serde_json::Value> = declared
        .filter_map(|name| {
            Some((
                name.to_string(),
                request.variables.get(name)?.clone().into_json().ok()?,
            ))
        })
        .collect();
    if let Some(Literal::Variable(name)) = root.and_then(|root| root.get_argument("after")).map(|after| &after.node)
        // Occurs exactly twice: in its declaration and as the value of `after`.
        && query.match_indices(&format!("${name}")).count() == 2
    {
        variables.remove(name.as_str());
    }
    variables
}

impl GraphqlService {
    /// Opens a subscription. `after`, if given, takes precedence over the argument in the document.
    pub async fn subscribe(
        &self,
        operation: Operation,
        slot: Option<UserSlot>,
        after: Option<&str>,
        viewer: Option<Viewer>,
        request_id: Arc<str>,
    ) -> Result<ActiveSubscription, GraphqlResponse> {
        let Operation {
            charge: spent,
            document,
            hints,
            deprecations,
            mut request,
            query,
            search_bytes,
            client,
            ..
        } = operation;
        let shared_subscription = self.subscriptions.shared_subscription(
            &query,
            &document,
            &request,
            spent.cost,
            search_bytes,
        );
        let shared_subscription = shared_subscription
            .map_err(|refused| GraphqlResponse::from_error(refused, &request_id))?;
        let traced = self.app.traces.operation_span(
            kind_name(OperationType::Subscription),
            shared_subscription.name.as_deref(),
        );
        let opening = SubscriptionHandle::resume_after(after);
        let opened = async {
            let (name, variables) = (request.operation_name.as_deref(), &request.variables);
            let as_written = hints.as_written && has_all_values(&document, name, variables);
            if !as_written
                && let Some(refused) = self
                    .schema
                    .execute_stream(validation_request(&document, &request))
                    .next()
                    .await
            {
                return Some(refused);
            }
            let (schema, document) = match as_written {
                true => (&self.schema, ExecutableDocument::clone(&document)),
                false => (
                    &self.unchecked,
                    collect_fields(&self.shape, &document, name, variables),
                ),
            };
            request.set_parsed_query(document);
            let caller = RequestContext::new(
                Arc::clone(&self.app),
                viewer,
                ExecutionHints::default(),
                client,
            );
            schema
                .execute_stream(request.data(caller).data(spent).data(opening.clone()))
                .next()
                .await
        };
        let opened = self.app.with_deadline(DEADLINE, Box::pin(opened)).await;
        let answer = match (opened, opening.take_stream()) {
            (Ok(None), Some(events)) => {
                return Ok(ActiveSubscription {
                    events,
                    subscriber: SubscriptionClient {
                        subscriptions: Arc::clone(&self.subscriptions),
                        shared_subscription,
                        viewer,
                        request_id,
                    },
                    position: None,
                    deprecations,
                    failure: None,
                    _slot: slot,
                    _open: self.app.metrics.open_subscription(),
                });
            }
            (Ok(refused), _) => {
                let nothing = || ServerError::new("The subscription selects no field.", None);
                let refused = refused.unwrap_or_else(|| Response::from_errors(vec![nothing()]));
                GraphqlResponse::from_response(refused, &request_id)
            }
            (Err(late), _) => GraphqlResponse::from_error(late.into(), &request_id),
        };
        if let Some(traced) = traced {
            traced.record_outcome(answer.code());
        }
        self.app.metrics.record_operation(outcome(
            shared_subscription.name.as_deref(),
            answer.code(),
            viewer,
        ));
        Err(answer)
    }
}

fn outcome(
    name: Option<&str>,
    failure: Option<Code>,
    viewer: Option<Viewer>,
) -> OperationOutcome<'_> {
    let kind = kind_name(OperationType::Subscription);
    OperationOutcome {
        name,
        kind,
        failure,
        signed_in: viewer.is_some(),
        duration: None,
    }
}

impl ActiveSubscription {
    /// Waits for the next message. Returns `None` when the subscription has ended.
    pub async fn next(&mut self) -> Option<SubscriptionMessage> {
        loop {
            let event = match self.events.next().await? {
                Ok(event) => event,
                Err(error) => {
                    let error = self
                        .subscriber
                        .span()
                        .in_scope(|| async_graphql::Error::from(error));
                    let error = error.into_server_error(Pos::default());
                    let error = error.with_path(vec![PathSegment::Field(
                        self.subscriber.shared_subscription.field.to_string(),
                    )]);
                    let answer = GraphqlResponse::from_response(
                        Response::from_errors(vec![error]),
                        &self.subscriber.request_id,
                    );
                    return Some(self.failed(answer, self.position));
                }
            };
            let (position, before) = (event.event.position(), event.before);
            self.position = Some(position);
            let deprecations = Arc::clone(&self.deprecations);
            // Boxed: executing is rare compared to waiting.
            match Box::pin(self.subscriber.respond(event, deprecations)).await {
                Ok(Some(payload)) => {
                    self.deprecations = Arc::default();
                    return Some(SubscriptionMessage::Event {
                        payload,
                        cursor: self.cursor(position),
                    });
                }
                Ok(None) => {}
                Err(answer) => return Some(self.failed(*answer, Some(before))),
            }
        }
    }

    fn cursor(&self, position: LogPosition) -> String {
        self.subscriber.subscriptions.app.cursors.encode(position)
    }

    fn failed(
        &mut self,
        answer: GraphqlResponse,
        position: Option<LogPosition>,
    ) -> SubscriptionMessage {
        self.failure = self.failure.or_else(|| answer.code());
        let cursor = position.map(|position| self.cursor(position));
        let answer = match &cursor {
            // Temporary failure: the client can resume from the cursor after the delay.
            Some(cursor) if answer.retry_after.is_some() => answer.with_resume_cursor(cursor),
            _ => answer,
        };
        SubscriptionMessage::Failed { answer, cursor }
    }
}

impl Drop for ActiveSubscription {
    fn drop(&mut self) {
        let SubscriptionClient {
            subscriptions,
            shared_subscription,
            viewer,
            ..
        } = &self.subscriber;
        subscriptions.app.metrics.record_operation(outcome(
            shared_subscription.name.as_deref(),
            self.failure,
            *viewer,
        ));
    }
}

impl SubscriptionClient {
    /// Returns the response to an event, shared or computed for this subscriber. Returns `None` if
    /// the viewer may no longer see the event, and an error if the subscription must end.
    async fn respond(
        &self,
        event: SubscriptionEvent,
        deprecations: Arc<[Deprecation]>,
    ) -> Result<Option<Arc<str>>, Box<GraphqlResponse>> {
        let (app, shared_subscription) = (&self.subscriptions.app, &self.shared_subscription);
        let viewer = self
            .viewer
            .ok_or_else(|| self.refused(Error::unauthenticated()))?;
        let paid = app
            .rate_limiter
            .spend(
                Limited::Deliveries,
                ClientKey::User(viewer.id),
                shared_subscription.cost,
                app.clock.now(),
            )
            .await;
        paid.map_err(|error| self.refused(error))?;
        let is_own = event.notification.is_some() || !deprecations.is_empty();
        let (mut event, mut permit) = (event, None);
        // Start again after each wait, because permissions may have changed meanwhile.
        loop {
            let current = event
                .refresh(app, &viewer)
                .await
                .map_err(|error| self.refused(error))?;
            event = match current {
                Some(current) => current,
                None => return Ok(None),
            };
            let shared = (!is_own && !shared_subscription.is_personal.load(Ordering::Relaxed))
                .then(|| event.objects.answers.get(shared_subscription.number));
            match shared.as_ref().map(|shared| (shared, shared.state())) {
                Some((_, ResponseState::Ready(made))) => {
                    return Ok(Some(Arc::clone(&made.payload)));
                }
                Some((shared, ResponseState::Claimed)) => {
                    permit = None;
                    if let Some(payload) = shared.finished().await {
                        return Ok(Some(payload));
                    }
                }
                Some((shared, ResponseState::Unclaimed)) if permit.is_none() => tokio::select! {
                    () = shared.wait_claimed() => {}
                    acquired = self.permit(viewer) => permit = Some(acquired?),
                },
                Some((shared, ResponseState::Unclaimed)) => {
                    if let Some(claim) = shared.claim()
                        && let Some(permit) = permit.take()
                    {
                        let made = self.compute(event, claim);
                        return permit
                            .scope(DEADLINE, shared_subscription.search_bytes)
                            .run(made)
                            .await
                            .map(Some);
                    }
                }
                None | Some((_, ResponseState::Personal)) if permit.is_none() => {
                    permit = Some(self.permit(viewer).await?)
                }
                None | Some((_, ResponseState::Personal)) => {
                    let Some(permit) = permit.take() else {
                        continue;
                    };
                    let (answer, _) = permit
                        .scope(DEADLINE, shared_subscription.search_bytes)
                        .run(self.execute(event))
                        .await;
                    return self
                        .serialize(answer.with_deprecations(deprecations))
                        .map(Some);
                }
            }
        }
    }

    /// Acquires a concurrency permit for this subscriber.
    async fn permit(&self, viewer: Viewer) -> Result<Permit, Box<GraphqlResponse>> {
        let acquired = self
            .subscriptions
            .app
            .concurrency
            .acquire(ClientKey::User(viewer.id), WaitPolicy::Event)
            .await;
        acquired.map_err(|error| self.refused(error))
    }

    /// Computes a response, and shares it with equal subscriptions unless it depends on the viewer.
    async fn compute(
        &self,
        event: SubscriptionEvent,
        claim: Claim,
    ) -> Result<Arc<str>, Box<GraphqlResponse>> {
        let (answer, viewer_accessed) = self.execute(event).await;
        self.shared_subscription
            .is_personal
            .fetch_or(viewer_accessed, Ordering::Relaxed);
        let is_common = !viewer_accessed && !answer.has_errors();
        let payload = self.serialize(answer)?;
        if !is_common {
            claim.mark_personal();
            return Ok(payload);
        }
        let is_shared = Arc::strong_count(&self.shared_subscription) > 1;
        let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if is_shared
            && let Ok(bytes) =
                Arc::clone(&self.subscriptions.shared_bytes).try_acquire_many_owned(bytes)
        {
            claim.complete(ComputedResponse {
                payload: Arc::clone(&payload),
                bytes,
            });
        }
        Ok(payload)
    }

    fn refused(&self, error: Error) -> Box<GraphqlResponse> {
        let refused = self.span().in_scope(|| RequestError::from(error));
        Box::new(GraphqlResponse::from_error(refused, &self.request_id))
    }

    /// Serializes a response. A response that was not executed becomes an error, so that a client
    /// that resumes after the last event receives this one.
    fn serialize(&self, answer: GraphqlResponse) -> Result<Arc<str>, Box<GraphqlResponse>> {
        if !answer.is_executed() {
            return Err(Box::new(answer));
        }
        let text = answer
            .to_text()
            .ok_or_else(|| Box::new(GraphqlResponse::from_error(too_large(), &self.request_id)))?;
        Ok(text.into())
    }

    fn span(&self) -> Span {
        background_span(&self.request_id, self.shared_subscription.name.as_deref())
    }

    /// Executes the subscription for an event. Also returns whether the response depends on the
    /// viewer.
    async fn execute(&self, event: SubscriptionEvent) -> (GraphqlResponse, bool) {
        let Subscriptions {
            app,
            schema: telling,
            shape,
            ..
        } = &*self.subscriptions;
        let prepared = match self.subscriptions.parsed(&self.shared_subscription) {
            Ok(prepared) => prepared,
            Err(refused) => return (GraphqlResponse::from_error(refused, &self.request_id), true),
        };
        let Some(viewer) = self.viewer else {
            return (*self.refused(Error::unauthenticated()), true);
        };
        let ParsedSubscription {
            document,
            executed,
            variables,
        } = &*prepared;
        let name = self.shared_subscription.name.as_deref();
        let traced = app
            .traces
            .event_span(kind_name(OperationType::Subscription), name);
        let caller =
            RequestContext::for_event(Arc::clone(app), self.viewer, &event.event, &event.objects);
        let mut request = Request::new(String::new()).variables(variables.clone());
        request.operation_name = name.map(ToOwned::to_owned);
        request.set_parsed_query(executed.clone());
        let response = telling.execute(request.data(caller.clone()).data(event));
        let response = unconstrained(
            app.rate_limiter
                .decoding
                .with_meter(ClientKey::User(viewer.id), response.instrument(self.span())),
        );
        let answer = match app.with_deadline(DEADLINE, response).await {
            Ok(mut response) => {
                shape.plan(document, name).complete(&mut response);
                GraphqlResponse::from_response(response, &self.request_id)
            }
            Err(late) => GraphqlResponse::from_error(late.into(), &self.request_id),
        };
        if let Some(traced) = traced {
            traced.record_outcome(answer.code());
        }
        (answer, caller.viewer_accessed())
    }
}
