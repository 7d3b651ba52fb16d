//! The GraphQL schema: one file for each type with its queries and mutations; the roots are merged
//! here.
//!
//! Resolvers define what a client can request and parse it into values. SQL and rules are in
//! `store`, permissions in `access`.

pub mod batch;
pub mod collect;
pub mod comment;
pub mod connection;
pub mod deprecation;
pub mod event;
pub mod event_stream;
pub mod field_merging;
pub mod guard;
pub mod json;
pub mod label;
pub mod loader;
pub mod node;
pub mod notification;
pub mod null_propagation;
pub mod payload;
pub mod project;
pub mod rate_limit;
pub mod root_fast_path;
pub mod scalar;
pub mod session;
pub mod task;
pub mod text;
pub mod user;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_graphql::{
    Context, EmptyMutation, EmptySubscription, ErrorExtensionValues, MergedObject,
    MergedSubscription, SDLExportOptions, ValidationMode,
};

use crate::App;
use crate::access::{Action, Resource, Viewer};
use crate::error::{Code, Error, Result};
use crate::events::Event;
use crate::id::Id;
use crate::network::Client;
use crate::store::audit::ClientInfo;
use crate::store::event::EventObjects;
use crate::store::project::Project;
use crate::time::whole_seconds;
use loader::Loaders;

/// Root of all queries. Every field except `rateLimit` fails with UNAUTHENTICATED without a valid
/// access token.
#[derive(Default, MergedObject)]
pub struct Query(
    user::UserQuery,
    node::NodeQuery,
    project::ProjectQuery,
    task::TaskQuery,
    event::EventQuery,
    session::SessionQuery,
    rate_limit::RateLimitQuery,
);

/// Root of all mutations. A mutation takes one `input` and returns one payload. Errors that the
/// client can correct are in `userErrors`; the object is then null and nothing was written. All
/// other errors, such as UNAUTHENTICATED, FORBIDDEN and RATE_LIMITED, are top-level errors with
/// `extensions.code`. In an update, omitted fields stay unchanged and an explicit null clears a
/// field.
#[derive(Default, MergedObject)]
pub struct Mutation(
    project::ProjectMutation,
    label::LabelMutation,
    task::TaskMutation,
    comment::CommentMutation,
    user::UserMutation,
    session::SessionMutation,
    notification::NotificationMutation,
);

/// Root of all subscriptions. Events are delivered in the order of the event log, which is the same
/// for all users. A subscription with `after` first replays the events after that cursor, then
/// continues live without a gap. Use the cursor of the last event you received, on any
/// subscription, or `extensions.sync.cursor` of a query's response, after which come all changes
/// that the query has not seen. After a reconnect an event can be delivered again, with the same
/// `id`. The log goes back 7 days by default; an older cursor fails with CURSOR_EXPIRED and
/// `extensions.oldestCursor`, the oldest cursor that is valid. Permissions are checked for each
/// event.
#[derive(Default, MergedSubscription)]
pub struct Subscription(
    event::EventSubscription,
    notification::NotificationSubscription,
);

pub type Schema = async_graphql::Schema<Query, Mutation, Subscription>;

/// Builds the schema. The data of a request comes with it as a [`RequestContext`].
pub fn schema(introspection: bool) -> Schema {
    build(introspection, ValidationMode::Strict)
}

/// Like [`schema`], with reduced validation, for documents that it has found valid.
pub fn unvalidated_schema(introspection: bool) -> Schema {
    build(introspection, ValidationMode::Fast)
}

fn build(introspection: bool, validation: ValidationMode) -> Schema {
    let builder = Schema::build(
        Query::default(),
        Mutation::default(),
        Subscription::default(),
    )
    .register_output_type::<node::Node>()
    .limit_depth(16)
    .limit_complexity(2_000)
    .limit_recursive_depth(32)
    .validation_mode(validation);
    if introspection {
        builder.finish()
    } else {
        builder
            .disable_introspection()
            .disable_suggestions()
            .finish()
    }
}

/// The schema that resolves delivered events. Its documents were validated against [`schema`] when
/// the subscription was opened.
pub type EventSchema = async_graphql::Schema<event::EventRoot, EmptyMutation, EmptySubscription>;

/// Builds it. The event comes with each request as a [`event_stream::SubscriptionEvent`].
pub fn event_schema() -> EventSchema {
    EventSchema::build(event::EventRoot, EmptyMutation, EmptySubscription)
        .validation_mode(ValidationMode::Fast)
        .finish()
}

/// The schema as SDL, the content of `schema.graphql`.
pub fn sdl() -> String {
    let options = SDLExportOptions::new()
        .sorted_enum_items()
        .include_specified_by()
        .prefer_single_line_descriptions();
    schema(true).sdl_with_options(options)
}

/// Largest response, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
/// Largest number of items of unpaged lists that async-graphql resolves in an operation: as many as
/// it may have nodes in pages.
const MAX_UNPAGED_ITEMS: usize = 10_000;

/// The viewer of an operation, and whether any field asked for the viewer. A response to which no
/// field did is the same for all users.
pub struct TrackedViewer {
    viewer: Option<Viewer>,
    accessed: AtomicBool,
    /// The task of the event that is delivered: the viewer's right to it has just been checked.
    checked_task: Option<Id>,
    /// The last state of projects that are gone, from the events that the viewer sees of them.
    deleted_projects: Mutex<HashMap<Id, Arc<Project>>>,
}

impl TrackedViewer {
    /// The signed-in user; fails with UNAUTHENTICATED.
    pub fn require(&self) -> Result<&Viewer> {
        self.accessed.store(true, Ordering::Relaxed);
        self.viewer.as_ref().ok_or_else(Error::unauthenticated)
    }

    /// The viewer whose permission to see these tasks a statement has to check; `None` if it was
    /// already checked when the event was delivered.
    pub fn reader_of(&self, mut tasks: impl Iterator<Item = Id>) -> Result<Option<&Viewer>> {
        if self.checked_task.is_some() && tasks.all(|task| self.checked_task == Some(task)) {
            return Ok(None);
        }
        self.require().map(Some)
    }

    /// Keeps a deleted project, so that the tasks deleted with it still have one.
    pub fn add_deleted_project(&self, project: Project) {
        let mut deleted = self
            .deleted_projects
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        deleted
            .entry(project.id)
            .or_insert_with(|| Arc::new(project));
    }

    /// The last state of a deleted project.
    pub fn deleted_project(&self, id: Id) -> Option<Arc<Project>> {
        self.deleted_projects
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }
}

/// The request context of one operation: viewer, loaders and budgets. Cheap to clone.
#[derive(Clone)]
pub struct RequestContext(Arc<ContextInner>);

struct ContextInner {
    app: Arc<App>,
    viewer: Arc<TrackedViewer>,
    /// Address and user agent; `None` while an event is resolved.
    client: Option<Client>,
    /// The event that is resolved, if it is one.
    event: Option<(Arc<Event>, Arc<EventObjects>)>,
    hints: ExecutionHints,
    loaders: OnceLock<Loaders>,
    /// Bytes of text in the response so far.
    bytes: AtomicUsize,
    /// Items of unpaged lists in the response so far.
    members: AtomicUsize,
}

impl ContextInner {
    fn new(
        app: Arc<App>,
        viewer: Option<Viewer>,
        event: Option<(Arc<Event>, Arc<EventObjects>)>,
        hints: ExecutionHints,
    ) -> Self {
        let checked_task = event.as_ref().and_then(|(event, _)| event.task_id);
        let viewer = Arc::new(TrackedViewer {
            viewer,
            accessed: AtomicBool::new(false),
            checked_task,
            deleted_projects: Mutex::default(),
        });
        let (bytes, members) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self {
            app,
            viewer,
            client: None,
            event,
            hints,
            loaders: OnceLock::new(),
            bytes,
            members,
        }
    }
}

/// How an operation can be executed, as far as its document shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExecutionHints {
    /// Selections can be resolved in batches, by [`batch`].
    pub can_batch: bool,
    /// There is a single root field.
    pub has_single_root: bool,
    /// If every variable has a value, the document is executed as written, without [`collect`].
    pub as_written: bool,
}

impl RequestContext {
    /// The context of a request, signed in or anonymous.
    pub fn new(
        app: Arc<App>,
        viewer: Option<Viewer>,
        hints: ExecutionHints,
        client: Client,
    ) -> Self {
        Self(Arc::new(ContextInner {
            client: Some(client),
            ..ContextInner::new(app, viewer, None, hints)
        }))
    }

    /// The viewer, and what is known for all loaders.
    pub fn tracked_viewer(&self) -> &TrackedViewer {
        &self.0.viewer
    }

    /// The context in which an event is resolved for a subscriber, with the objects of the event.
    pub fn for_event(
        app: Arc<App>,
        viewer: Option<Viewer>,
        event: &Arc<Event>,
        objects: &Arc<EventObjects>,
    ) -> Self {
        let event = (Arc::clone(event), Arc::clone(objects));
        Self(Arc::new(ContextInner::new(
            app,
            viewer,
            Some(event),
            ExecutionHints::default(),
        )))
    }

    /// How the operation can be executed.
    pub fn hints(&self) -> ExecutionHints {
        self.0.hints
    }

    /// The context of this operation.
    pub fn of<'a>(ctx: &Context<'a>) -> &'a Self {
        ctx.data_unchecked()
    }

    pub fn app(&self) -> &Arc<App> {
        &self.0.app
    }

    /// The signed-in user; fails with UNAUTHENTICATED.
    pub fn viewer(&self) -> Result<&Viewer> {
        self.0.viewer.require()
    }

    /// Where the request came from, for the audit log.
    pub fn client_info(&self) -> ClientInfo {
        self.0
            .client
            .as_ref()
            .map(ClientInfo::from)
            .unwrap_or_default()
    }

    /// Whether the permission table allows the viewer the action on this object.
    pub fn may(&self, action: Action, subject: &impl Resource) -> Result<bool> {
        Ok(self.viewer()?.may(action, subject))
    }

    /// Whether any field has asked for the viewer.
    pub fn viewer_accessed(&self) -> bool {
        self.0.viewer.accessed.load(Ordering::Relaxed)
    }

    /// Counts bytes of the response. Fails as soon as it exceeds [`MAX_RESPONSE_BYTES`].
    pub fn count_bytes(&self, bytes: usize) -> Result<()> {
        let before = self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) <= MAX_RESPONSE_BYTES {
            Ok(())
        } else {
            Err(Error::too_large())
        }
    }

    /// Uncounts bytes that were discarded.
    fn uncount_bytes(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts the items of an unpaged list, which async-graphql resolves one by one. Admission
    /// assumed ten items, so the actual number is limited here.
    pub fn check_list_size<T>(&self, list: Vec<T>) -> Result<Vec<T>> {
        let before = self.0.members.fetch_add(list.len(), Ordering::Relaxed);
        if before.saturating_add(list.len()) <= MAX_UNPAGED_ITEMS {
            Ok(list)
        } else {
            let message = format!(
                "Too many list items: at most {MAX_UNPAGED_ITEMS} items of unpaged lists are allowed."
            );
            Err(Error::refused(Code::DocumentTooComplex, message))
        }
    }

    /// The loaders of this operation, created on first use; fails with UNAUTHENTICATED.
    pub fn loaders(&self) -> Result<&Loaders> {
        let ContextInner {
            app,
            viewer,
            event,
            loaders,
            ..
        } = &*self.0;
        viewer.viewer.ok_or_else(Error::unauthenticated)?;
        Ok(loaders.get_or_init(|| Loaders::new(app, viewer, event.clone())))
    }
}

impl From<Error> for async_graphql::Error {
    fn from(error: Error) -> Self {
        let mut extensions = ErrorExtensionValues::default();
        if let Error::CursorExpired { oldest } = &error {
            extensions.set("oldestCursor", oldest.as_str());
        }
        let (code, message, retry_after) = error.into_client();
        extensions.set("code", code.as_str());
        if let Some(wait) = retry_after {
            extensions.set("retryAfter", whole_seconds(wait));
        }
        Self {
            extensions: Some(extensions),
            ..Self::new(message)
        }
    }
}
