//! Loaders: the keys that the fields of one operation request one by one are read in one statement.
//!
//! They do not cache, so that a field never returns a state from before a mutation; only keys that
//! are requested at the same time are read together. Permissions are checked where the rows are
//! read.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::future::poll_fn;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Poll;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::oneshot;

use super::TrackedViewer;
use crate::App;
use crate::db::page::{Page, PageWindow};
use crate::error::{Code, Error, Result};
use crate::events::Event;
use crate::id::Id;
use crate::store::comment::CommentColumns;
use crate::store::event::{EventColumns, EventObjects, LogRange, RelatedObjects, Snapshot};
use crate::store::project::ProjectColumns;
use crate::store::task::TaskColumns;
use crate::store::{
    comment, event, history, label, notification, project, session, task, task_list, user,
};
use crate::time::Timestamp;

/// Events, each with its snapshot.
pub type EventsWithSnapshots = Vec<(Arc<Event>, Arc<Snapshot>)>;

/// Polls without a new key before a batch is read. Some sibling fields are polled one round later
/// than others.
const IDLE_POLLS: usize = 2;

/// A kind of value that is loaded by key.
pub trait Load: Send + Sync + 'static {
    type Key: Clone + Debug + Eq + Hash + Send + Sync;
    type Value: Clone + Send + Sync;
    /// The loader of this kind.
    fn of(loaders: &Loaders) -> &Loader<Self>
    where
        Self: Sized;
    /// Loads the values. A key that is absent from the result was not found.
    fn load(
        app: &App,
        viewer: &TrackedViewer,
        keys: &[Self::Key],
    ) -> impl Future<Output = Result<HashMap<Self::Key, Self::Value>>> + Send;
}

type LoadResult<L> =
    std::result::Result<HashMap<<L as Load>::Key, <L as Load>::Value>, (Code, String)>;

/// The result of a batch, on which every field that requested one of its keys waits.
type SharedResult<L> = Shared<BoxFuture<'static, Arc<LoadResult<L>>>>;

/// The values of some keys, perhaps among others.
pub struct LoadedBatch<L: Load>(Arc<LoadResult<L>>);

impl<L: Load> LoadedBatch<L> {
    /// The value of a key.
    pub fn get(&self, key: &L::Key) -> Option<&L::Value> {
        self.0.as_ref().as_ref().ok()?.get(key)
    }
}

/// Keys that will be read together.
struct KeyBatch<L: Load> {
    keys: HashSet<L::Key>,
    found: SharedResult<L>,
}

type OpenBatch<L> = Mutex<Option<KeyBatch<L>>>;

/// Collects keys. The `dataloader` crate makes each key wait for a fixed number of polls, in each
/// of which every waiting key is polled: enough for the widest list is too many for all others.
/// Here one future waits for all.
pub struct Loader<L: Load>(OnceLock<Arc<OpenBatch<L>>>);

impl<L: Load> Default for Loader<L> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

fn lock<L: Load>(open: &OpenBatch<L>) -> MutexGuard<'_, Option<KeyBatch<L>>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<L: Load> Loader<L> {
    fn open(&self) -> &Arc<OpenBatch<L>> {
        self.0.get_or_init(Arc::default)
    }

    /// Loads these keys together with all others that are requested until `gathered` completes.
    async fn load(
        &self,
        app: &Arc<App>,
        viewer: &Arc<TrackedViewer>,
        keys: impl IntoIterator<Item = L::Key>,
        gathered: impl Future<Output = ()>,
    ) -> Result<LoadedBatch<L>> {
        let (found, first) = self.join_batch(app, viewer, keys);
        if let Some(first) = first {
            gathered.await;
            // Also dropped on cancellation, so that the batch does not wait for a canceled field.
            drop(first);
        }
        let found = found.await;
        match &*found {
            Ok(_) => Ok(LoadedBatch(found)),
            Err((code, message)) => Err(Error::refused(*code, message.clone())),
        }
    }

    /// Joins the open batch or opens one. The batch is read when the sender that its first member
    /// receives is dropped.
    fn join_batch(
        &self,
        app: &Arc<App>,
        viewer: &Arc<TrackedViewer>,
        keys: impl IntoIterator<Item = L::Key>,
    ) -> (SharedResult<L>, Option<oneshot::Sender<()>>) {
        let mut open = lock(self.open());
        let mut first = None;
        let batch = open.get_or_insert_with(|| {
            let (sender, idle) = oneshot::channel();
            first = Some(sender);
            let found = read_batch::<L>(
                Arc::clone(app),
                Arc::clone(viewer),
                Arc::downgrade(self.open()),
                idle,
            );
            KeyBatch {
                keys: HashSet::new(),
                found: found.boxed().shared(),
            }
        });
        batch.keys.extend(keys);
        (batch.found.clone(), first)
    }

    /// Waits for `IDLE_POLLS` polls in which no key was added.
    async fn wait_idle(&self) {
        let (mut joined, mut quiet) = (1, 0);
        while quiet < IDLE_POLLS {
            tokio::task::yield_now().await;
            let now = lock(self.open())
                .as_ref()
                .map_or(0, |batch| batch.keys.len());
            quiet = if now == joined { quiet + 1 } else { 0 };
            joined = now;
        }
    }
}

/// Yields once, so that the fields that are polled in the same round add their keys first.
async fn yield_to_siblings() {
    let mut is_first = true;
    poll_fn(|cx| {
        if std::mem::take(&mut is_first) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

async fn read_batch<L: Load>(
    app: Arc<App>,
    viewer: Arc<TrackedViewer>,
    open: Weak<OpenBatch<L>>,
    idle: oneshot::Receiver<()>,
) -> Arc<LoadResult<L>> {
    // Nothing is ever sent: dropping the sender is the signal.
    let _ = idle.await;
    let batch = open.upgrade().and_then(|open| lock(&open).take());
    let keys: Vec<L::Key> = batch
        .map(|batch| batch.keys.into_iter().collect())
        .unwrap_or_default();
    Arc::new(L::load(&app, &viewer, &keys).await.map_err(|error| {
        let (code, message, _) = error.into_client();
        (code, message.to_string())
    }))
}

macro_rules! loads {
    ($(
        $(#[$doc:meta])*
        $name:ident: $kind:ident ($key:ty => $value:ty) |$app:ident, $viewer:ident, $keys:ident| $body:expr;
    )+) => {
        /// All loaders of one operation, or of one delivered event.
        pub struct Loaders {
            app: Arc<App>,
            known: Option<(Arc<Event>, Arc<EventObjects>)>,
            viewer: Arc<TrackedViewer>,
            $($name: Loader<$kind>),+
        }

        impl Loaders {
            /// Loaders for a viewer. What is related to the `known` event, if there is one, is
            /// loaded once for all of its subscribers.
            pub fn new(app: &Arc<App>, viewer: &Arc<TrackedViewer>, known: Option<(Arc<Event>, Arc<EventObjects>)>) -> Self {
                let (app, viewer) = (Arc::clone(app), Arc::clone(viewer));
                Self { app, viewer, known, $($name: Loader::default()),+ }
            }
        }

        $(
            $(#[$doc])*
            pub struct $kind;
            impl Load for $kind {
                type Key = $key;
                type Value = $value;
                fn of(loaders: &Loaders) -> &Loader<Self> {
                    &loaders.$name
                }
                async fn load($app: &App, $viewer: &TrackedViewer, $keys: &[$key]) -> Result<HashMap<$key, $value>> {
                    $body
                }
            }
        )+
    };
}

loads! {
    /// Profiles of users, public to every signed-in viewer.
    users: Users(Id => Arc<user::Profile>) |app, _asker, ids| {
        app.profiles.by_ids(&app.db, app.clock.now(), ids).await
    };
    /// Accounts of users. Only fields with a guard request them.
    accounts: Accounts(Id => Arc<user::User>) |app, _asker, ids| {
        let rows = user::any_by_ids(&mut app.db.conn_for_rows(ids.len()).await?, ids).await?;
        Ok(rows.into_iter().map(|user| (user.id, Arc::new(user))).collect())
    };
    /// Project and task counts of users.
    user_stats: UserStats(Id => user::UserStatsRow) |app, _asker, ids| {
        user::stats(&mut app.db.conn().await?, ids).await
    };
    /// When users last logged in, according to their sessions.
    last_logins: LastLogins(Id => Timestamp) |app, _asker, ids| {
        session::last_logins(&mut app.db.conn().await?, ids).await
    };
    /// Active sessions of users.
    user_sessions: UserSessions(Id => Vec<session::Session>) |app, _asker, ids| {
        let (mut conn, now) = (app.db.conn().await?, app.clock.now());
        let mut sessions = HashMap::new();
        // A viewer may see only their own sessions, so this is one id.
        for id in ids {
            sessions.insert(*id, session::of_user(&mut conn, now, *id).await?);
        }
        Ok(sessions)
    };
    /// Projects that the viewer may see.
    projects: Projects((ProjectColumns, Id) => Arc<project::Project>) |app, viewer, keys| {
        let mut projects = HashMap::new();
        for (columns, ids) in group_keys(keys) {
            let mut conn = app.db.conn_for_rows(ids.len()).await?;
            let rows = project::select_by_ids(&mut conn, viewer.require()?, &ids, columns).await?;
            projects.extend(rows.into_iter().map(|project| ((columns, project.id), Arc::new(project))));
        }
        for key in keys {
            if !projects.contains_key(key) {
                projects.extend(viewer.deleted_project(key.1).map(|project| (*key, project)));
            }
        }
        Ok(projects)
    };
    /// Task counts of projects.
    project_stats: ProjectStats(Id => project::ProjectStatsRow) |app, _asker, ids| {
        project::stats(&mut app.db.conn().await?, ids, app.clock.now()).await
    };
    /// Pages of the projects of owners.
    project_pages: ProjectPages((Arc<project::ProjectList>, Id) => Page<Arc<project::Project>>) |app, _asker, keys| {
        let mut conn = app.db.conn().await?;
        let mut pages = HashMap::new();
        for (list, owners) in group_keys(keys) {
            let found = project::pages_of_owners(&mut conn, &owners, &list).await?;
            pages.extend(found.into_iter().map(|(id, page)| ((Arc::clone(&list), id), page.into_shared())));
        }
        Ok(pages)
    };
    /// Project counts of owners.
    project_counts: ProjectCounts((Arc<project::ProjectList>, Id) => i64) |app, _asker, keys| {
        let mut conn = app.db.conn().await?;
        let mut counts = HashMap::new();
        for (list, owners) in group_keys(keys) {
            let found = project::counts_of_owners(&mut conn, &owners, &list.filter).await?;
            counts.extend(found.into_iter().map(|(id, count)| ((Arc::clone(&list), id), count)));
        }
        Ok(counts)
    };
    /// Labels that the viewer may see.
    labels: Labels(Id => Arc<label::Label>) |app, viewer, ids| {
        let mut conn = app.db.conn().await?;
        let rows = label::by_ids(&mut conn, ids).await?;
        let projects: Vec<Id> = rows.iter().map(|label| label.project_id).collect();
        let visible = project::select_by_ids(&mut conn, viewer.require()?, &projects, ProjectColumns::Summary).await?;
        let visible = |label: &label::Label| visible.iter().any(|project| project.id == label.project_id);
        Ok(rows.into_iter().filter(visible).map(|label| (label.id, Arc::new(label))).collect())
    };
    /// Labels of projects.
    project_labels: ProjectLabels(Id => Vec<Arc<label::Label>>) |app, _asker, ids| {
        let rows = label::of_projects(&mut app.db.conn().await?, ids).await?;
        Ok(collect_lists(rows.into_iter().map(|label| (label.project_id, Arc::new(label)))))
    };
    /// Labels of tasks.
    task_labels: TaskLabels(Id => Vec<Arc<label::Label>>) |app, viewer, ids| {
        let rows = label::of_tasks(&mut app.db.conn().await?, viewer.reader_of(ids.iter().copied())?, ids).await?;
        Ok(collect_lists(rows.into_iter().map(|(task, label)| (task, Arc::new(label)))))
    };
    /// Tasks that the viewer may see.
    tasks: Tasks((TaskColumns, Id) => Arc<task::Task>) |app, viewer, keys| {
        let mut tasks = HashMap::new();
        for (columns, ids) in group_keys(keys) {
            let mut conn = app.db.conn_for_rows(ids.len()).await?;
            let rows = task::select_by_ids(&mut conn, viewer.require()?, &ids, columns).await?;
            tasks.extend(rows.into_iter().map(|task| ((columns, task.id), Arc::new(task))));
        }
        Ok(tasks)
    };
    /// Pages of the tasks of projects or assignees.
    task_pages: TaskPages(((task_list::TaskParent, Arc<task_list::TaskList>), Id) => Page<Arc<task::Task>>) |app, _asker, keys| {
        let mut pages = HashMap::new();
        for ((of, list), ids) in group_keys(keys) {
            let mut conn = app.db.conn_for_rows(list.max_rows_read(ids.len())).await?;
            let found = task_list::pages(&mut conn, of, &ids, &list, app.clock.now()).await?;
            pages.extend(found.into_iter().map(|(id, page)| (((of, Arc::clone(&list)), id), page.into_shared())));
        }
        Ok(pages)
    };
    /// Task counts of projects or assignees.
    task_counts: TaskCounts(((task_list::TaskParent, Arc<task_list::TaskList>), Id) => i64) |app, _asker, keys| {
        let mut conn = app.db.conn().await?;
        let mut counts = HashMap::new();
        for ((of, list), ids) in group_keys(keys) {
            let found = task_list::counts(&mut conn, of, &ids, &list, app.clock.now()).await?;
            counts.extend(found.into_iter().map(|(id, count)| (((of, Arc::clone(&list)), id), count)));
        }
        Ok(counts)
    };
    /// Comments that the viewer may see.
    comments: Comments((CommentColumns, Id) => Arc<comment::Comment>) |app, viewer, keys| {
        let mut conn = app.db.conn().await?;
        let mut rows = Vec::new();
        for (columns, ids) in group_keys(keys) {
            let found = comment::select_by_ids(&mut conn, &ids, columns).await?;
            rows.extend(found.into_iter().map(|comment| (columns, comment)));
        }
        let tasks: HashSet<Id> = rows.iter().map(|(_, comment)| comment.task_id).collect();
        let tasks: Vec<Id> = tasks.into_iter().collect();
        let tasks = task::select_by_ids(&mut conn, viewer.require()?, &tasks, TaskColumns::Summary).await?;
        let visible: HashSet<Id> = tasks.iter().map(|task| task.id).collect();
        rows.retain(|(_, comment)| visible.contains(&comment.task_id));
        Ok(rows.into_iter().map(|(columns, comment)| ((columns, comment.id), Arc::new(comment))).collect())
    };
    /// Pages of the comments on tasks.
    comment_pages: CommentPages(((CommentColumns, Arc<PageWindow>), Id) => Page<Arc<comment::Comment>>) |app, viewer, keys| {
        let mut pages = HashMap::new();
        for ((columns, window), tasks) in group_keys(keys) {
            let mut conn = app.db.conn_for_rows(window.limit * tasks.len()).await?;
            let found = comment::pages(&mut conn, viewer.reader_of(tasks.iter().copied())?, &tasks, &window, columns).await?;
            pages.extend(found.into_iter().map(|(id, page)| (((columns, Arc::clone(&window)), id), page.into_shared())));
        }
        Ok(pages)
    };
    /// Comment counts of tasks.
    comment_counts: CommentCounts(Id => i64) |app, viewer, ids| {
        comment::counts(&mut app.db.conn().await?, viewer.reader_of(ids.iter().copied())?, ids).await
    };
    /// Notifications of the viewer.
    notifications: Notifications(Id => Arc<notification::Notification>) |app, viewer, ids| {
        let rows = notification::by_ids(&mut app.db.conn().await?, viewer.require()?.id, ids).await?;
        Ok(rows.into_iter().map(|row| (row.id, Arc::new(row))).collect())
    };
    /// Ranges of the history of tasks.
    activity: Activity(((EventColumns, LogRange), Id) => EventsWithSnapshots) |app, viewer, keys| {
        let mut conn = app.db.conn().await?;
        let mut pages: HashMap<_, EventsWithSnapshots> = HashMap::new();
        for ((columns, stretch), tasks) in group_keys(keys) {
            let found = event::pages_of_tasks(&mut conn, viewer.reader_of(tasks.iter().copied())?, &tasks, stretch, columns).await?;
            let events: Vec<Event> = found.into_values().flatten().collect();
            let snapshots = history::snapshots(&mut conn, &events, &HashSet::new()).await?;
            for (event, snapshot) in events.into_iter().zip(snapshots) {
                let task = event.task_id.unwrap_or(event.id);
                pages.entry(((columns, stretch), task)).or_default().push((Arc::new(event), snapshot));
            }
        }
        Ok(pages)
    };
    /// Long texts that events refer to, by the object and the text.
    history_texts: HistoryTexts((Id, Id) => Arc<str>) |app, _asker, keys| {
        let texts = history::texts(&mut app.db.conn().await?, keys).await?;
        Ok(texts.into_iter().map(|(key, text)| (key, text.into())).collect())
    };
}

/// Groups keys by list: those of one list are read together.
fn group_keys<A: Clone + Eq + Hash>(keys: &[(A, Id)]) -> HashMap<A, Vec<Id>> {
    collect_lists(keys.iter().cloned())
}

fn collect_lists<K: Eq + Hash, V>(pairs: impl Iterator<Item = (K, V)>) -> HashMap<K, Vec<V>> {
    let mut groups: HashMap<K, Vec<V>> = HashMap::new();
    for (key, value) in pairs {
        groups.entry(key).or_default().push(value);
    }
    groups
}

impl Loaders {
    /// Loads all keys of a batch field, together with those of its sibling fields.
    pub async fn all<L: Load>(
        &self,
        keys: impl IntoIterator<Item = L::Key>,
    ) -> Result<LoadedBatch<L>> {
        L::of(self)
            .load(&self.app, &self.viewer, keys, yield_to_siblings())
            .await
    }

    /// Loads one key.
    async fn one<L: Load>(&self, key: L::Key) -> Result<Option<L::Value>> {
        let loader = L::of(self);
        let loaded = loader
            .load(&self.app, &self.viewer, [key.clone()], loader.wait_idle())
            .await?;
        Ok(loaded.get(&key).cloned())
    }

    /// Loads the key of a root field, at once if that is the only root field.
    pub async fn root<L: Load>(&self, key: L::Key, is_only: bool) -> Result<Option<L::Value>> {
        if is_only {
            return Ok(L::load(&self.app, &self.viewer, std::slice::from_ref(&key))
                .await?
                .remove(&key));
        }
        self.one::<L>(key).await
    }

    /// The objects related to the delivered event, if there is one.
    async fn attached(&self) -> Result<Option<&RelatedObjects>> {
        let Some((event, objects)) = &self.known else {
            return Ok(None);
        };
        // Boxed, because the future is part of every field that loads a user.
        Box::pin(objects.related(&self.app.db, event))
            .await
            .map(Some)
    }

    /// A user's account. The caller has checked the permission.
    pub async fn account(&self, id: Id) -> Result<Option<Arc<user::User>>> {
        self.one::<Accounts>(id).await
    }

    pub async fn user(&self, id: Id) -> Result<Option<Arc<user::Profile>>> {
        if let Some(user) = self
            .attached()
            .await?
            .and_then(|attached| attached.people.get(&id))
        {
            return Ok(Some(Arc::clone(user)));
        }
        self.one::<Users>(id).await
    }

    pub async fn user_stats(&self, id: Id) -> Result<user::UserStatsRow> {
        Ok(self.one::<UserStats>(id).await?.unwrap_or_default())
    }

    /// When a user last logged in, according to their sessions.
    pub async fn last_login(&self, id: Id) -> Result<Option<Timestamp>> {
        self.one::<LastLogins>(id).await
    }

    /// A user's active sessions, newest first.
    pub async fn sessions(&self, id: Id) -> Result<Vec<session::Session>> {
        Ok(self.one::<UserSessions>(id).await?.unwrap_or_default())
    }

    /// A project by id, if the viewer may see it.
    pub async fn project(
        &self,
        id: Id,
        columns: ProjectColumns,
    ) -> Result<Option<Arc<project::Project>>> {
        // It is reached through the task of the event, which the viewer may see, and with it the
        // project.
        let attached = self
            .attached()
            .await?
            .and_then(|attached| attached.project.as_ref());
        if let Some(project) = attached.filter(|project| project.id == id) {
            return Ok(Some(Arc::clone(project)));
        }
        self.one::<Projects>((columns, id)).await
    }

    pub async fn project_stats(&self, id: Id) -> Result<project::ProjectStatsRow> {
        Ok(self.one::<ProjectStats>(id).await?.unwrap_or_default())
    }

    pub async fn project_page(
        &self,
        owner: Id,
        list: Arc<project::ProjectList>,
    ) -> Result<Page<Arc<project::Project>>> {
        self.one::<ProjectPages>((list, owner))
            .await?
            .ok_or_else(missing_page)
    }

    pub async fn project_count(&self, owner: Id, list: Arc<project::ProjectList>) -> Result<i64> {
        Ok(self
            .one::<ProjectCounts>((list, owner))
            .await?
            .unwrap_or_default())
    }

    /// A label by id, if the viewer may see its project.
    pub async fn label(&self, id: Id) -> Result<Option<Arc<label::Label>>> {
        self.one::<Labels>(id).await
    }

    pub async fn project_labels(&self, project: Id) -> Result<Vec<Arc<label::Label>>> {
        Ok(self
            .one::<ProjectLabels>(project)
            .await?
            .unwrap_or_default())
    }

    pub async fn task_labels(&self, task: Id) -> Result<Vec<Arc<label::Label>>> {
        Ok(self.one::<TaskLabels>(task).await?.unwrap_or_default())
    }

    /// A task by id, if the viewer may see it.
    pub async fn task(&self, id: Id, columns: TaskColumns) -> Result<Option<Arc<task::Task>>> {
        self.one::<Tasks>((columns, id)).await
    }

    /// A page of the tasks of a project or an assignee.
    pub async fn task_page(
        &self,
        of: task_list::TaskParent,
        id: Id,
        list: Arc<task_list::TaskList>,
    ) -> Result<Page<Arc<task::Task>>> {
        self.one::<TaskPages>(((of, list), id))
            .await?
            .ok_or_else(missing_page)
    }

    /// The task count of a project or an assignee.
    pub async fn task_count(
        &self,
        of: task_list::TaskParent,
        id: Id,
        list: Arc<task_list::TaskList>,
    ) -> Result<i64> {
        Ok(self
            .one::<TaskCounts>(((of, list), id))
            .await?
            .unwrap_or_default())
    }

    /// A comment by id, if the viewer may see its task.
    pub async fn comment(
        &self,
        id: Id,
        columns: CommentColumns,
    ) -> Result<Option<Arc<comment::Comment>>> {
        // A viewer who receives an event of an existing comment may see its task.
        let attached = self
            .attached()
            .await?
            .and_then(|attached| attached.comment.as_ref());
        if let Some(comment) = attached.filter(|comment| comment.id == id) {
            return Ok(Some(Arc::clone(comment)));
        }
        self.one::<Comments>((columns, id)).await
    }

    pub async fn comment_page(
        &self,
        task: Id,
        window: Arc<PageWindow>,
        columns: CommentColumns,
    ) -> Result<Page<Arc<comment::Comment>>> {
        self.one::<CommentPages>(((columns, window), task))
            .await?
            .ok_or_else(missing_page)
    }

    pub async fn comment_count(&self, task: Id) -> Result<i64> {
        Ok(self.one::<CommentCounts>(task).await?.unwrap_or_default())
    }

    /// A notification of the viewer, by the id of its event.
    pub async fn notification(&self, id: Id) -> Result<Option<Arc<notification::Notification>>> {
        self.one::<Notifications>(id).await
    }

    /// A range of a task's history.
    pub async fn activity(
        &self,
        task: Id,
        stretch: LogRange,
        columns: EventColumns,
    ) -> Result<EventsWithSnapshots> {
        Ok(self
            .one::<Activity>(((columns, stretch), task))
            .await?
            .unwrap_or_default())
    }

    /// A long text that an event about this object refers to.
    pub async fn history_text(&self, object: Id, text: Id) -> Result<Option<Arc<str>>> {
        self.one::<HistoryTexts>((object, text)).await
    }
}

fn missing_page() -> Error {
    Error::internal("page missing for a parent")
}
