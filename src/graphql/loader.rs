//! Loaders: what the fields of one operation ask for one by one is read from the database in one statement.
//!
//! They do not cache, so that what a mutation wrote is never answered from before it; only what is asked for at the same
//! time is read together. Rights are asked where the rows are read.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::Arc;

use dataloader::BatchFn;
use dataloader::non_cached::Loader;

use super::Asker;
use crate::App;
use crate::db::page::{Page, Window};
use crate::error::{Code, Error, Result};
use crate::events::Event;
use crate::events::hub::Delivery;
use crate::id::Id;
use crate::store::event::{Attached, Objects, Stretch};
use crate::store::{comment, event, label, notification, project, session, task, task_list, user};

/// More keys than the largest operation that is admitted can ask for at once.
const MAX_BATCH: usize = 10_000;
/// How often the executor is let on before a batch is read; enough for all siblings to have asked.
const YIELDS: usize = 16;

/// One kind of thing that is loaded by key.
trait Load: Send + Sync + 'static {
    type Key: Clone + Debug + Eq + Hash + Send + Sync;
    type Value: Clone + Send + Sync;
    /// What is found; a key that is left out stands for nothing found.
    fn load(
        app: &App,
        asker: &Asker,
        keys: &[Self::Key],
    ) -> impl Future<Output = Result<HashMap<Self::Key, Self::Value>>> + Send;
}

type Told = (Code, String);
type Found<L> = std::result::Result<Option<<L as Load>::Value>, Told>;
type LoaderOf<L> = Loader<<L as Load>::Key, Found<L>, Batch<L>>;

struct Batch<L> {
    app: Arc<App>,
    asker: Arc<Asker>,
    kind: PhantomData<L>,
}

impl<L: Load> BatchFn<L::Key, Found<L>> for Batch<L> {
    async fn load(&mut self, keys: &[L::Key]) -> HashMap<L::Key, Found<L>> {
        match L::load(&self.app, &self.asker, keys).await {
            Ok(mut found) => keys.iter().map(|key| (key.clone(), Ok(found.remove(key)))).collect(),
            Err(error) => {
                let (code, message, _) = error.told();
                keys.iter().map(|key| (key.clone(), Err((code, message.to_string())))).collect()
            }
        }
    }
}

fn loader<L: Load>(app: &Arc<App>, asker: &Arc<Asker>) -> LoaderOf<L> {
    Loader::new(Batch { app: Arc::clone(app), asker: Arc::clone(asker), kind: PhantomData })
        .with_max_batch_size(MAX_BATCH)
        .with_yield_count(YIELDS)
}

macro_rules! loads {
    ($(
        $(#[$doc:meta])*
        $name:ident: $kind:ident ($key:ty => $value:ty) |$app:ident, $asker:ident, $keys:ident| $body:expr;
    )+) => {
        /// All loaders of one operation, or of one event of a subscription.
        pub struct Loaders {
            app: Arc<App>,
            known: Option<Arc<Delivery<Objects>>>,
            $($name: LoaderOf<$kind>),+
        }

        impl Loaders {
            /// For what this person asks, of this event if it is one: what hangs on it is loaded once for all who are
            /// told of it.
            pub fn new(app: &Arc<App>, asker: &Arc<Asker>, known: Option<Arc<Delivery<Objects>>>) -> Self {
                Self { app: Arc::clone(app), known, $($name: loader(app, asker)),+ }
            }
        }

        $(
            $(#[$doc])*
            struct $kind;
            impl Load for $kind {
                type Key = $key;
                type Value = $value;
                async fn load($app: &App, $asker: &Asker, $keys: &[$key]) -> Result<HashMap<$key, $value>> {
                    $body
                }
            }
        )+
    };
}

loads! {
    users: Users(Id => Arc<user::User>) |app, _asker, ids| {
        let rows = user::any_by_ids(&mut app.db.conn().await?, ids).await?;
        Ok(rows.into_iter().map(|user| (user.id, Arc::new(user))).collect())
    };
    user_stats: UserStats(Id => user::Stats) |app, _asker, ids| {
        user::stats(&mut app.db.conn().await?, ids).await
    };
    user_sessions: UserSessions(Id => Vec<session::Session>) |app, _asker, ids| {
        let (mut conn, now) = (app.db.conn().await?, app.clock.now());
        let mut sessions = HashMap::new();
        // A viewer sees none but their own: this is one id.
        for id in ids {
            sessions.insert(*id, session::of_user(&mut conn, now, *id).await?);
        }
        Ok(sessions)
    };
    projects: Projects(Id => Arc<project::Project>) |app, asker, ids| {
        let rows = project::by_ids(&mut app.db.conn().await?, asker.viewer()?, ids).await?;
        Ok(rows.into_iter().map(|project| (project.id, Arc::new(project))).collect())
    };
    project_stats: ProjectStats(Id => project::Stats) |app, _asker, ids| {
        project::stats(&mut app.db.conn().await?, ids, app.clock.now()).await
    };
    project_pages: ProjectPages((Arc<project::List>, Id) => Page<project::Project>) |app, _asker, keys| {
        let mut conn = app.db.conn().await?;
        let mut pages = HashMap::new();
        for (list, owners) in grouped(keys) {
            let found = project::pages_of_owners(&mut conn, &owners, &list).await?;
            pages.extend(found.into_iter().map(|(id, page)| ((Arc::clone(&list), id), page)));
        }
        Ok(pages)
    };
    project_counts: ProjectCounts((Arc<project::List>, Id) => i64) |app, _asker, keys| {
        let mut conn = app.db.conn().await?;
        let mut counts = HashMap::new();
        for (list, owners) in grouped(keys) {
            let found = project::counts_of_owners(&mut conn, &owners, &list.filter).await?;
            counts.extend(found.into_iter().map(|(id, count)| ((Arc::clone(&list), id), count)));
        }
        Ok(counts)
    };
    labels: Labels(Id => Arc<label::Label>) |app, asker, ids| {
        let mut conn = app.db.conn().await?;
        let rows = label::by_ids(&mut conn, ids).await?;
        let projects: Vec<Id> = rows.iter().map(|label| label.project_id).collect();
        let seen = project::by_ids(&mut conn, asker.viewer()?, &projects).await?;
        let seen = |label: &label::Label| seen.iter().any(|project| project.id == label.project_id);
        Ok(rows.into_iter().filter(seen).map(|label| (label.id, Arc::new(label))).collect())
    };
    project_labels: ProjectLabels(Id => Vec<Arc<label::Label>>) |app, _asker, ids| {
        let rows = label::of_projects(&mut app.db.conn().await?, ids).await?;
        Ok(collected(rows.into_iter().map(|label| (label.project_id, Arc::new(label)))))
    };
    task_labels: TaskLabels(Id => Vec<Arc<label::Label>>) |app, _asker, ids| {
        let rows = label::of_tasks(&mut app.db.conn().await?, ids).await?;
        Ok(collected(rows.into_iter().map(|(task, label)| (task, Arc::new(label)))))
    };
    tasks: Tasks(Id => Arc<task::Task>) |app, asker, ids| {
        let rows = task::by_ids(&mut app.db.conn().await?, asker.viewer()?, ids).await?;
        Ok(rows.into_iter().map(|task| (task.id, Arc::new(task))).collect())
    };
    task_pages: TaskPages(((task_list::Of, Arc<task_list::List>), Id) => Page<task::Task>) |app, _asker, keys| {
        let mut conn = app.db.conn().await?;
        let mut pages = HashMap::new();
        for ((of, list), ids) in grouped(keys) {
            let found = task_list::pages(&mut conn, of, &ids, &list, app.clock.now()).await?;
            pages.extend(found.into_iter().map(|(id, page)| (((of, Arc::clone(&list)), id), page)));
        }
        Ok(pages)
    };
    task_counts: TaskCounts(((task_list::Of, Arc<task_list::List>), Id) => i64) |app, _asker, keys| {
        let mut conn = app.db.conn().await?;
        let mut counts = HashMap::new();
        for ((of, list), ids) in grouped(keys) {
            let found = task_list::counts(&mut conn, of, &ids, &list, app.clock.now()).await?;
            counts.extend(found.into_iter().map(|(id, count)| (((of, Arc::clone(&list)), id), count)));
        }
        Ok(counts)
    };
    comments: Comments(Id => Arc<comment::Comment>) |app, asker, ids| {
        let mut conn = app.db.conn().await?;
        let rows = comment::by_ids(&mut conn, ids).await?;
        let tasks: Vec<Id> = rows.iter().map(|comment| comment.task_id).collect();
        let seen = task::by_ids(&mut conn, asker.viewer()?, &tasks).await?;
        let seen = |comment: &comment::Comment| seen.iter().any(|task| task.id == comment.task_id);
        Ok(rows.into_iter().filter(seen).map(|comment| (comment.id, Arc::new(comment))).collect())
    };
    comment_pages: CommentPages((Arc<Window>, Id) => Page<comment::Comment>) |app, _asker, keys| {
        let mut conn = app.db.conn().await?;
        let mut pages = HashMap::new();
        for (window, tasks) in grouped(keys) {
            let found = comment::pages(&mut conn, &tasks, &window).await?;
            pages.extend(found.into_iter().map(|(id, page)| ((Arc::clone(&window), id), page)));
        }
        Ok(pages)
    };
    comment_counts: CommentCounts(Id => i64) |app, _asker, ids| {
        comment::counts(&mut app.db.conn().await?, ids).await
    };
    notifications: Notifications(Id => Arc<notification::Notification>) |app, asker, ids| {
        let rows = notification::by_ids(&mut app.db.conn().await?, asker.viewer()?.id, ids).await?;
        Ok(rows.into_iter().map(|row| (row.id, Arc::new(row))).collect())
    };
    activity: Activity((Stretch, Id) => Vec<Event>) |app, _asker, keys| {
        let mut conn = app.db.conn().await?;
        let mut pages = HashMap::new();
        for (stretch, tasks) in grouped(keys) {
            let found = event::pages_of_tasks(&mut conn, &tasks, stretch).await?;
            pages.extend(found.into_iter().map(|(id, page)| ((stretch, id), page)));
        }
        Ok(pages)
    };
}

/// Keys with the same list are read together.
fn grouped<A: Clone + Eq + Hash>(keys: &[(A, Id)]) -> HashMap<A, Vec<Id>> {
    collected(keys.iter().cloned())
}

fn collected<K: Eq + Hash, V>(pairs: impl Iterator<Item = (K, V)>) -> HashMap<K, Vec<V>> {
    let mut groups: HashMap<K, Vec<V>> = HashMap::new();
    for (key, value) in pairs {
        groups.entry(key).or_default().push(value);
    }
    groups
}

fn told<T>(found: std::result::Result<Option<T>, Told>) -> Result<Option<T>> {
    found.map_err(|(code, message)| Error::refused(code, message))
}

impl Loaders {
    /// What hangs on the event, if it is one that was loaded.
    async fn attached(&self) -> Result<Option<&Attached>> {
        let Some((known, objects)) = self.known.as_ref().and_then(|known| Some((known, known.objects.get()?))) else {
            return Ok(None);
        };
        objects.attached(&self.app.db, &known.event).await.map(Some)
    }

    /// A user by id.
    pub async fn user(&self, id: Id) -> Result<Option<Arc<user::User>>> {
        if let Some(user) = self.attached().await?.and_then(|attached| attached.people.get(&id)) {
            return Ok(Some(Arc::clone(user)));
        }
        told(self.users.load(id).await)
    }

    /// A user's statistics.
    pub async fn user_stats(&self, id: Id) -> Result<user::Stats> {
        Ok(told(self.user_stats.load(id).await)?.unwrap_or_default())
    }

    /// A user's sessions that have not ended, newest first.
    pub async fn sessions(&self, id: Id) -> Result<Vec<session::Session>> {
        Ok(told(self.user_sessions.load(id).await)?.unwrap_or_default())
    }

    /// A project by id, if the viewer sees it.
    pub async fn project(&self, id: Id) -> Result<Option<Arc<project::Project>>> {
        // Whoever comes to it from the event's task sees that task, and with it the project.
        let attached = self.attached().await?.and_then(|attached| attached.project.as_ref());
        if let Some(project) = attached.filter(|project| project.id == id) {
            return Ok(Some(Arc::clone(project)));
        }
        told(self.projects.load(id).await)
    }

    /// A project's statistics.
    pub async fn project_stats(&self, id: Id) -> Result<project::Stats> {
        Ok(told(self.project_stats.load(id).await)?.unwrap_or_default())
    }

    /// A page of the projects of an owner.
    pub async fn project_page(&self, owner: Id, list: Arc<project::List>) -> Result<Page<project::Project>> {
        told(self.project_pages.load((list, owner)).await)?.ok_or_else(no_page)
    }

    /// How many projects an owner has.
    pub async fn project_count(&self, owner: Id, list: Arc<project::List>) -> Result<i64> {
        Ok(told(self.project_counts.load((list, owner)).await)?.unwrap_or_default())
    }

    /// A label by id, if the viewer sees its project.
    pub async fn label(&self, id: Id) -> Result<Option<Arc<label::Label>>> {
        told(self.labels.load(id).await)
    }

    /// The labels of a project.
    pub async fn project_labels(&self, project: Id) -> Result<Vec<Arc<label::Label>>> {
        Ok(told(self.project_labels.load(project).await)?.unwrap_or_default())
    }

    /// The labels on a task.
    pub async fn task_labels(&self, task: Id) -> Result<Vec<Arc<label::Label>>> {
        Ok(told(self.task_labels.load(task).await)?.unwrap_or_default())
    }

    /// A task by id, if the viewer sees it.
    pub async fn task(&self, id: Id) -> Result<Option<Arc<task::Task>>> {
        told(self.tasks.load(id).await)
    }

    /// A page of the tasks of a project or an assignee.
    pub async fn task_page(&self, of: task_list::Of, id: Id, list: Arc<task_list::List>) -> Result<Page<task::Task>> {
        told(self.task_pages.load(((of, list), id)).await)?.ok_or_else(no_page)
    }

    /// How many tasks a project or an assignee has.
    pub async fn task_count(&self, of: task_list::Of, id: Id, list: Arc<task_list::List>) -> Result<i64> {
        Ok(told(self.task_counts.load(((of, list), id)).await)?.unwrap_or_default())
    }

    /// A comment by id, if the viewer sees its task.
    pub async fn comment(&self, id: Id) -> Result<Option<Arc<comment::Comment>>> {
        // Whoever is told of an event with a comment that is still there sees its task.
        let attached = self.attached().await?.and_then(|attached| attached.comment.as_ref());
        if let Some(comment) = attached.filter(|comment| comment.id == id) {
            return Ok(Some(Arc::clone(comment)));
        }
        told(self.comments.load(id).await)
    }

    /// A page of the comments on a task.
    pub async fn comment_page(&self, task: Id, window: Arc<Window>) -> Result<Page<comment::Comment>> {
        told(self.comment_pages.load((window, task)).await)?.ok_or_else(no_page)
    }

    /// How many comments a task has.
    pub async fn comment_count(&self, task: Id) -> Result<i64> {
        Ok(told(self.comment_counts.load(task).await)?.unwrap_or_default())
    }

    /// A notification of the viewer, by the id of its event.
    pub async fn notification(&self, id: Id) -> Result<Option<Arc<notification::Notification>>> {
        told(self.notifications.load(id).await)
    }

    /// A stretch of a task's history.
    pub async fn activity(&self, task: Id, stretch: Stretch) -> Result<Vec<Event>> {
        Ok(told(self.activity.load((stretch, task)).await)?.unwrap_or_default())
    }
}

fn no_page() -> Error {
    Error::internal("a parent without a page")
}
