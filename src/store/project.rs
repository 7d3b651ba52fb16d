//! Projects. The creator of a project owns it; assignees of its tasks can see it too.

use std::collections::HashMap;

use diesel::deserialize::FromSqlRow;
use diesel::dsl::exists;
use diesel::expression::AsExpression;
use diesel::prelude::*;
use serde::{Deserialize, Serialize};

use super::event::about_project;
use super::history::{Change, changes};
use super::search::{Candidate, MAX_CANDIDATES, TextScan, flatten, octet_length, scan};
use super::task::{self, TaskStatus};
use super::value::{Description, ProjectName, Search, fold};
use super::{quota, session};
use crate::access::{Action, Relation, Resource, Viewer};
use crate::db::columns::Columns;
use crate::db::page::{
    Page, PageWindow, Parent, RowPosition, SortKey, any_id, group_by_parent, lateral,
};
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{projects, tasks};
use crate::db::types::sql;
use crate::db::{Conn, Db, Lock, WithinDeadline, inline_if_few};
use crate::error::{Error, Result, UserErrorCode};
use crate::events::{self, EventKind};
use crate::id::Id;
use crate::stored_as_smallint;
use crate::time::Timestamp;
use crate::{keyset, on, select_locked};

/// Status of a project.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    AsExpression,
    FromSqlRow,
    Serialize,
    Deserialize,
    async_graphql::Enum,
)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
#[graphql(name = "ProjectStatus")]
pub enum ProjectStatus {
    /// The project accepts new tasks.
    Active,
    /// The project accepts no new tasks. Its existing tasks can still be updated.
    Archived,
}
stored_as_smallint!(ProjectStatus { Active = 0, Archived = 1 });

#[derive(
    Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable, Serialize, Deserialize,
)]
#[diesel(table_name = projects)]
pub struct Project {
    pub id: Id,
    /// The creator; never changes.
    pub owner_id: Id,
    pub name: String,
    pub description: Option<String>,
    pub status: ProjectStatus,
    /// Incremented by each update.
    pub version: i32,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Which columns of a project are selected. The others are read as null. Use partial columns only
/// for rows that are displayed, never for rows that are written back or recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProjectColumns {
    /// All but the description, which can be 40 kB.
    Summary,
    Full,
}

impl ProjectColumns {
    /// The columns in the order of the fields of [`Project`].
    const fn expression(self) -> Columns<Project> {
        Columns::new(match self {
            Self::Summary => {
                "projects.id, projects.owner_id, projects.name, NULL, projects.status, projects.version, \
                 projects.created_at, projects.updated_at"
            }
            Self::Full => {
                "projects.id, projects.owner_id, projects.name, projects.description, projects.status, projects.version, \
                 projects.created_at, projects.updated_at"
            }
        })
    }
}

impl Resource for Project {
    fn has_relation(&self, viewer: &Viewer, standing: Relation) -> bool {
        standing == Relation::Owner && self.owner_id == viewer.id
    }
}

/// Fields to sort projects by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, async_graphql::Enum)]
#[graphql(name = "ProjectOrderField")]
pub enum ProjectOrderField {
    /// Time of creation.
    CreatedAt,
    /// Time of the last update.
    UpdatedAt,
    /// Name, ignoring case.
    Name,
}

/// Filter of a project list. The members are combined with AND.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProjectCriteria {
    /// Matches name and description.
    pub search: Option<Search>,
    pub status: Option<ProjectStatus>,
    pub owner_id: Option<Id>,
}

/// A list of projects and the requested page of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProjectList {
    pub filter: ProjectCriteria,
    pub order: ProjectOrderField,
    pub descending: bool,
    pub window: PageWindow,
    pub columns: ProjectColumns,
}

impl ProjectList {
    /// Upper bound of the rows read for one page. Unbounded with a filter, because rows that do not
    /// match are read too.
    pub fn max_rows_read(&self) -> usize {
        let is_stretch = self.filter.search.is_none() && self.filter.status.is_none();
        if is_stretch {
            self.window.limit
        } else {
            usize::MAX
        }
    }
}

impl Project {
    /// The sort key of the project in a list with this order.
    pub fn position(&self, order: ProjectOrderField) -> RowPosition {
        let key = match order {
            ProjectOrderField::CreatedAt => SortKey::Time(self.created_at),
            ProjectOrderField::UpdatedAt => SortKey::Time(self.updated_at),
            ProjectOrderField::Name => SortKey::Text(fold(&self.name)),
        };
        RowPosition { key, id: self.id }
    }
}

/// Applies the filter to a boxed query on projects; `on!` expands it for both backends.
macro_rules! narrow {
    ($query:ident, $filter:expr) => {
        if let Some(status) = $filter.status {
            $query = $query.filter(projects::status.eq(status));
        }
        if let Some(owner) = $filter.owner_id {
            $query = $query.filter(projects::owner_id.eq(owner));
        }
    };
}

macro_rules! order {
    ($query:ident, $list:expr) => {
        order!($query, $list, $list.window)
    };
    ($query:ident, $list:expr, $window:expr) => {
        keyset!($query, $window, $list.descending, $list.order, projects {
            ProjectOrderField::CreatedAt => created_at as Time,
            ProjectOrderField::UpdatedAt => updated_at as Time,
            ProjectOrderField::Name => name_key as Text,
        });
    };
}

/// Returns the projects with these ids that the viewer may see ([`Action::SeeProject`]).
pub async fn by_ids(conn: &mut Conn, viewer: &Viewer, ids: &[Id]) -> Result<Vec<Project>> {
    select_by_ids(conn, viewer, ids, ProjectColumns::Full).await
}

/// Like [`by_ids`], with the given columns.
pub async fn select_by_ids(
    conn: &mut Conn,
    viewer: &Viewer,
    ids: &[Id],
    columns: ProjectColumns,
) -> Result<Vec<Project>> {
    Ok(on!(conn, |c| {
        let mut query = projects::table
            .filter(any_id(projects::id, ids))
            .select(columns.expression())
            .into_boxed::<Backend>();
        if !viewer.is_admin() {
            let assigned = tasks::table
                .filter(tasks::project_id.eq(projects::id))
                .filter(tasks::assignee_id.eq(viewer.id));
            query = query.filter(projects::owner_id.eq(viewer.id).or(exists(assigned)));
        }
        query.load(c).await
    })?)
}

/// Returns the projects with these ids without a permission check.
pub async fn any_by_ids(conn: &mut Conn, ids: &[Id]) -> Result<Vec<Project>> {
    let found = projects::table.filter(any_id(projects::id, ids));
    Ok(inline_if_few(ids.len(), async {
        on!(conn, |c| found.select(Project::as_select()).load(c).await)
    })
    .await?)
}

/// Returns a project that the viewer may see. Otherwise `field` is reported as `NOT_FOUND`.
pub async fn get_visible(
    conn: &mut Conn,
    viewer: &Viewer,
    id: Id,
    field: &'static str,
) -> Result<Project> {
    by_ids(conn, viewer, &[id])
        .await?
        .pop()
        .ok_or_else(|| Error::not_found(field, "project"))
}

/// Locks a project until the transaction ends, for an action that only its owner and ADMIN may
/// perform. For other viewers nothing is locked: an unlocked read decides between `NOT_FOUND` and
/// `FORBIDDEN`.
pub async fn lock(
    tx: &mut Conn,
    viewer: &Viewer,
    action: Action,
    id: Id,
    field: &'static str,
    lock: Lock,
) -> Result<Project> {
    let managed = projects::owner_id
        .eq(viewer.id)
        .or(viewer.is_admin().into_sql::<sql::Bool>());
    let project = projects::table.find(id).filter(managed);
    let project: Option<Project> =
        select_locked!(tx, project.select(Project::as_select()), lock)?.pop();
    let project = match project {
        Some(project) => project,
        None => get_visible(tx, viewer, id, field).await?,
    };
    viewer.require(action, &project)?;
    Ok(project)
}

/// Returns the ids that the search matches, by owner: within the page of `list` and at most its
/// size per owner, or all of them without a `list`. `None` if the filter has no search.
async fn search_ids(
    conn: &mut Conn,
    owners: Option<&[Id]>,
    filter: &ProjectCriteria,
    list: Option<&ProjectList>,
) -> Result<Option<HashMap<Option<Id>, Vec<Id>>>> {
    let Some(search) = filter.search.as_ref().filter(|search| !search.is_empty()) else {
        return Ok(None);
    };
    let mut candidates: Vec<Candidate> = on!(conn, |c| {
        let candidate = (
            projects::owner_id.nullable(),
            projects::id,
            octet_length(projects::search),
        );
        let mut query = projects::table
            .filter(WithinDeadline)
            .select(candidate)
            .into_boxed::<Backend>();
        if let Some(owners) = owners {
            query = query.filter(any_id(projects::owner_id, owners));
        }
        narrow!(query, filter);
        match list {
            Some(list) => {
                let window = PageWindow {
                    limit: MAX_CANDIDATES,
                    detect_more: true,
                    ..list.window.clone()
                };
                order!(query, list, window);
                query.load(c).await
            }
            None => query.limit(MAX_CANDIDATES as i64 + 1).load(c).await,
        }
    })?;
    if owners.is_none() {
        candidates
            .iter_mut()
            .for_each(|candidate| candidate.parent = None);
    }
    let limit = list.map_or(usize::MAX, |list| list.window.rows());
    let owners = owners.map_or(1, <[Id]>::len);
    Ok(Some(scan!(
        conn,
        projects,
        TextScan::new(search, candidates, owners, limit)
    )))
}

/// Returns one page of the viewer's own projects; ADMIN gets all projects.
pub async fn page(conn: &mut Conn, viewer: &Viewer, list: &ProjectList) -> Result<Page<Project>> {
    let owners = [viewer.id];
    let owners = (!viewer.is_admin()).then_some(&owners[..]);
    let found = flatten(search_ids(conn, owners, &list.filter, Some(list)).await?);
    let walk = async {
        on!(conn, |c| {
            let mut query = projects::table
                .select(list.columns.expression())
                .into_boxed::<Backend>();
            if let Some(ids) = &found {
                query = query.filter(any_id(projects::id, ids));
            }
            if !viewer.is_admin() {
                query = query.filter(projects::owner_id.eq(viewer.id));
            }
            narrow!(query, list.filter);
            order!(query, list);
            query.load(c).await
        })
    };
    let rows = inline_if_few(list.max_rows_read(), walk).await?;
    Ok(list
        .window
        .page(list.descending, rows, |project: &Project| {
            project.position(list.order)
        }))
}

/// Returns the number of projects on all pages of the list.
pub async fn count(conn: &mut Conn, viewer: &Viewer, filter: &ProjectCriteria) -> Result<i64> {
    let owners = [viewer.id];
    let owners = (!viewer.is_admin()).then_some(&owners[..]);
    if let Some(ids) = flatten(search_ids(conn, owners, filter, None).await?) {
        return Ok(ids.len() as i64);
    }
    Ok(on!(conn, |c| {
        let mut query = projects::table
            .select(diesel::dsl::count_star())
            .into_boxed::<Backend>();
        if !viewer.is_admin() {
            query = query.filter(projects::owner_id.eq(viewer.id));
        }
        narrow!(query, filter);
        query.first(c).await
    })?)
}

/// Returns one page of projects for each owner.
pub async fn pages_of_owners(
    conn: &mut Conn,
    owners: &[Id],
    list: &ProjectList,
) -> Result<HashMap<Id, Page<Project>>> {
    let found = flatten(search_ids(conn, Some(owners), &list.filter, Some(list)).await?);
    let rows: Vec<Project> = on!(conn, |c| {
        let owned = projects::table.filter(projects::owner_id.eq(Parent));
        let mut query = owned
            .select(list.columns.expression())
            .into_boxed::<Backend>();
        if let Some(ids) = &found {
            query = query.filter(any_id(projects::id, ids));
        }
        narrow!(query, list.filter);
        order!(query, list);
        lateral(owners, "projects", list.columns.expression(), query)
            .load(c)
            .await
    })?;
    let mut groups = group_by_parent(rows, |project| project.owner_id);
    Ok(owners
        .iter()
        .map(|id| {
            let rows = groups.remove(id).unwrap_or_default();
            (
                *id,
                list.window.page(list.descending, rows, |project| {
                    project.position(list.order)
                }),
            )
        })
        .collect())
}

/// Returns the number of projects of each owner.
pub async fn counts_of_owners(
    conn: &mut Conn,
    owners: &[Id],
    filter: &ProjectCriteria,
) -> Result<HashMap<Id, i64>> {
    if let Some(found) = search_ids(conn, Some(owners), filter, None).await? {
        return Ok(found
            .into_iter()
            .filter_map(|(owner, ids)| Some((owner?, ids.len() as i64)))
            .collect());
    }
    let counts: Vec<(Id, i64)> = on!(conn, |c| {
        let mut query = projects::table
            .filter(any_id(projects::owner_id, owners))
            .group_by(projects::owner_id)
            .select((projects::owner_id, diesel::dsl::count_star()))
            .into_boxed::<Backend>();
        narrow!(query, filter);
        query.load(c).await
    })?;
    Ok(counts.into_iter().collect())
}

/// Task counts of a project, by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectStatsRow {
    pub todo: i64,
    pub in_progress: i64,
    pub done: i64,
    /// Past the due date and not DONE.
    pub overdue: i64,
}

/// Returns the statistics of each project. They are counted on every read instead of being stored,
/// so they cannot drift; a covering index serves the query.
pub async fn stats(
    conn: &mut Conn,
    projects: &[Id],
    now: Timestamp,
) -> Result<HashMap<Id, ProjectStatsRow>> {
    use diesel::dsl::{case_when, count_star, sum};
    let rows: Vec<(Id, TaskStatus, i64, Option<i64>)> = on!(conn, |c| {
        // A sum of 32-bit integers is a BIGINT on both databases; PostgreSQL returns NUMERIC for
        // 64-bit ones.
        let overdue =
            case_when::<_, _, diesel::sql_types::Integer>(tasks::due_at.lt(now), 1).otherwise(0);
        tasks::table
            .filter(any_id(tasks::project_id, projects))
            .group_by((tasks::project_id, tasks::status))
            .select((tasks::project_id, tasks::status, count_star(), sum(overdue)))
            .load(c)
            .await
    })?;
    let mut stats: HashMap<Id, ProjectStatsRow> = HashMap::new();
    for (project, status, count, overdue) in rows {
        let entry = stats.entry(project).or_default();
        match status {
            TaskStatus::Todo => entry.todo = count,
            TaskStatus::InProgress => entry.in_progress = count,
            TaskStatus::Done => entry.done = count,
        }
        if status != TaskStatus::Done {
            entry.overdue += overdue.unwrap_or_default();
        }
    }
    Ok(stats)
}

/// Creates a project that the viewer owns.
pub async fn create(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    name: &ProjectName,
    description: Option<&Description>,
) -> Result<Project> {
    let project = Project {
        id: Id::new(),
        owner_id: viewer.id,
        name: name.to_string(),
        description: description.map(ToString::to_string),
        status: ProjectStatus::Active,
        version: 1,
        created_at: now,
        updated_at: now,
    };
    db.transaction(async |tx| {
        session::lock(tx, now, viewer).await?;
        on!(tx, |c| diesel::insert_into(projects::table)
            .values((&project, ProjectKeys::of(&project)))
            .execute(c)
            .await)?;
        quota::add_project(tx, db.quotas, viewer.id, project.description.as_deref()).await
    })
    .await?;
    Ok(project)
}

/// Changes of an update. `None` leaves a field unchanged; `Some(None)` clears it.
#[derive(Clone, Debug, Default)]
pub struct ProjectChanges {
    pub name: Option<ProjectName>,
    pub description: Option<Option<Description>>,
    pub status: Option<ProjectStatus>,
    /// The update fails with `CONFLICT` if the project has another version.
    pub expected_version: Option<i32>,
}

pub async fn update(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    id: Id,
    changes: &ProjectChanges,
) -> Result<Project> {
    db.transaction(async |tx| {
        let viewer = &session::lock(tx, now, viewer).await?;
        let old = lock(tx, viewer, Action::UpdateProject, id, "id", Lock::Update).await?;
        if changes
            .expected_version
            .is_some_and(|version| version != old.version)
        {
            return Err(version_conflict());
        }
        let mut new = old.clone();
        if let Some(name) = &changes.name {
            new.name = name.to_string();
        }
        if let Some(description) = &changes.description {
            new.description = description.as_ref().map(ToString::to_string);
        }
        new.status = changes.status.unwrap_or(old.status);
        if new == old {
            return Ok(old);
        }
        new.version += 1;
        new.updated_at = now;
        on!(tx, |c| diesel::update(projects::table.find(id))
            .set((
                projects::name.eq(&new.name),
                projects::description.eq(&new.description),
                projects::status.eq(new.status),
                projects::version.eq(new.version),
                projects::updated_at.eq(now),
                ProjectKeys::of(&new),
            ))
            .execute(c)
            .await)?;
        let event = about_project(
            EventKind::ProjectUpdated,
            viewer,
            now,
            &new,
            diff(&old, &new),
        );
        let kept = events::append_with_texts(tx, &[event]).await?;
        let text = (old.description.as_deref(), new.description.as_deref());
        quota::change_text(tx, db.quotas, new.owner_id, text, kept).await?;
        Ok(new)
    })
    .await
}

/// Deletes a project with everything in it. The deletion events of its tasks precede its own.
pub async fn delete(db: &Db, now: Timestamp, viewer: &Viewer, id: Id) -> Result<()> {
    db.transaction(async |tx| {
        let viewer = &session::lock(tx, now, viewer).await?;
        let project = lock(tx, viewer, Action::DeleteProject, id, "id", Lock::Delete).await?;
        let growth = remove(tx, now, viewer, &project).await?;
        quota::remove_project(tx, project.owner_id, growth).await
    })
    .await
}

/// Deletes a project that the caller has locked with [`Lock::Delete`]. Returns the change of the
/// owner's text usage in bytes, which the caller applies. No task can be added meanwhile, because
/// adding one locks the project's row until its commit.
pub async fn remove(
    tx: &mut Conn,
    now: Timestamp,
    viewer: &Viewer,
    project: &Project,
) -> Result<i64> {
    let of_tasks = task::append_deletions(tx, now, viewer, project).await?;
    on!(tx, |c| diesel::delete(projects::table.find(project.id))
        .execute(c)
        .await)?;
    let deletion = about_project(EventKind::ProjectDeleted, viewer, now, project, Vec::new());
    let kept = events::append_with_texts(tx, &[deletion]).await?;
    Ok(of_tasks + kept - quota::size(project.description.as_deref()))
}

/// Columns derived from others, for search and order.
#[derive(Insertable, AsChangeset)]
#[diesel(table_name = projects)]
struct ProjectKeys {
    name_key: String,
    search: String,
}

impl ProjectKeys {
    fn of(project: &Project) -> Self {
        let search = fold(&format!(
            "{}\n{}",
            project.name,
            project.description.as_deref().unwrap_or_default()
        ));
        Self {
            name_key: fold(&project.name),
            search,
        }
    }
}

fn diff(old: &Project, new: &Project) -> Vec<Change> {
    let status = |project: &Project| Some(format!("{:?}", project.status).to_uppercase());
    changes([
        ("name", Some(old.name.clone()), Some(new.name.clone())),
        (
            "description",
            old.description.clone(),
            new.description.clone(),
        ),
        ("status", status(old), status(new)),
    ])
}

fn version_conflict() -> Error {
    Error::user_error(
        "expectedVersion",
        UserErrorCode::Conflict,
        "The project was changed by another request. Reload it and try again.",
    )
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;
    use diesel::sqlite::Sqlite;

    use super::*;

    #[test]
    fn the_columns_are_those_of_a_project() {
        let plain = |query: String| query.replace('`', "");
        let full = plain(
            debug_query::<Sqlite, _>(&projects::table.select(Project::as_select())).to_string(),
        );
        let read = |columns: ProjectColumns| {
            plain(
                debug_query::<Sqlite, _>(&projects::table.select(columns.expression())).to_string(),
            )
        };
        assert_eq!(read(ProjectColumns::Full), full);
        assert_eq!(
            read(ProjectColumns::Summary),
            full.replace("projects.description", "NULL")
        );
    }
}
