//! The life of one GraphQL operation, the same for every transport: parse the request, admit it,
//! charge its cost, execute it.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_graphql::parser::types::{
    Directive, DocumentOperations, ExecutableDocument, InlineFragment, OperationType, Selection,
    SelectionSet,
};
use async_graphql::{Name, Positioned, Request, Response, Variables};
use async_graphql_value::Value as Literal;
use axum::extract::FromRef;
use futures_util::FutureExt;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::task::coop::unconstrained;

use super::concurrency_limit::Permit;
use super::persisted::PersistedDocuments;
use super::prepared_document::{DocumentReader, PreparedDocument};
use super::response::{GraphqlResponse, RequestError};
use super::subscription::Subscriptions;
use super::user_slots::{UserSlot, UserSlots};
use crate::App;
use crate::access::Viewer;
use crate::admission::{self, AdmittedOperation};
use crate::error::{Code, Error};
use crate::graphql::collect::{apply_defaults, collect_fields, has_all_values};
use crate::graphql::deprecation::{Deprecation, Deprecations};
use crate::graphql::null_propagation::{SchemaIndex, operation_named};
use crate::graphql::rate_limit::OperationCharge;
use crate::graphql::{ExecutionHints, RequestContext, Schema, root_fast_path};
use crate::limits::{ClientKey, RateLimitBucket as Limited};
use crate::metrics::OperationOutcome;
use crate::network::Client;
use crate::store::search;

/// Execution deadline of an operation.
pub(super) const DEADLINE: Duration = Duration::from_secs(8);

/// A GraphQL request (GraphQL over HTTP, section "Request Parameters").
#[derive(Debug, Default)]
pub struct GraphqlRequest {
    pub query: Option<String>,
    pub operation_name: Option<String>,
    pub variables: Map<String, Value>,
    /// Protocol extensions, such as the hash of a persisted document.
    pub extensions: Map<String, Value>,
}

impl GraphqlRequest {
    /// Reads a request from JSON. Unknown members are ignored.
    pub fn from_json(members: Value) -> Result<Self, RequestError> {
        let wrong = |message: &str| Err(RequestError::new(Code::BadRequest, message));
        let mut members = match members {
            Value::Object(members) => members,
            Value::Array(_) => {
                return wrong("Send one operation per request: batching is not supported.");
            }
            _ => return wrong("Send a JSON object with `query`, `variables` and `operationName`."),
        };
        let mut text = |name: &str| match members.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(RequestError::new(
                Code::BadRequest,
                format!("`{name}` must be a string."),
            )),
        };
        let (query, operation_name) = (text("query")?, text("operationName")?);
        let mut map = |name: &str| match members.remove(name) {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(_) => Err(RequestError::new(
                Code::BadRequest,
                format!("`{name}` must be an object."),
            )),
        };
        Ok(Self {
            query,
            operation_name,
            variables: map("variables")?,
            extensions: map("extensions")?,
        })
    }
}

/// Shared state of the GraphQL routes.
#[derive(Clone)]
pub struct GraphqlService {
    pub app: Arc<App>,
    pub schema: Schema,
    /// The same schema without validation, for documents known to be valid.
    pub(super) unchecked: Schema,
    /// Limits on the size and complexity of a document.
    pub limits: Arc<admission::DocumentLimits>,
    /// Index of the schema types, used for null propagation.
    pub shape: Arc<SchemaIndex>,
    /// Deprecated parts of the schema.
    pub deprecations: Arc<Deprecations>,
    pub subscriptions: Arc<Subscriptions>,
    reader: Arc<DocumentReader>,
    /// Persisted or trusted documents.
    pub documents: Arc<PersistedDocuments>,
    /// Open sockets and event streams per user.
    pub sockets: Arc<UserSlots>,
    /// Open subscriptions per user.
    user_subscriptions: Arc<UserSlots>,
    /// Serializes exports, because each needs a lot of memory. [`super::in_flight`] limits how many
    /// finished exports may be unread.
    exports: Arc<Semaphore>,
}

impl FromRef<GraphqlService> for Arc<App> {
    fn from_ref(service: &GraphqlService) -> Self {
        Self::clone(&service.app)
    }
}

/// An admitted operation.
pub struct Operation {
    pub kind: OperationType,
    /// Its cost, and the state of the rate limit after it was charged.
    pub charge: OperationCharge,
    pub(super) document: Arc<PreparedDocument>,
    pub(super) hints: ExecutionHints,
    /// Deprecated parts of the schema that it uses.
    pub(super) deprecations: Arc<[Deprecation]>,
    pub(super) request: Request,
    /// The document text. Subscriptions with the same text and variables share their responses.
    pub(super) query: String,
    /// Whether it selects the account export.
    export: bool,
    /// Bytes of text that its searches may scan.
    pub(super) search_bytes: u64,
    /// The client, for the audit log.
    pub(super) client: Client,
}

impl GraphqlService {
    pub fn new(app: Arc<App>, schema: Schema) -> Self {
        let sdl = crate::graphql::sdl();
        let (shape, deprecations) = (
            Arc::new(SchemaIndex::of(&sdl)),
            Arc::new(Deprecations::of(&sdl)),
        );
        let config = &app.config;
        let limits = Arc::<admission::DocumentLimits>::default();
        let reader = Arc::new(DocumentReader::new(Arc::clone(&limits)));
        let subscriptions =
            Subscriptions::new(Arc::clone(&app), Arc::clone(&shape), Arc::clone(&reader));
        let documents = Arc::new(PersistedDocuments::new(
            config.persisted_queries,
            config.trusted_documents.as_ref(),
        ));
        Self {
            reader,
            unchecked: crate::graphql::unvalidated_schema(config.introspection),
            app,
            schema,
            limits,
            shape,
            deprecations,
            subscriptions: Arc::new(subscriptions),
            documents,
            sockets: Arc::default(),
            user_subscriptions: Arc::default(),
            exports: Arc::new(Semaphore::new(1)),
        }
    }

    /// Counts a request against the rate limit of the viewer, or of the address for an anonymous
    /// request.
    pub async fn count_request(
        &self,
        viewer: Option<Viewer>,
        address: IpAddr,
    ) -> Result<(), Error> {
        self.app
            .rate_limiter
            .admit(
                Limited::Graphql,
                client_key(viewer, address),
                self.app.clock.now(),
            )
            .await
    }

    /// Validates a request, computes its cost and charges it to the rate limit.
    pub async fn admit(
        &self,
        graphql_request: GraphqlRequest,
        viewer: Option<Viewer>,
        client: Client,
    ) -> Result<Operation, RequestError> {
        let who = client_key(viewer, client.address);
        let mut operation = self.prepare(graphql_request, client)?;
        let now = self.app.clock.now();
        let standing = self
            .app
            .rate_limiter
            .spend(Limited::Cost, who, operation.charge.cost, now)
            .await?;
        operation.charge.quota = standing.map(|standing| (standing, now.plus(standing.reset)));
        Ok(operation)
    }

    fn prepare(
        &self,
        mut graphql_request: GraphqlRequest,
        client: Client,
    ) -> Result<Operation, RequestError> {
        let hash = self.documents.resolve(&mut graphql_request)?;
        let query = graphql_request
            .query
            .ok_or_else(|| RequestError::new(Code::BadRequest, "`query` is required."))?;
        let document = self.reader.read(&query)?;
        let admitted = admission::admit(
            &document,
            graphql_request.operation_name.as_deref(),
            &graphql_request.variables,
            &self.limits,
        )?;
        if let Some(hash) = hash {
            self.documents.insert(&hash, &query);
        }
        let AdmittedOperation {
            operation: kind,
            name,
            cost,
            export,
            searches,
            introspection,
            ..
        } = admitted;
        if introspection && !self.app.config.introspection {
            return Err(RequestError::new(
                Code::ValidationFailed,
                "Introspection is disabled.",
            ));
        }
        let hints = document.hints(name.as_deref(), &self.shape)?;
        if kind == OperationType::Subscription && !hints.has_single_root {
            return Err(RequestError::new(
                Code::ValidationFailed,
                "A subscription must select exactly one root field.",
            ));
        }
        check_required_variables(&document, name.as_deref(), &graphql_request.variables)?;
        self.app
            .traces
            .set_operation(kind_name(kind), name.as_deref());
        if let Some(name) = &name {
            tracing::Span::current().record("operation", name.chars().take(80).collect::<String>());
        }
        let mut request = Request::new(String::new());
        request.operation_name.clone_from(&name);
        request.variables = Variables::from_json(Value::Object(graphql_request.variables));
        if let Some(operation) = operation_named(&document, name.as_deref()) {
            apply_defaults(&mut request.variables, operation);
        }
        let spent = OperationCharge { cost, quota: None };
        let search_bytes = searches.saturating_mul(search::MAX_SEARCH_BYTES);
        let deprecations =
            self.deprecations
                .find_used(&document, name.as_deref(), &request.variables);
        Ok(Operation {
            kind,
            charge: spent,
            document,
            hints,
            deprecations,
            request,
            query,
            export,
            search_bytes,
            client,
        })
    }

    /// Takes a subscription slot of the user, counted over all sockets and streams of this
    /// instance.
    pub fn subscription_slot(
        &self,
        viewer: Option<Viewer>,
    ) -> Result<Option<UserSlot>, RequestError> {
        let Some(viewer) = viewer else {
            return Ok(None);
        };
        let limit = self.app.config.sockets.subscriptions_per_user;
        let slot = self
            .user_subscriptions
            .take(viewer.id, limit)
            .ok_or_else(|| {
                RequestError::new(
                    Code::RateLimited,
                    format!("A user may have at most {limit} open subscriptions."),
                )
            })?;
        Ok(Some(slot))
    }

    /// Executes a query or a mutation. Dropping this future does not cancel a mutation, which
    /// writes in a task of its own.
    pub async fn execute(
        &self,
        operation: Operation,
        viewer: Option<Viewer>,
        request_id: &str,
        permit: Permit,
    ) -> GraphqlResponse {
        let Operation {
            kind,
            charge: spent,
            document,
            hints,
            deprecations,
            mut request,
            export,
            search_bytes,
            client,
            ..
        } = operation;
        let Ok(_making) = export.then(|| self.exports.try_acquire()).transpose() else {
            return GraphqlResponse::from_error(Error::unavailable().into(), request_id);
        };
        let form = document.validation_key(request.operation_name.as_deref(), &request.variables);
        let is_known = form
            .as_ref()
            .is_some_and(|form| document.is_validated(form));
        let (name, started) = (request.operation_name.clone(), Instant::now());
        let owner = client_key(viewer, client.address);
        let traced = self
            .app
            .traces
            .operation_span(kind_name(kind), name.as_deref());
        let caller = RequestContext::new(Arc::clone(&self.app), viewer, hints, client);
        // Taken before anything is read: a change that the operation does not observe has a later
        // position.
        let reached = *self.app.hub.tail_position().borrow();
        // Only signed-in users can subscribe.
        let sync = viewer
            .and(reached)
            .map(|reached| self.app.cursors.encode(reached));
        // Boxed, so that the wrappers below move a pointer instead of the whole future.
        let executed = Box::pin(async {
            if is_known
                && let Some(response) = root_fast_path::try_execute(
                    &document,
                    name.as_deref(),
                    &request.variables,
                    &caller,
                )
                .await
            {
                return response;
            }
            let (name, variables) = (name.as_deref(), &request.variables);
            let as_written = hints.as_written && has_all_values(&document, name, variables);
            if !as_written && !is_known {
                let refused = self
                    .schema
                    .execute(validation_request(&document, &request))
                    .await;
                if !refused.errors.is_empty() {
                    return refused;
                }
            }
            let schema = if as_written && !is_known {
                &self.schema
            } else {
                &self.unchecked
            };
            request.set_parsed_query(if as_written {
                ExecutableDocument::clone(&document)
            } else {
                collect_fields(&self.shape, &document, name, variables)
            });
            schema.execute(request.data(caller).data(spent)).await
        });
        // Tokio's cooperative budget would yield in the middle of a batch, and the loaders would
        // then run more and smaller statements.
        let executed = unconstrained(
            AssertUnwindSafe(permit.scope(DEADLINE, search_bytes).run(executed)).catch_unwind(),
        );
        let executed = self.app.rate_limiter.decoding.with_meter(owner, executed);
        let answer = match self.app.with_deadline(DEADLINE, executed).await {
            Ok(Ok(mut response)) => {
                if !is_complete(&response) {
                    self.shape
                        .plan(&document, name.as_deref())
                        .complete(&mut response);
                }
                let answer = GraphqlResponse::from_response(response, request_id);
                if let Some(form) = form.filter(|_| !is_known && answer.is_executed()) {
                    document.mark_validated(form);
                }
                answer
                    .with_extensions(spent.cost, sync)
                    .with_deprecations(deprecations)
                    .with_export_flag(export)
            }
            Ok(Err(_)) => GraphqlResponse::from_error(
                Error::internal("panic during execution").into(),
                request_id,
            ),
            Err(late) => GraphqlResponse::from_error(late.into(), request_id),
        };
        if let Some(traced) = traced {
            traced.record_outcome(answer.code());
        }
        self.app.metrics.record_operation(OperationOutcome {
            name: name.as_deref(),
            kind: kind_name(kind),
            failure: answer.code(),
            signed_in: viewer.is_some(),
            duration: Some(started.elapsed()),
        });
        answer
    }
}

/// A copy of the document for validation only: the selection set is wrapped in `@skip(if: true)`,
/// so that it is validated as written and executes nothing.
pub(super) fn validation_request(document: &ExecutableDocument, request: &Request) -> Request {
    let mut document = document.clone();
    let operation = match &mut document.operations {
        DocumentOperations::Single(operation) => Some(operation),
        DocumentOperations::Multiple(operations) => request
            .operation_name
            .as_deref()
            .and_then(|name| operations.get_mut(name)),
    };
    if let Some(operation) = operation {
        let place = Positioned::new((), operation.node.selection_set.pos);
        let at = |name| place.position_node(Name::new(name));
        let skip = Directive {
            name: at("skip"),
            arguments: vec![(at("if"), place.position_node(Literal::Boolean(true)))],
        };
        let all = InlineFragment {
            type_condition: None,
            directives: vec![place.position_node(skip)],
            selection_set: std::mem::replace(
                &mut operation.node.selection_set,
                place.position_node(SelectionSet::default()),
            ),
        };
        let all = Selection::InlineFragment(place.position_node(all));
        operation
            .node
            .selection_set
            .node
            .items
            .push(place.position_node(all));
    }
    let mut checked = Request::new(String::new()).variables(request.variables.clone());
    checked.operation_name.clone_from(&request.operation_name);
    checked.set_parsed_query(document);
    checked
}

/// Whether the response needs no null propagation: it is a single field that was resolved as a
/// whole.
fn is_complete(response: &Response) -> bool {
    let is_whole = |value: &async_graphql::Value| matches!(value, async_graphql::Value::Binary(_));
    response.errors.is_empty()
        && match &response.data {
            async_graphql::Value::Object(fields) => {
                fields.len() == 1 && fields.values().all(is_whole)
            }
            data => is_whole(data),
        }
}

pub(super) const fn kind_name(kind: OperationType) -> &'static str {
    match kind {
        OperationType::Query => "query",
        OperationType::Mutation => "mutation",
        OperationType::Subscription => "subscription",
    }
}

pub(super) fn client_key(viewer: Option<Viewer>, address: IpAddr) -> ClientKey {
    viewer.map_or_else(
        || ClientKey::address(address),
        |viewer| ClientKey::User(viewer.id),
    )
}

/// Checks that all required variables have a value. The library checks this too, but only for
/// variables that are used, and it does not separate this error from errors in the document.
fn check_required_variables(
    document: &ExecutableDocument,
    name: Option<&str>,
    values: &Map<String, Value>,
) -> Result<(), RequestError> {
    let chosen = document
        .operations
        .iter()
        .find(|(candidate, _)| candidate.map(|name| name.as_str()) == name);
    let Some((_, operation)) = chosen else {
        return Ok(());
    };
    for definition in &operation.node.variable_definitions {
        let (variable, kind) = (&definition.node.name.node, &definition.node.var_type.node);
        let given = match values.get(variable.as_str()) {
            None => kind.nullable || definition.node.default_value.is_some(),
            Some(Value::Null) => kind.nullable,
            Some(_) => true,
        };
        if !given {
            let message = format!("The variable ${variable} of type {kind} requires a value.");
            return Err(RequestError::new(Code::BadUserInput, message));
        }
    }
    Ok(())
}
