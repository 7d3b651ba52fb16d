//! The schema: every noun in a file of its own, in the order of the SDL; roots are merged here.
//!
//! Resolvers say what a client may ask and parse it into values; queries, rules and rights are in `store` and `access`.

pub mod collect;
pub mod comment;
pub mod complete;
pub mod conflict;
pub mod connection;
pub mod deprecation;
pub mod direct;
pub mod event;
pub mod guard;
pub mod json;
pub mod label;
pub mod level;
pub mod live;
pub mod loader;
pub mod node;
pub mod notification;
pub mod payload;
pub mod project;
pub mod rate_limit;
pub mod scalar;
pub mod session;
pub mod task;
pub mod text;
pub mod user;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use async_graphql::{
    Context, EmptyMutation, EmptySubscription, ErrorExtensionValues, MergedObject, MergedSubscription,
    SDLExportOptions, ValidationMode,
};

use crate::App;
use crate::access::{Action, Subject, Viewer};
use crate::error::{Code, Error, Result};
use crate::events::Event;
use crate::network::Client;
use crate::store::audit::Origin;
use crate::store::event::Objects;
use crate::time::whole_seconds;
use loader::Loaders;

/// Everything that can be read.
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

/// Everything that can be changed. Each mutation takes one `input` and answers one payload: what the caller can put
/// right is in `userErrors`, the object is then null and nothing was written. In an update an absent field is left
/// alone and an explicit null clears it.
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

/// What happens, as it happens, in the order of the log, which is the same for everybody. Each stream goes from a cursor
/// to now and on without a gap: with `after` it begins with what came after that place in the log. Take it from the last
/// event seen, on any stream, or from `extensions.sync.cursor` of the answer to a query, which is where that query
/// stood. Over a reconnect an event may come again: its `id` tells. The feed goes back seven days unless the server is
/// set up otherwise; an older cursor gets CURSOR_EXPIRED with `extensions.oldestCursor`, the oldest that works. Rights
/// are asked again for each event.
#[derive(Default, MergedSubscription)]
pub struct Subscription(event::EventSubscription, notification::NotificationSubscription);

/// The schema of this server.
pub type Schema = async_graphql::Schema<Query, Mutation, Subscription>;

/// Builds the schema; what it serves comes with each request as a [`Caller`].
pub fn schema(introspection: bool) -> Schema {
    build(introspection, ValidationMode::Strict)
}

/// The same for documents that [`schema`] has found to be valid.
pub fn unchecked(introspection: bool) -> Schema {
    build(introspection, ValidationMode::Fast)
}

fn build(introspection: bool, validation: ValidationMode) -> Schema {
    let builder = Schema::build(Query::default(), Mutation::default(), Subscription::default())
        .register_output_type::<node::Node>()
        .limit_depth(16)
        .limit_complexity(2_000)
        .limit_recursive_depth(32)
        .validation_mode(validation);
    if introspection { builder.finish() } else { builder.disable_introspection().disable_suggestions().finish() }
}

/// The schema by which events are told. Its documents were checked against [`schema`] when the subscription was opened.
pub type Telling = async_graphql::Schema<event::Telling, EmptyMutation, EmptySubscription>;

/// Builds it; what is told comes with each request as a [`live::Happening`].
pub fn telling() -> Telling {
    Telling::build(event::Telling, EmptyMutation, EmptySubscription).validation_mode(ValidationMode::Fast).finish()
}

/// The schema in SDL, as `schema.graphql` keeps it.
pub fn sdl() -> String {
    let options = SDLExportOptions::new().sorted_enum_items().include_specified_by().prefer_single_line_descriptions();
    schema(true).sdl_with_options(options)
}

/// Bytes of the longest answer.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Members of all lists without pages that the library resolves one by one: as many as pages may have nodes.
const MAX_MEMBERS: usize = 10_000;

/// Who asks, and whether it mattered: what is answered without asking for the viewer is everybody's answer.
pub struct Asker {
    viewer: Option<Viewer>,
    asked: AtomicBool,
}

impl Asker {
    /// Who is signed in, or UNAUTHENTICATED.
    pub fn viewer(&self) -> Result<&Viewer> {
        self.asked.store(true, Ordering::Relaxed);
        self.viewer.as_ref().ok_or_else(Error::unauthenticated)
    }
}

/// Who asks, with the loaders of their operation: the data of each request. Cheap to clone.
#[derive(Clone)]
pub struct Caller(Arc<Inner>);

struct Inner {
    app: Arc<App>,
    asker: Arc<Asker>,
    /// From where, if it is not told of an event.
    client: Option<Client>,
    /// The event that is answered, if it is one.
    event: Option<(Arc<Event>, Arc<Objects>)>,
    manner: Manner,
    loaders: OnceLock<Loaders>,
    /// Bytes of text that the answer has so far.
    bytes: AtomicUsize,
    /// Members of lists without pages that it has so far.
    members: AtomicUsize,
}

impl Inner {
    fn new(app: Arc<App>, viewer: Option<Viewer>, event: Option<(Arc<Event>, Arc<Objects>)>, manner: Manner) -> Self {
        let asker = Arc::new(Asker { viewer, asked: AtomicBool::new(false) });
        let (bytes, members) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { app, asker, client: None, event, manner, loaders: OnceLock::new(), bytes, members }
    }
}

/// What the document says of how its answer may be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Selections may be resolved by [`level`].
    pub by_level: bool,
    /// There is one root field.
    pub is_single: bool,
    /// With a value for each variable, there is nothing to [`collect`].
    pub as_written: bool,
}

impl Caller {
    /// A caller, signed in or not.
    pub fn new(app: Arc<App>, viewer: Option<Viewer>, manner: Manner, client: Client) -> Self {
        Self(Arc::new(Inner { client: Some(client), ..Inner::new(app, viewer, None, manner) }))
    }

    /// A subscriber who is told of an event, which brings along what is known of it.
    pub fn about(app: Arc<App>, viewer: Option<Viewer>, event: &Arc<Event>, objects: &Arc<Objects>) -> Self {
        let event = (Arc::clone(event), Arc::clone(objects));
        Self(Arc::new(Inner::new(app, viewer, Some(event), Manner::default())))
    }

    /// How the answer may be made.
    pub fn manner(&self) -> Manner {
        self.0.manner
    }

    /// The caller of this operation.
    pub fn of<'a>(ctx: &Context<'a>) -> &'a Self {
        ctx.data_unchecked()
    }

    /// The server.
    pub fn app(&self) -> &Arc<App> {
        &self.0.app
    }

    /// Who is signed in, or UNAUTHENTICATED.
    pub fn viewer(&self) -> Result<&Viewer> {
        self.0.asker.viewer()
    }

    /// Where the request came from, for the audit log.
    pub fn origin(&self) -> Origin {
        self.0.client.as_ref().map(Origin::from).unwrap_or_default()
    }

    /// Whether the table allows who is signed in the action on this object.
    pub fn may(&self, action: Action, subject: &impl Subject) -> Result<bool> {
        Ok(self.viewer()?.may(action, subject))
    }

    /// Whether anything has asked who the viewer is.
    pub fn viewer_mattered(&self) -> bool {
        self.0.asker.asked.load(Ordering::Relaxed)
    }

    /// Counts so many bytes more of the answer, which is given up as soon as it is too large to be sent.
    pub fn count(&self, bytes: usize) -> Result<()> {
        let before = self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) <= MAX_BYTES { Ok(()) } else { Err(Error::too_large()) }
    }

    /// Counts so many bytes less: they were put away.
    fn discount(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The members of a list without pages, which the library resolves one by one. The document was admitted as if there
    /// were few of them.
    pub fn members<T>(&self, list: Vec<T>) -> Result<Vec<T>> {
        let before = self.0.members.fetch_add(list.len(), Ordering::Relaxed);
        if before.saturating_add(list.len()) <= MAX_MEMBERS {
            Ok(list)
        } else {
            let message = format!("Too many members of lists: at most {MAX_MEMBERS} are resolved at once.");
            Err(Error::refused(Code::DocumentTooComplex, message))
        }
    }

    /// The loaders of this operation, or UNAUTHENTICATED. They are made when the first field asks for them.
    pub fn loaders(&self) -> Result<&Loaders> {
        let Inner { app, asker, event, loaders, .. } = &*self.0;
        asker.viewer.ok_or_else(Error::unauthenticated)?;
        Ok(loaders.get_or_init(|| Loaders::new(app, asker, event.clone())))
    }
}

impl From<Error> for async_graphql::Error {
    fn from(error: Error) -> Self {
        let mut extensions = ErrorExtensionValues::default();
        if let Error::CursorExpired { oldest } = &error {
            extensions.set("oldestCursor", oldest.as_str());
        }
        let (code, message, retry_after) = error.told();
        extensions.set("code", code.as_str());
        if let Some(wait) = retry_after {
            extensions.set("retryAfter", whole_seconds(wait));
        }
        Self { extensions: Some(extensions), ..Self::new(message) }
    }
}
