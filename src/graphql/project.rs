//! Projects.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, Result, SimpleObject};
use futures_util::FutureExt;

use super::connection::{Connection, Paging, Tag, Total, needs};
use super::json::Encoded;
use super::label::Label;
use super::level::{ByLevel, Found, Level, Selected, Step};
use super::node::{self, Noun};
use super::payload::{UserError, write};
use super::task::{self, Task, TaskFilter, TaskOrder};
use super::text::Text;
use super::user::{OrderDirection, User, required};
use super::{Caller, guard, loader};
use crate::access::Action;
use crate::db::page::Page;
use crate::error::Error;
use crate::id::Id;
use crate::own;
use crate::store::project::{self as store, Changes, Filter, List, OrderField, ProjectColumns, Status};
use crate::store::task::{self as store_task, TaskColumns};
use crate::store::task_list::{self, Of, Scope};
use crate::store::value::{Description, Faults, ProjectName, Search};
use crate::time::Timestamp;

/// A project; see the schema's own words below.
#[derive(Clone)]
pub struct Project(pub Arc<store::Project>);

/// A project: it belongs to the person who made it. Its owner and ADMIN manage it; whoever has one of its tasks
/// assigned sees it too, with those tasks only.
#[Object]
impl Project {
    /// The object's global id; opaque, and it never changes.
    pub async fn id(&self) -> ID {
        node::encode(Noun::Project, self.0.id)
    }

    /// Its name: 1–120 characters.
    async fn name(&self) -> Text<&str> {
        Text(&self.0.name)
    }

    /// What it is about: up to 10,000 characters.
    async fn description(&self) -> Option<Text<&str>> {
        self.0.description.as_deref().map(Text)
    }

    /// Whether it takes new tasks.
    async fn status(&self) -> Status {
        self.0.status
    }

    /// Who made it.
    async fn owner(&self, ctx: &Context<'_>) -> Result<User> {
        let owner = Caller::of(ctx).loaders()?.user(self.0.owner_id).await?;
        Ok(owner.ok_or_else(|| Error::internal("a project without its owner"))?.into())
    }

    /// Grows by one with each change of the project's own fields.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// When it was made.
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    /// When it last changed.
    async fn updated_at(&self) -> Timestamp {
        self.0.updated_at
    }

    /// How many tasks it has and how they stand, all of them counted.
    async fn stats(&self, ctx: &Context<'_>) -> Result<ProjectStats> {
        let stats = Caller::of(ctx).loaders()?.project_stats(self.0.id).await?;
        Ok(ProjectStats {
            task_count: stats.todo + stats.in_progress + stats.done,
            todo_count: stats.todo,
            in_progress_count: stats.in_progress,
            done_count: stats.done,
            overdue_count: stats.overdue,
        })
    }

    /// Its labels, by name.
    async fn labels(&self, ctx: &Context<'_>) -> Result<Vec<Label>> {
        let caller = Caller::of(ctx);
        let labels = caller.members(caller.loaders()?.project_labels(self.0.id).await?)?;
        Ok(labels.into_iter().map(Label).collect())
    }

    /// Its tasks, by default oldest first; only those that the viewer may see.
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn tasks(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
        #[graphql(desc = "Only these.")] filter: Option<TaskFilter>,
        #[graphql(desc = "In this order.")] order_by: Option<TaskOrder>,
    ) -> Result<ByLevel<Connection<Task>>> {
        let (caller, field) = (Caller::of(ctx), Selected::of(ctx));
        let paging = Paging::new(first, after, last, before).shown_by(&field);
        let (tag, list) = self.list(caller, &paging, filter, order_by, task::columns_of_nodes(&field))?;
        let page = caller.loaders()?.task_page(Of::Project, self.0.id, Arc::clone(&list)).await?;
        Ok(ByLevel(self.listed(tag, &list, page)))
    }

    /// Whether the viewer may change the project, manage its labels and add tasks.
    async fn viewer_can_update(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(Caller::of(ctx).may(Action::UpdateProject, &*self.0)?)
    }

    /// Whether the viewer may delete the project.
    async fn viewer_can_delete(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(Caller::of(ctx).may(Action::DeleteProject, &*self.0)?)
    }
}

impl Project {
    /// The list of its tasks that the arguments ask for.
    fn list(
        &self,
        caller: &Caller,
        paging: &Paging,
        filter: Option<TaskFilter>,
        order_by: Option<TaskOrder>,
        columns: TaskColumns,
    ) -> crate::error::Result<(Tag, Arc<task_list::List>)> {
        let scopes = Scope::in_project(caller.viewer()?, &self.0);
        task::list("Project.tasks", Some(self.0.id), scopes, paging, filter, order_by, columns)
    }

    fn listed(&self, tag: Tag, list: &Arc<task_list::List>, page: Page<Arc<store_task::Task>>) -> Connection<Task> {
        task::connection(tag, Total::TasksOf(Of::Project, self.0.id, Arc::clone(list)), page, list)
    }
}

impl Level for Project {
    const IS_NODE: bool = true;

    fn step<'a>(field: &Selected<'a>) -> Option<Step<'a, Self>> {
        Some(match field.name() {
            "id" => own!(|project| Encoded(&node::bytes(Noun::Project, project.0.id))),
            "name" => own!(|project| project.0.name),
            "description" => own!(|project| project.0.description),
            "status" => own!(|project| project.0.status),
            "version" => own!(|project| project.0.version),
            "createdAt" => own!(|project| project.0.created_at),
            "updatedAt" => own!(|project| project.0.updated_at),
            "owner" => {
                field.one(|project: &Self| Some(project.0.owner_id), loader::Users, |id| id, User::from, true)?
            }
            "labels" => field.all(|project: &Self| project.0.id, loader::ProjectLabels, Label)?,
            "tasks" => {
                let paging = Paging::of(field)?;
                let filter: Option<TaskFilter> = field.argument("filter")?;
                let order_by: Option<TaskOrder> = field.argument("orderBy")?;
                let columns = task::columns_of_nodes(field);
                field.found(move |projects: &[Self], caller| {
                    let list =
                        |project: &Self| project.list(caller, &paging, filter.clone(), order_by.clone(), columns);
                    let lists = projects.iter().map(list);
                    let lists = lists.collect::<crate::error::Result<Vec<_>>>();
                    async move {
                        let lists = lists?;
                        let all = || projects.iter().zip(&lists);
                        let key = |(project, (_, list)): (&Self, &(Tag, Arc<task_list::List>))| {
                            ((Of::Project, Arc::clone(list)), project.0.id)
                        };
                        let pages = caller.loaders()?.all::<loader::TaskPages>(all().map(key)).await?;
                        Found::each(all().map(|(project, listed)| {
                            let page = pages.get(&key((project, listed)))?;
                            Some(project.listed(listed.0, &listed.1, page.clone()))
                        }))
                    }
                    .boxed()
                })?
            }
            "viewerCanUpdate" => own!(|project, caller| caller.may(Action::UpdateProject, &*project.0)?),
            "viewerCanDelete" => own!(|project, caller| caller.may(Action::DeleteProject, &*project.0)?),
            _ => return None,
        })
    }
}

/// How many tasks a project has and how they stand.
#[derive(SimpleObject)]
pub struct ProjectStats {
    /// All of them.
    task_count: i64,
    /// In TODO.
    todo_count: i64,
    /// In IN_PROGRESS.
    in_progress_count: i64,
    /// In DONE.
    done_count: i64,
    /// Past their due date and not DONE.
    overdue_count: i64,
}

/// Which projects are asked for; members are ANDed.
#[derive(InputObject)]
pub struct ProjectFilter {
    /// Words in name or description, without regard to case; all of them must occur. At most 10 words and 200
    /// characters; `%` and `_` mean themselves.
    search: Option<String>,
    /// In this status.
    status: Option<Status>,
    /// Owned by this user.
    owner_id: Option<ID>,
}

/// The order of a list of projects.
#[derive(InputObject)]
pub struct ProjectOrder {
    /// What to order by.
    field: OrderField,
    /// Which way round.
    #[graphql(default_with = "OrderDirection::Asc")]
    direction: OrderDirection,
}

/// What of a project is read for what is selected of it.
pub fn columns(project: &Selected<'_>) -> ProjectColumns {
    project.greatest(&["Project", "Node"], ProjectColumns::Summary, |field| match field.name() {
        "description" => ProjectColumns::Full,
        _ => ProjectColumns::Summary,
    })
}

/// The list that a field's arguments ask for, and the tag of its cursors.
pub fn list(
    field: &Selected<'_>,
    name: &str,
    parent: Option<Id>,
    paging: &Paging,
    filter: Option<ProjectFilter>,
    order_by: Option<ProjectOrder>,
) -> crate::error::Result<(Tag, Arc<List>)> {
    let order = order_by.as_ref().map_or(OrderField::CreatedAt, |order| order.field);
    let descending = order_by.is_some_and(|order| order.direction == OrderDirection::Desc);
    let tag = Tag::new(name, parent, &order, descending);
    let types = ["ProjectConnection", "ProjectEdge"];
    let columns = needs(field, types, ProjectColumns::Summary, |project| columns(&project));
    let filter = match filter {
        None => Filter::default(),
        Some(ProjectFilter { search, status, owner_id }) => Filter {
            search: search.as_deref().map(Search::parse).transpose()?,
            status,
            owner_id: owner_id.map(|id| node::filtered(Noun::User, &id)).transpose()?,
        },
    };
    Ok((tag, Arc::new(List { filter, order, descending, window: paging.window(tag)?, columns })))
}

/// The page of such a list as a connection.
pub fn connection(tag: Tag, total: Total, page: Page<Arc<store::Project>>, list: &List) -> Connection<Project> {
    Connection::new(tag, total, page, |row| row.position(list.order), Project)
}

/// The queries of projects.
#[derive(Default)]
pub struct ProjectQuery;

#[Object]
impl ProjectQuery {
    /// The project with this id; null if there is none for the viewer.
    #[graphql(guard = "guard::signed_in")]
    async fn project(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Its global id.")] id: ID,
    ) -> Result<Option<ByLevel<Project>>> {
        Ok(found(Caller::of(ctx), &Selected::of(ctx), &id).await?.map(ByLevel))
    }

    /// The projects that the viewer owns, by default oldest first; all projects for ADMIN.
    #[graphql(guard = "guard::signed_in")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn projects(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
        #[graphql(desc = "Only these.")] filter: Option<ProjectFilter>,
        #[graphql(desc = "In this order.")] order_by: Option<ProjectOrder>,
    ) -> Result<ByLevel<Connection<Project>>> {
        let field = Selected::of(ctx);
        let paging = Paging::new(first, after, last, before).shown_by(&field);
        Ok(ByLevel(listed(Caller::of(ctx), &field, &paging, filter, order_by).await?))
    }
}

/// The project with a global id.
pub async fn found(caller: &Caller, field: &Selected<'_>, id: &ID) -> crate::error::Result<Option<Project>> {
    let Some(id) = node::decode_as(Noun::Project, id) else {
        return Ok(None);
    };
    let key = (columns(field), id);
    Ok(caller.loaders()?.root::<loader::Projects>(key, caller.manner().is_single).await?.map(Project))
}

/// A page of the projects that the caller may see.
pub async fn listed(
    caller: &Caller,
    field: &Selected<'_>,
    paging: &Paging,
    filter: Option<ProjectFilter>,
    order_by: Option<ProjectOrder>,
) -> crate::error::Result<Connection<Project>> {
    let (tag, list) = list(field, "projects", None, paging, filter, order_by)?;
    let mut conn = caller.app().db.conn_for(list.reads()).await?;
    let page = store::page(&mut conn, caller.viewer()?, &list).await?;
    Ok(connection(tag, Total::Projects(Arc::clone(&list)), page.shared(), &list))
}

/// A project to be made.
#[derive(InputObject)]
pub struct CreateProjectInput {
    /// Its name: 1–120 characters after trimming.
    name: String,
    /// What it is about: up to 10,000 characters.
    description: Option<String>,
}

/// What came of `createProject`.
#[derive(SimpleObject)]
pub struct CreateProjectPayload {
    /// The new project; null if nothing was written.
    project: Option<Project>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// What to change of a project. A field that is left out stays as it is, an explicit null clears it.
#[derive(InputObject)]
pub struct UpdateProjectInput {
    /// Which project.
    id: ID,
    /// A new name: 1–120 characters after trimming; cannot be cleared.
    name: MaybeUndefined<String>,
    /// A new description: up to 10,000 characters.
    description: MaybeUndefined<String>,
    /// A new status; cannot be cleared.
    status: MaybeUndefined<Status>,
    /// Refuse with CONFLICT, and write nothing, when the project has moved on from this version.
    expected_version: Option<i32>,
}

/// What came of `updateProject`.
#[derive(SimpleObject)]
pub struct UpdateProjectPayload {
    /// The project as it is now; null if nothing was written.
    project: Option<Project>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// Which project to delete.
#[derive(InputObject)]
pub struct DeleteProjectInput {
    /// Which project.
    id: ID,
}

/// What came of `deleteProject`.
#[derive(SimpleObject)]
pub struct DeleteProjectPayload {
    /// The id that is gone; null if nothing was written.
    deleted_project_id: Option<ID>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// A description as an update takes it.
pub fn description(faults: &mut Faults, value: MaybeUndefined<String>) -> Option<Option<Description>> {
    match value {
        MaybeUndefined::Undefined => None,
        MaybeUndefined::Null => Some(None),
        MaybeUndefined::Value(text) => faults.take(Description::parse("description", &text)).map(Some),
    }
}

/// The mutations of projects.
#[derive(Default)]
pub struct ProjectMutation;

#[Object]
impl ProjectMutation {
    /// Makes a project that the viewer owns. User errors: BLANK, TOO_LONG, INVALID, QUOTA_EXCEEDED.
    #[graphql(guard = "guard::signed_in")]
    async fn create_project(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to make.")] input: CreateProjectInput,
    ) -> Result<CreateProjectPayload> {
        let (project, user_errors) = write(ctx, |app, viewer| async move {
            let mut faults = Faults::default();
            let name = faults.take(ProjectName::parse("name", &input.name));
            let description = input.description.map(|text| faults.take(Description::parse("description", &text)));
            faults.check()?;
            let name = name.ok_or_else(|| Error::internal("a name without a fault"))?;
            store::create(&app.db, app.clock.now(), &viewer, &name, description.flatten().as_ref()).await
        })
        .await?;
        Ok(CreateProjectPayload { project: project.map(|row| Project(Arc::new(row))), user_errors })
    }

    /// Changes a project. Its owner and ADMIN. User errors: BLANK, TOO_LONG, INVALID, NOT_FOUND, CONFLICT,
    /// QUOTA_EXCEEDED.
    #[graphql(guard = "guard::signed_in")]
    async fn update_project(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to change.")] input: UpdateProjectInput,
    ) -> Result<UpdateProjectPayload> {
        let (project, user_errors) = write(ctx, |app, viewer| async move {
            let id = node::named(Noun::Project, &input.id, "id")?;
            let mut faults = Faults::default();
            let name = required(&mut faults, "name", input.name);
            let changes = Changes {
                name: name.and_then(|name| faults.take(ProjectName::parse("name", &name))),
                description: description(&mut faults, input.description),
                status: required(&mut faults, "status", input.status),
                expected_version: input.expected_version,
            };
            faults.check()?;
            store::update(&app.db, app.clock.now(), &viewer, id, &changes).await
        })
        .await?;
        Ok(UpdateProjectPayload { project: project.map(|row| Project(Arc::new(row))), user_errors })
    }

    /// Deletes a project with its labels, tasks and their comments. Its owner and ADMIN. User errors: NOT_FOUND.
    #[graphql(guard = "guard::signed_in")]
    async fn delete_project(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to delete.")] input: DeleteProjectInput,
    ) -> Result<DeleteProjectPayload> {
        let (deleted_project_id, user_errors) = write(ctx, |app, viewer| async move {
            let id = node::named(Noun::Project, &input.id, "id")?;
            store::delete(&app.db, app.clock.now(), &viewer, id).await?;
            Ok(input.id)
        })
        .await?;
        Ok(DeleteProjectPayload { deleted_project_id, user_errors })
    }
}
