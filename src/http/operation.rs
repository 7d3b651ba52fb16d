//! One operation from its words to its answer, the same for every transport: read, admitted, paid for, executed.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_graphql::parser::types::{
    Directive, DocumentOperations, ExecutableDocument, InlineFragment, OperationType, Selection, SelectionSet,
};
use async_graphql::{Name, Positioned, Request, Response, Variables};
use async_graphql_value::Value as Literal;
use axum::extract::FromRef;
use futures_util::FutureExt;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::task::coop::unconstrained;

use super::answer::{Answer, Refused};
use super::concurrency_limit::Permit;
use super::document::{Document, Reader};
use super::persisted::Documents;
use super::subscription::Subscriptions;
use super::user_slots::{UserSlot, UserSlots};
use crate::App;
use crate::access::Viewer;
use crate::admission::{self, Admitted};
use crate::error::{Code, Error};
use crate::graphql::collect::{collected, defaulted, has_values};
use crate::graphql::complete::{Shape, chosen};
use crate::graphql::deprecation::{Deprecation, Deprecations};
use crate::graphql::rate_limit::Spent;
use crate::graphql::{Caller, Manner, Schema, direct};
use crate::limits::{Door as Limited, Who};
use crate::metrics::Executed;
use crate::network::Client;
use crate::store::search;

/// How long an operation may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(8);

/// An operation as a client words it.
#[derive(Debug, Default)]
pub struct Words {
    /// The document.
    pub query: Option<String>,
    /// Which of its operations.
    pub operation_name: Option<String>,
    /// The values of its variables.
    pub variables: Map<String, Value>,
    /// What else there is, such as the hash of a persisted document.
    pub extensions: Map<String, Value>,
}

impl Words {
    /// Reads the members of a request; unknown ones are left alone.
    pub fn of(members: Value) -> Result<Self, Refused> {
        let wrong = |message: &str| Err(Refused::new(Code::BadRequest, message));
        let mut members = match members {
            Value::Object(members) => members,
            Value::Array(_) => return wrong("Send one operation at a time: batches are not taken."),
            _ => return wrong("Send a JSON object with `query`, `variables` and `operationName`."),
        };
        let mut text = |name: &str| match members.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refused::new(Code::BadRequest, format!("`{name}` must be a string."))),
        };
        let (query, operation_name) = (text("query")?, text("operationName")?);
        let mut map = |name: &str| match members.remove(name) {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(_) => Err(Refused::new(Code::BadRequest, format!("`{name}` must be an object."))),
        };
        Ok(Self { query, operation_name, variables: map("variables")?, extensions: map("extensions")? })
    }
}

/// What the GraphQL routes share.
#[derive(Clone)]
pub struct Door {
    /// The server.
    pub app: Arc<App>,
    /// The schema.
    pub schema: Schema,
    /// The same, for what is known to be valid.
    pub(super) unchecked: Schema,
    /// What a document may cost.
    pub limits: Arc<admission::Limits>,
    /// The types of the schema, to complete answers by.
    pub shape: Arc<Shape>,
    /// What of the schema is going to be removed.
    pub deprecations: Arc<Deprecations>,
    /// The subscriptions that are open.
    pub subscriptions: Arc<Subscriptions>,
    /// Reads documents.
    reader: Arc<Reader>,
    /// The documents that are known by their hash.
    pub documents: Arc<Documents>,
    /// The sockets and event streams of each user.
    pub sockets: Arc<UserSlots>,
    /// The subscriptions of each user.
    user_subscriptions: Arc<UserSlots>,
    /// Makes one export at a time, which takes a lot of memory. How many may be unread, [`super::in_flight`] says.
    exports: Arc<Semaphore>,
}

impl FromRef<Door> for Arc<App> {
    fn from_ref(door: &Door) -> Self {
        Self::clone(&door.app)
    }
}

/// An operation that may be executed.
pub struct Operation {
    /// What it is.
    pub kind: OperationType,
    /// What it costs, and what that leaves.
    pub spent: Spent,
    pub(super) document: Arc<Document>,
    /// How it is answered.
    pub(super) manner: Manner,
    /// What it uses that is going to be removed.
    pub(super) deprecations: Arc<[Deprecation]>,
    pub(super) request: Request,
    /// The words, for subscriptions: who asks the same is told the same.
    pub(super) query: String,
    /// Whether it exports an account.
    export: bool,
    /// Bytes of text that its searches may read.
    pub(super) search_bytes: u64,
    /// Who asks for it, for the audit log.
    pub(super) client: Client,
}

impl Door {
    /// A door to this schema.
    pub fn new(app: Arc<App>, schema: Schema) -> Self {
        let sdl = crate::graphql::sdl();
        let (shape, deprecations) = (Arc::new(Shape::of(&sdl)), Arc::new(Deprecations::of(&sdl)));
        let config = &app.config;
        let limits = Arc::<admission::Limits>::default();
        let reader = Arc::new(Reader::new(Arc::clone(&limits)));
        let subscriptions = Subscriptions::new(Arc::clone(&app), Arc::clone(&shape), Arc::clone(&reader));
        let documents = Arc::new(Documents::new(config.persisted_queries, config.trusted_documents.as_ref()));
        Self {
            reader,
            unchecked: crate::graphql::unchecked(config.introspection),
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

    /// Counts a request against the limits of who makes it.
    pub async fn enter(&self, viewer: Option<Viewer>, address: IpAddr) -> Result<(), Error> {
        self.app.limits.admit(Limited::Graphql, who(viewer, address), self.app.clock.now()).await
    }

    /// Decides whether an operation may be executed, and has it paid for.
    pub async fn admit(&self, words: Words, viewer: Option<Viewer>, client: Client) -> Result<Operation, Refused> {
        let who = who(viewer, client.address);
        let mut operation = self.examine(words, client)?;
        let now = self.app.clock.now();
        let standing = self.app.limits.spend(Limited::Cost, who, operation.spent.cost, now).await?;
        operation.spent.standing = standing.map(|standing| (standing, now.plus(standing.reset)));
        Ok(operation)
    }

    fn examine(&self, mut words: Words, client: Client) -> Result<Operation, Refused> {
        let hash = self.documents.resolve(&mut words)?;
        let query = words.query.ok_or_else(|| Refused::new(Code::BadRequest, "`query` is missing."))?;
        let document = self.reader.read(&query)?;
        let admitted = admission::admit(&document, words.operation_name.as_deref(), &words.variables, &self.limits)?;
        if let Some(hash) = hash {
            self.documents.remember(&hash, &query);
        }
        let Admitted { operation: kind, name, cost, export, searches, introspection, .. } = admitted;
        if introspection && !self.app.config.introspection {
            return Err(Refused::new(Code::ValidationFailed, "The schema cannot be asked for on this server."));
        }
        let manner = document.manner(name.as_deref(), &self.shape)?;
        if kind == OperationType::Subscription && !manner.is_single {
            return Err(Refused::new(Code::ValidationFailed, "A subscription must have one root field."));
        }
        required(&document, name.as_deref(), &words.variables)?;
        self.app.traces.asks_for(word(kind), name.as_deref());
        if let Some(name) = &name {
            tracing::Span::current().record("operation", name.chars().take(80).collect::<String>());
        }
        let mut request = Request::new(String::new());
        request.operation_name.clone_from(&name);
        request.variables = Variables::from_json(Value::Object(words.variables));
        if let Some(operation) = chosen(&document, name.as_deref()) {
            defaulted(&mut request.variables, operation);
        }
        let spent = Spent { cost, standing: None };
        let search_bytes = searches.saturating_mul(search::MAX_BYTES);
        let deprecations = self.deprecations.used(&document, name.as_deref(), &request.variables);
        Ok(Operation { kind, spent, document, manner, deprecations, request, query, export, search_bytes, client })
    }

    /// Takes one of the subscriptions that a user may have on this instance, over all sockets and streams.
    pub fn subscription_slot(&self, viewer: Option<Viewer>) -> Result<Option<UserSlot>, Refused> {
        let Some(viewer) = viewer else { return Ok(None) };
        let most = self.app.config.sockets.subscriptions_per_user;
        let slot = self.user_subscriptions.take(viewer.id, most).ok_or_else(|| {
            Refused::new(Code::RateLimited, format!("A user may have at most {most} subscriptions at once."))
        })?;
        Ok(Some(slot))
    }

    /// Executes a query or a mutation. Whoever stops waiting does not stop a mutation: it runs in a task of its own.
    pub async fn execute(
        &self,
        operation: Operation,
        viewer: Option<Viewer>,
        request_id: &str,
        permit: Permit,
    ) -> Answer {
        let Operation {
            kind, spent, document, manner, deprecations, mut request, export, search_bytes, client, ..
        } = operation;
        let Ok(_making) = export.then(|| self.exports.try_acquire()).transpose() else {
            return Answer::refused(Error::unavailable().into(), request_id);
        };
        let form = document.form(request.operation_name.as_deref(), &request.variables);
        let is_known = form.as_ref().is_some_and(|form| document.is_known(form));
        let (name, started) = (request.operation_name.clone(), Instant::now());
        let owner = who(viewer, client.address);
        let traced = self.app.traces.operation(word(kind), name.as_deref());
        let caller = Caller::new(Arc::clone(&self.app), viewer, manner, client);
        // Taken before anything is read: what the operation does not see comes after it.
        let reached = *self.app.hub.reached().borrow();
        // Only who is signed in can do anything with it.
        let sync = viewer.and(reached).map(|reached| self.app.cursors.encode(reached));
        // Boxed, so that it is not moved by everything that is put around it.
        let executed = Box::pin(async {
            if is_known
                && let Some(response) = direct::answer(&document, name.as_deref(), &request.variables, &caller).await
            {
                return response;
            }
            let (name, variables) = (name.as_deref(), &request.variables);
            let as_written = manner.as_written && has_values(&document, name, variables);
            if !as_written && !is_known {
                let refused = self.schema.execute(checked(&document, &request)).await;
                if !refused.errors.is_empty() {
                    return refused;
                }
            }
            let schema = if as_written && !is_known { &self.schema } else { &self.unchecked };
            request.set_parsed_query(if as_written {
                ExecutableDocument::clone(&document)
            } else {
                collected(&self.shape, &document, name, variables)
            });
            schema.execute(request.data(caller).data(spent)).await
        });
        // Tokio's budget would break off an operation in the middle of a level, and its loaders would read in pieces.
        let executed =
            unconstrained(AssertUnwindSafe(permit.scope(DEADLINE, search_bytes).run(executed)).catch_unwind());
        let executed = self.app.limits.decoding.metered(owner, executed);
        let answer = match self.app.in_time(DEADLINE, executed).await {
            Ok(Ok(mut response)) => {
                if !is_complete(&response) {
                    self.shape.plan(&document, name.as_deref()).complete(&mut response);
                }
                let answer = Answer::of(response, request_id);
                if let Some(form) = form.filter(|_| !is_known && answer.is_executed()) {
                    document.remember(form);
                }
                answer.with(spent.cost, sync).warning(deprecations).exporting(export)
            }
            Ok(Err(_)) => Answer::refused(Error::internal("a panic during execution").into(), request_id),
            Err(late) => Answer::refused(late.into(), request_id),
        };
        if let Some(traced) = traced {
            traced.ended(answer.code());
        }
        self.app.metrics.executed(Executed {
            name: name.as_deref(),
            kind: word(kind),
            failure: answer.code(),
            signed_in: viewer.is_some(),
            took: Some(started.elapsed()),
        });
        answer
    }
}

/// The operation as it is written, to be checked as a whole and executed as nothing.
pub(super) fn checked(document: &ExecutableDocument, request: &Request) -> Request {
    let mut document = document.clone();
    let operation = match &mut document.operations {
        DocumentOperations::Single(operation) => Some(operation),
        DocumentOperations::Multiple(operations) => {
            request.operation_name.as_deref().and_then(|name| operations.get_mut(name))
        }
    };
    if let Some(operation) = operation {
        let place = Positioned::new((), operation.node.selection_set.pos);
        let at = |name| place.position_node(Name::new(name));
        let skip =
            Directive { name: at("skip"), arguments: vec![(at("if"), place.position_node(Literal::Boolean(true)))] };
        let all = InlineFragment {
            type_condition: None,
            directives: vec![place.position_node(skip)],
            selection_set: std::mem::replace(
                &mut operation.node.selection_set,
                place.position_node(SelectionSet::default()),
            ),
        };
        let all = Selection::InlineFragment(place.position_node(all));
        operation.node.selection_set.node.items.push(place.position_node(all));
    }
    let mut checked = Request::new(String::new()).variables(request.variables.clone());
    checked.operation_name.clone_from(&request.operation_name);
    checked.set_parsed_query(document);
    checked
}

/// Whether nothing of the answer is the library's to have left undone: it is one field, resolved as a whole.
fn is_complete(response: &Response) -> bool {
    let is_whole = |value: &async_graphql::Value| matches!(value, async_graphql::Value::Binary(_));
    response.errors.is_empty()
        && match &response.data {
            async_graphql::Value::Object(fields) => fields.len() == 1 && fields.values().all(is_whole),
            data => is_whole(data),
        }
}

pub(super) const fn word(kind: OperationType) -> &'static str {
    match kind {
        OperationType::Query => "query",
        OperationType::Mutation => "mutation",
        OperationType::Subscription => "subscription",
    }
}

pub(super) fn who(viewer: Option<Viewer>, address: IpAddr) -> Who {
    viewer.map_or_else(|| Who::address(address), |viewer| Who::User(viewer.id))
}

/// Variables that must have a value have one: the library says so too, but not apart from what is wrong with the
/// document, and only of variables that are used.
fn required(document: &ExecutableDocument, name: Option<&str>, values: &Map<String, Value>) -> Result<(), Refused> {
    let chosen = document.operations.iter().find(|(candidate, _)| candidate.map(|name| name.as_str()) == name);
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
            let message = format!("The variable ${variable} of type {kind} must have a value.");
            return Err(Refused::new(Code::BadUserInput, message));
        }
    }
    Ok(())
}
