//! The `Project` type, its queries and mutations. Rules and SQL are in `store::project`.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, Result, SimpleObject};
use futures_util::FutureExt;

use super::batch::{BatchObject, Batched, ChildObjects, FieldResolver, SelectedField};
use super::connection::{Connection, CursorTag, PageArgs, TotalCount, max_required};
use super::json::Base64Text;
use super::label::Label;
use super::node::{self, NodeType};
use super::payload::{UserErrorPayload, run_mutation};
use super::task::{self, Task, TaskFilter, TaskOrder};
use super::text::CountedText;
use super::user::{OrderDirection, User, required_field};
use super::{RequestContext, guard, loader};
use crate::access::Action;
use crate::db::page::Page;
use crate::error::Error;
use crate::id::Id;
use crate::inline;
use crate::store::project::{
    self as store, ProjectChanges, ProjectColumns, ProjectCriteria, ProjectList, ProjectOrderField,
    ProjectStatus,
};
use crate::store::task::{self as store_task, TaskColumns};
use crate::store::task_list::{self, Scope, TaskParent};
use crate::store::value::{Description, ProjectName, Search, UserErrors};
use crate::time::Timestamp;

#[derive(Clone)]
pub struct Project(pub Arc<store::Project>);

/// A collection of tasks and labels, owned by the user who created it. The owner and ADMIN manage
/// it. A user with an assigned task in it may see the project, but only those tasks.
#[Object]
impl Project {
    /// Global ID of the object. Opaque; never changes.
    pub async fn id(&self) -> ID {
        node::encode(NodeType::Project, self.0.id)
    }

    /// Name; 1–120 characters.
    async fn name(&self) -> CountedText<&str> {
        CountedText(&self.0.name)
    }

    /// Description; up to 10,000 characters.
    async fn description(&self) -> Option<CountedText<&str>> {
        self.0.description.as_deref().map(CountedText)
    }

    /// Whether the project accepts new tasks.
    async fn status(&self) -> ProjectStatus {
        self.0.status
    }

    /// The user who created the project. Ownership never changes.
    async fn owner(&self, ctx: &Context<'_>) -> Result<User> {
        let owner = RequestContext::of(ctx)
            .loaders()?
            .user(self.0.owner_id)
            .await?;
        Ok(owner
            .ok_or_else(|| Error::internal("project without an owner"))?
            .into())
    }

    /// Starts at 1 and increases by 1 with each `updateProject` that changes the project's own
    /// fields. Pass it as `expectedVersion` to detect concurrent updates.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// When the project was created.
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    /// When the project's own fields were last updated.
    async fn updated_at(&self) -> Timestamp {
        self.0.updated_at
    }

    /// Task counts. They include tasks that the viewer may not see.
    async fn stats(&self, ctx: &Context<'_>) -> Result<ProjectStats> {
        let stats = RequestContext::of(ctx)
            .loaders()?
            .project_stats(self.0.id)
            .await?;
        Ok(ProjectStats {
            task_count: stats.todo + stats.in_progress + stats.done,
            todo_count: stats.todo,
            in_progress_count: stats.in_progress,
            done_count: stats.done,
            overdue_count: stats.overdue,
        })
    }

    /// Labels of the project, sorted by name.
    async fn labels(&self, ctx: &Context<'_>) -> Result<Vec<Label>> {
        let caller = RequestContext::of(ctx);
        let labels = caller.check_list_size(caller.loaders()?.project_labels(self.0.id).await?)?;
        Ok(labels.into_iter().map(Label).collect())
    }

    /// Tasks of the project that the viewer may see, oldest first by default.
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn tasks(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
        #[graphql(desc = "Returns only tasks that match this filter.")] filter: Option<TaskFilter>,
        #[graphql(desc = "Sort order; CREATED_AT ascending by default.")] order_by: Option<
            TaskOrder,
        >,
    ) -> Result<Batched<Connection<Task>>> {
        let (caller, field) = (RequestContext::of(ctx), SelectedField::of(ctx));
        let paging = PageArgs::new(first, after, last, before).for_selection(&field);
        let (tag, list) = self.parse_tasks(
            caller,
            &paging,
            filter,
            order_by,
            task::required_node_columns(&field),
        )?;
        let page = caller
            .loaders()?
            .task_page(TaskParent::Project, self.0.id, Arc::clone(&list))
            .await?;
        Ok(Batched(self.task_connection(tag, &list, page)))
    }

    /// Whether the viewer may update the project, manage its labels and create tasks in it.
    async fn viewer_can_update(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(RequestContext::of(ctx).may(Action::UpdateProject, &*self.0)?)
    }

    /// Whether the viewer may delete the project.
    async fn viewer_can_delete(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(RequestContext::of(ctx).may(Action::DeleteProject, &*self.0)?)
    }
}

impl Project {
    /// Builds the list of the project's tasks that the arguments describe.
    fn parse_tasks(
        &self,
        caller: &RequestContext,
        paging: &PageArgs,
        filter: Option<TaskFilter>,
        order_by: Option<TaskOrder>,
        columns: TaskColumns,
    ) -> crate::error::Result<(CursorTag, Arc<task_list::TaskList>)> {
        let scopes = Scope::in_project(caller.viewer()?, &self.0);
        task::parse_list(
            "Project.tasks",
            Some(self.0.id),
            scopes,
            paging,
            filter,
            order_by,
            columns,
        )
    }

    fn task_connection(
        &self,
        tag: CursorTag,
        list: &Arc<task_list::TaskList>,
        page: Page<Arc<store_task::Task>>,
    ) -> Connection<Task> {
        task::connection(
            tag,
            TotalCount::TasksOf(TaskParent::Project, self.0.id, Arc::clone(list)),
            page,
            list,
        )
    }
}

impl BatchObject for Project {
    const IS_NODE: bool = true;

    fn resolver<'a>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, Self>> {
        Some(match field.name() {
            "id" => inline!(|project| Base64Text(&node::bytes(NodeType::Project, project.0.id))),
            "name" => inline!(|project| project.0.name),
            "description" => inline!(|project| project.0.description),
            "status" => inline!(|project| project.0.status),
            "version" => inline!(|project| project.0.version),
            "createdAt" => inline!(|project| project.0.created_at),
            "updatedAt" => inline!(|project| project.0.updated_at),
            "owner" => field.object_by_id(
                |project: &Self| Some(project.0.owner_id),
                loader::Users,
                |id| id,
                User::from,
                true,
            )?,
            "labels" => {
                field.list_by_id(|project: &Self| project.0.id, loader::ProjectLabels, Label)?
            }
            "tasks" => {
                let paging = PageArgs::from_field(field)?;
                let filter: Option<TaskFilter> = field.argument("filter")?;
                let order_by: Option<TaskOrder> = field.argument("orderBy")?;
                let columns = task::required_node_columns(field);
                field.batch(move |projects: &[Self], caller| {
                    let list = |project: &Self| {
                        project.parse_tasks(
                            caller,
                            &paging,
                            filter.clone(),
                            order_by.clone(),
                            columns,
                        )
                    };
                    let lists = projects.iter().map(list);
                    let lists = lists.collect::<crate::error::Result<Vec<_>>>();
                    async move {
                        let lists = lists?;
                        let all = || projects.iter().zip(&lists);
                        let key = |(project, (_, list)): (
                            &Self,
                            &(CursorTag, Arc<task_list::TaskList>),
                        )| {
                            ((TaskParent::Project, Arc::clone(list)), project.0.id)
                        };
                        let pages = caller
                            .loaders()?
                            .all::<loader::TaskPages>(all().map(key))
                            .await?;
                        ChildObjects::one_per_parent(all().map(|(project, listed)| {
                            let page = pages.get(&key((project, listed)))?;
                            Some(project.task_connection(listed.0, &listed.1, page.clone()))
                        }))
                    }
                    .boxed()
                })?
            }
            "viewerCanUpdate" => {
                inline!(|project, caller| caller.may(Action::UpdateProject, &*project.0)?)
            }
            "viewerCanDelete" => {
                inline!(|project, caller| caller.may(Action::DeleteProject, &*project.0)?)
            }
            _ => return None,
        })
    }
}

/// Task counts of a project.
#[derive(SimpleObject)]
pub struct ProjectStats {
    /// Number of tasks in any status.
    task_count: i64,
    /// Number of tasks in TODO.
    todo_count: i64,
    /// Number of tasks in IN_PROGRESS.
    in_progress_count: i64,
    /// Number of tasks in DONE.
    done_count: i64,
    /// Number of tasks that are past their due date and not DONE.
    overdue_count: i64,
}

/// Filter for projects. Members are combined with AND.
#[derive(InputObject)]
pub struct ProjectFilter {
    /// Matches projects whose name or description contains all of these words, anywhere and
    /// ignoring case. At most 10 words and 200 characters; `%` and `_` are literal. A search adds
    /// 20 points to the cost of the operation.
    search: Option<String>,
    /// Matches projects in this status.
    status: Option<ProjectStatus>,
    /// Matches projects owned by this user.
    owner_id: Option<ID>,
}

/// Sort order of projects.
#[derive(InputObject)]
pub struct ProjectOrder {
    /// Field to sort by.
    field: ProjectOrderField,
    /// Sort direction.
    #[graphql(default_with = "OrderDirection::Asc")]
    direction: OrderDirection,
}

/// The narrowest set of columns that serves a selection on a project.
pub fn required_columns(project: &SelectedField<'_>) -> ProjectColumns {
    project.max_over_fields(
        &["Project", "Node"],
        ProjectColumns::Summary,
        |field| match field.name() {
            "description" => ProjectColumns::Full,
            _ => ProjectColumns::Summary,
        },
    )
}

/// Builds the list that the arguments of a field describe, and the tag of its cursors.
pub fn parse_list(
    field: &SelectedField<'_>,
    name: &str,
    parent: Option<Id>,
    paging: &PageArgs,
    filter: Option<ProjectFilter>,
    order_by: Option<ProjectOrder>,
) -> crate::error::Result<(CursorTag, Arc<ProjectList>)> {
    let order = order_by
        .as_ref()
        .map_or(ProjectOrderField::CreatedAt, |order| order.field);
    let descending = order_by.is_some_and(|order| order.direction == OrderDirection::Desc);
    let tag = CursorTag::new(name, parent, &order, descending);
    let types = ["ProjectConnection", "ProjectEdge"];
    let columns = max_required(field, types, ProjectColumns::Summary, |project| {
        required_columns(&project)
    });
    let filter = match filter {
        None => ProjectCriteria::default(),
        Some(ProjectFilter {
            search,
            status,
            owner_id,
        }) => ProjectCriteria {
            search: search.as_deref().map(Search::parse).transpose()?,
            status,
            owner_id: owner_id
                .map(|id| node::decode_filter(NodeType::User, &id))
                .transpose()?,
        },
    };
    Ok((
        tag,
        Arc::new(ProjectList {
            filter,
            order,
            descending,
            window: paging.window(tag)?,
            columns,
        }),
    ))
}

/// Wraps a page of this list in a connection.
pub fn connection(
    tag: CursorTag,
    total: TotalCount,
    page: Page<Arc<store::Project>>,
    list: &ProjectList,
) -> Connection<Project> {
    Connection::new(tag, total, page, |row| row.position(list.order), Project)
}

#[derive(Default)]
pub struct ProjectQuery;

#[Object]
impl ProjectQuery {
    /// Looks up a project by global ID. Null if it does not exist or the viewer may not see it.
    #[graphql(guard = "guard::require_viewer")]
    async fn project(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Global ID of the project.")] id: ID,
    ) -> Result<Option<Batched<Project>>> {
        Ok(find(RequestContext::of(ctx), &SelectedField::of(ctx), &id)
            .await?
            .map(Batched))
    }

    /// Projects owned by the viewer, oldest first by default; all projects for ADMIN.
    #[graphql(guard = "guard::require_viewer")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn projects(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
        #[graphql(desc = "Returns only projects that match this filter.")] filter: Option<
            ProjectFilter,
        >,
        #[graphql(desc = "Sort order; CREATED_AT ascending by default.")] order_by: Option<
            ProjectOrder,
        >,
    ) -> Result<Batched<Connection<Project>>> {
        let field = SelectedField::of(ctx);
        let paging = PageArgs::new(first, after, last, before).for_selection(&field);
        Ok(Batched(
            list_page(RequestContext::of(ctx), &field, &paging, filter, order_by).await?,
        ))
    }
}

/// Loads a project by global ID.
pub async fn find(
    caller: &RequestContext,
    field: &SelectedField<'_>,
    id: &ID,
) -> crate::error::Result<Option<Project>> {
    let Some(id) = node::decode_as(NodeType::Project, id) else {
        return Ok(None);
    };
    let key = (required_columns(field), id);
    Ok(caller
        .loaders()?
        .root::<loader::Projects>(key, caller.hints().has_single_root)
        .await?
        .map(Project))
}

/// Loads a page of the viewer's projects; of all projects for ADMIN.
pub async fn list_page(
    caller: &RequestContext,
    field: &SelectedField<'_>,
    paging: &PageArgs,
    filter: Option<ProjectFilter>,
    order_by: Option<ProjectOrder>,
) -> crate::error::Result<Connection<Project>> {
    let (tag, list) = parse_list(field, "projects", None, paging, filter, order_by)?;
    let mut conn = caller.app().db.conn_for_rows(list.max_rows_read()).await?;
    let page = store::page(&mut conn, caller.viewer()?, &list).await?;
    Ok(connection(
        tag,
        TotalCount::Projects(Arc::clone(&list)),
        page.into_shared(),
        &list,
    ))
}

/// Input of `createProject`.
#[derive(InputObject)]
pub struct CreateProjectInput {
    /// Name; 1–120 characters after trimming.
    name: String,
    /// Description; up to 10,000 characters.
    description: Option<String>,
}

/// Payload of `createProject`.
#[derive(SimpleObject)]
pub struct CreateProjectPayload {
    /// The created project; null if nothing was written.
    project: Option<Project>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `updateProject`. Omitted fields stay unchanged; an explicit null clears a field.
#[derive(InputObject)]
pub struct UpdateProjectInput {
    /// The project to update.
    id: ID,
    /// New name; 1–120 characters after trimming. Cannot be null.
    name: MaybeUndefined<String>,
    /// New description; up to 10,000 characters. Null removes it.
    description: MaybeUndefined<String>,
    /// New status. Cannot be null.
    status: MaybeUndefined<ProjectStatus>,
    /// Version that the update is based on. If it is not the current version, the update fails with
    /// CONFLICT and writes nothing.
    expected_version: Option<i32>,
}

/// Payload of `updateProject`.
#[derive(SimpleObject)]
pub struct UpdateProjectPayload {
    /// The updated project; null if nothing was written.
    project: Option<Project>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `deleteProject`.
#[derive(InputObject)]
pub struct DeleteProjectInput {
    /// The project to delete.
    id: ID,
}

/// Payload of `deleteProject`.
#[derive(SimpleObject)]
pub struct DeleteProjectPayload {
    /// Global ID of the deleted project; null if nothing was deleted.
    deleted_project_id: Option<ID>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Parses the `description` of an update input: absent, null or text.
pub fn parse_description(
    faults: &mut UserErrors,
    value: MaybeUndefined<String>,
) -> Option<Option<Description>> {
    match value {
        MaybeUndefined::Undefined => None,
        MaybeUndefined::Null => Some(None),
        MaybeUndefined::Value(text) => faults
            .take(Description::parse("description", &text))
            .map(Some),
    }
}

#[derive(Default)]
pub struct ProjectMutation;

#[Object]
impl ProjectMutation {
    /// Creates a project owned by the viewer. User errors: BLANK, TOO_LONG, INVALID,
    /// QUOTA_EXCEEDED.
    #[graphql(guard = "guard::require_viewer")]
    async fn create_project(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The project to create.")] input: CreateProjectInput,
    ) -> Result<CreateProjectPayload> {
        let (project, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let mut faults = UserErrors::default();
            let name = faults.take(ProjectName::parse("name", &input.name));
            let description = input
                .description
                .map(|text| faults.take(Description::parse("description", &text)));
            faults.check()?;
            let name = name.ok_or_else(|| Error::internal("no name and no user error"))?;
            store::create(
                &app.db,
                app.clock.now(),
                &viewer,
                &name,
                description.flatten().as_ref(),
            )
            .await
        })
        .await?;
        Ok(CreateProjectPayload {
            project: project.map(|row| Project(Arc::new(row))),
            user_errors,
        })
    }

    /// Updates a project. Allowed for its owner and ADMIN. User errors: BLANK, TOO_LONG, INVALID,
    /// NOT_FOUND, CONFLICT, QUOTA_EXCEEDED.
    #[graphql(guard = "guard::require_viewer")]
    async fn update_project(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The project and the changes to make.")] input: UpdateProjectInput,
    ) -> Result<UpdateProjectPayload> {
        let (project, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let id = node::decode_input(NodeType::Project, &input.id, "id")?;
            let mut faults = UserErrors::default();
            let name = required_field(&mut faults, "name", input.name);
            let changes = ProjectChanges {
                name: name.and_then(|name| faults.take(ProjectName::parse("name", &name))),
                description: parse_description(&mut faults, input.description),
                status: required_field(&mut faults, "status", input.status),
                expected_version: input.expected_version,
            };
            faults.check()?;
            store::update(&app.db, app.clock.now(), &viewer, id, &changes).await
        })
        .await?;
        Ok(UpdateProjectPayload {
            project: project.map(|row| Project(Arc::new(row))),
            user_errors,
        })
    }

    /// Deletes a project with its labels, tasks and their comments. Allowed for its owner and
    /// ADMIN. User errors: NOT_FOUND.
    #[graphql(guard = "guard::require_viewer")]
    async fn delete_project(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The project to delete.")] input: DeleteProjectInput,
    ) -> Result<DeleteProjectPayload> {
        let (deleted_project_id, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let id = node::decode_input(NodeType::Project, &input.id, "id")?;
            store::delete(&app.db, app.clock.now(), &viewer, id).await?;
            Ok(input.id)
        })
        .await?;
        Ok(DeleteProjectPayload {
            deleted_project_id,
            user_errors,
        })
    }
}
