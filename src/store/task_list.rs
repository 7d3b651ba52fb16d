//! Lists of tasks: scope, filter, order and keyset pagination, for top-level lists and for the
//! lists of many parents at once.

use std::collections::HashMap;

use diesel::dsl::exists;
use diesel::prelude::*;

use super::project::Project;
use super::search::{Candidate, MAX_CANDIDATES, TextScan, flatten, octet_length, scan};
use super::task::{Priority, Task, TaskColumns, TaskStatus};
use super::value::Search;
use crate::access::{Action, Viewer};
use crate::db::columns::Columns;
use crate::db::page::{
    Page, PageWindow, Parent, RowPosition, SortKey, any_id, group_by_parent, lateral,
};
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{task_labels, tasks};
use crate::db::{Conn, WithinDeadline, inline_if_few, uncached};
use crate::error::Result;
use crate::id::Id;
use crate::time::Timestamp;
use crate::{keyset, on};

/// Fields to sort tasks by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, async_graphql::Enum)]
#[graphql(name = "TaskOrderField")]
pub enum TaskOrderField {
    /// Time of creation.
    CreatedAt,
    /// Time of the last update.
    UpdatedAt,
    /// Due date. Tasks without a due date come last in ascending order and first in descending
    /// order.
    DueAt,
    /// Priority; LOW comes first in ascending order.
    Priority,
}

impl Task {
    /// The sort key of the task in a list with this order.
    pub fn position(&self, order: TaskOrderField) -> RowPosition {
        let key = match order {
            TaskOrderField::CreatedAt => SortKey::Time(self.created_at),
            TaskOrderField::UpdatedAt => SortKey::Time(self.updated_at),
            TaskOrderField::DueAt => SortKey::Time(self.due_at.unwrap_or(Timestamp::MAX)),
            TaskOrderField::Priority => SortKey::Rank(self.priority.code()),
        };
        RowPosition { key, id: self.id }
    }
}

/// A time range. The given bounds are combined with AND.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TimeRange {
    pub gt: Option<Timestamp>,
    pub gte: Option<Timestamp>,
    pub lt: Option<Timestamp>,
    pub lte: Option<Timestamp>,
}

/// Filter of a task list. The members are combined with AND; an empty list matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TaskCriteria {
    /// Matches title and description.
    pub search: Option<Search>,
    pub status: Option<Vec<TaskStatus>>,
    pub priority: Option<Vec<Priority>>,
    pub project_id: Option<Id>,
    pub assignee_id: Option<Id>,
    /// `true`: without an assignee, `false`: with one.
    pub unassigned: Option<bool>,
    /// Tasks with at least one of these labels.
    pub label_ids: Option<Vec<Id>>,
    /// `true`: past the due date and not DONE, `false`: all others.
    pub overdue: Option<bool>,
    pub due_at: Option<TimeRange>,
    pub created_at: Option<TimeRange>,
    pub updated_at: Option<TimeRange>,
}

impl TaskCriteria {
    /// Whether only project and assignee are filtered. Such statements have few texts, so they are
    /// worth caching, and an index for every order.
    fn is_plain(&self) -> bool {
        let Self {
            project_id,
            assignee_id,
            ..
        } = *self;
        *self
            == Self {
                project_id,
                assignee_id,
                ..Self::default()
            }
    }
}

/// The tasks that a list starts from. Each scope is one range of an index; the scopes of a list do
/// not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Everything,
    /// The tasks in the projects of a user.
    OwnedBy(Id),
    AssignedTo(Id),
    /// The tasks assigned to a user in other users' projects.
    AssignedElsewhere(Id),
}

impl Scope {
    /// The tasks that the viewer may see: [`Action::SeeTask`] as scopes.
    pub fn visible_to(viewer: &Viewer) -> Vec<Self> {
        if viewer.may(Action::SeeAllTasks, &()) {
            vec![Self::Everything]
        } else {
            vec![Self::OwnedBy(viewer.id), Self::AssignedElsewhere(viewer.id)]
        }
    }

    /// The tasks of a project that the viewer may see.
    pub fn in_project(viewer: &Viewer, project: &Project) -> Vec<Self> {
        if viewer.may(Action::SeeAllTasks, project) {
            vec![Self::Everything]
        } else {
            vec![Self::AssignedTo(viewer.id)]
        }
    }
}

/// A list of tasks and the requested page of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TaskList {
    pub scopes: Vec<Scope>,
    pub filter: TaskCriteria,
    pub order: TaskOrderField,
    pub descending: bool,
    pub window: PageWindow,
    pub columns: TaskColumns,
}

impl TaskList {
    fn expression(&self) -> Columns<Task> {
        // The cursor of a task needs the column that the list is ordered by.
        let needed = if self.order == TaskOrderField::UpdatedAt {
            TaskColumns::Short
        } else {
            TaskColumns::Summary
        };
        self.columns.max(needed).expression()
    }

    /// Upper bound of the rows read for one page of each parent. Unbounded with a filter, because
    /// rows that do not match are read too.
    pub fn max_rows_read(&self, parents: usize) -> usize {
        let TaskCriteria { project_id, .. } = self.filter;
        let is_stretch = self.filter
            == TaskCriteria {
                project_id,
                ..TaskCriteria::default()
            }
            && !self
                .scopes
                .iter()
                .any(|it| matches!(it, Scope::AssignedElsewhere(_)));
        if is_stretch {
            self.window.limit * parents
        } else {
            usize::MAX
        }
    }
}

/// The parent of nested task lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskParent {
    Project,
    Assignee,
}

macro_rules! in_time_range {
    ($query:ident, $column:ident, $range:expr) => {
        if let Some(range) = &$range {
            if let Some(moment) = range.gt {
                $query = $query.filter(tasks::$column.gt(moment));
            }
            if let Some(moment) = range.gte {
                $query = $query.filter(tasks::$column.ge(moment));
            }
            if let Some(moment) = range.lt {
                $query = $query.filter(tasks::$column.lt(moment));
            }
            if let Some(moment) = range.lte {
                $query = $query.filter(tasks::$column.le(moment));
            }
        }
    };
}

/// Applies scope and filter to a boxed query on tasks; `on!` expands it for both backends.
macro_rules! narrow {
    ($query:ident, $scope:expr, $filter:expr, $now:expr) => {
        $query = $query.filter(WithinDeadline);
        match $scope {
            Scope::Everything => {}
            Scope::OwnedBy(id) => $query = $query.filter(tasks::owner_id.eq(*id)),
            Scope::AssignedTo(id) => $query = $query.filter(tasks::assignee_id.eq(*id)),
            Scope::AssignedElsewhere(id) => {
                $query = $query
                    .filter(tasks::assignee_id.eq(*id))
                    .filter(tasks::owner_id.ne(*id));
            }
        }
        if let Some(status) = &$filter.status {
            $query = $query.filter(tasks::status.eq_any(status.clone()));
        }
        if let Some(priority) = &$filter.priority {
            $query = $query.filter(tasks::priority.eq_any(priority.clone()));
        }
        if let Some(project) = $filter.project_id {
            $query = $query.filter(tasks::project_id.eq(project));
        }
        if let Some(assignee) = $filter.assignee_id {
            $query = $query.filter(tasks::assignee_id.eq(assignee));
        }
        match $filter.unassigned {
            Some(true) => $query = $query.filter(tasks::assignee_id.is_null()),
            Some(false) => $query = $query.filter(tasks::assignee_id.is_not_null()),
            None => {}
        }
        if let Some(ids) = &$filter.label_ids {
            let labelled = task_labels::table
                .filter(task_labels::task_id.eq(tasks::id))
                .filter(any_id(task_labels::label_id, ids));
            $query = $query.filter(exists(labelled));
        }
        match $filter.overdue {
            Some(true) => {
                $query = $query
                    .filter(tasks::due_order.lt($now))
                    .filter(tasks::status.ne(TaskStatus::Done));
            }
            Some(false) => {
                $query = $query.filter(
                    tasks::due_order
                        .ge($now)
                        .or(tasks::status.eq(TaskStatus::Done)),
                )
            }
            None => {}
        }
        in_time_range!($query, due_at, $filter.due_at);
        in_time_range!($query, created_at, $filter.created_at);
        in_time_range!($query, updated_at, $filter.updated_at);
        if !$filter.is_plain() {
            $query = $query.filter(uncached());
        }
    };
}

macro_rules! order {
    ($query:ident, $list:expr) => {
        order!($query, $list, $list.window)
    };
    ($query:ident, $list:expr, $window:expr) => {
        keyset!($query, $window, $list.descending, $list.order, tasks {
            TaskOrderField::CreatedAt => created_at as Time,
            TaskOrderField::UpdatedAt => updated_at as Time,
            TaskOrderField::DueAt => due_order as Time,
            TaskOrderField::Priority => priority as Rank,
        });
    };
}

/// Returns the ids that the search of the list matches within a scope, at most `limit` per parent,
/// in list order. `None` if the list has no search.
async fn search_ids(
    conn: &mut Conn,
    scope: &Scope,
    list: &TaskList,
    parents: Option<(TaskParent, &[Id])>,
    limit: usize,
    now: Timestamp,
) -> Result<Option<HashMap<Option<Id>, Vec<Id>>>> {
    let Some(search) = list
        .filter
        .search
        .as_ref()
        .filter(|search| !search.is_empty())
    else {
        return Ok(None);
    };
    // A count (`limit` is `usize::MAX`) covers the whole list, a page only its window.
    let PageWindow {
        after,
        before,
        backward,
        ..
    } = list.window.clone();
    let (after, before) = if limit == usize::MAX {
        (None, None)
    } else {
        (after, before)
    };
    let window = PageWindow {
        after,
        before,
        backward,
        limit: MAX_CANDIDATES,
        detect_more: true,
    };
    let mut candidates: Vec<Candidate> = on!(conn, |c| {
        let bytes = octet_length(tasks::search);
        let mut query = match parents {
            None => tasks::table
                .select((tasks::project_id.nullable(), tasks::id, bytes))
                .into_boxed::<Backend>(),
            Some((TaskParent::Project, ids)) => tasks::table
                .filter(any_id(tasks::project_id, ids))
                .select((tasks::project_id.nullable(), tasks::id, bytes))
                .into_boxed::<Backend>(),
            Some((TaskParent::Assignee, ids)) => tasks::table
                .filter(any_id(tasks::assignee_id, ids))
                .select((tasks::assignee_id, tasks::id, bytes))
                .into_boxed::<Backend>(),
        };
        narrow!(query, scope, list.filter, now);
        order!(query, list, window);
        query.load(c).await
    })?;
    if parents.is_none() {
        candidates
            .iter_mut()
            .for_each(|candidate| candidate.parent = None);
    }
    let parents = parents.map_or(1, |(_, ids)| ids.len());
    Ok(Some(scan!(
        conn,
        tasks,
        TextScan::new(search, candidates, parents, limit)
    )))
}

/// Returns one page of a list. Each scope is read along its own index, and the results are merged.
pub async fn page(conn: &mut Conn, list: &TaskList, now: Timestamp) -> Result<Page<Task>> {
    let mut rows: Vec<Task> = Vec::new();
    for scope in &list.scopes {
        let found = flatten(search_ids(conn, scope, list, None, list.window.rows(), now).await?);
        let walk = async {
            on!(conn, |c| {
                let mut query = tasks::table
                    .select(list.expression())
                    .into_boxed::<Backend>();
                narrow!(query, scope, list.filter, now);
                if let Some(ids) = &found {
                    query = query.filter(any_id(tasks::id, ids));
                }
                order!(query, list);
                query.load::<Task>(c).await
            })
        };
        rows.extend(inline_if_few(list.max_rows_read(1), walk).await?);
    }
    Ok(list
        .window
        .page(list.descending, rows, |task| task.position(list.order)))
}

/// Returns the number of tasks on all pages of the list.
pub async fn count(conn: &mut Conn, list: &TaskList, now: Timestamp) -> Result<i64> {
    let mut total = 0;
    for scope in &list.scopes {
        if let Some(found) = search_ids(conn, scope, list, None, usize::MAX, now).await? {
            total += found.values().map(|ids| ids.len() as i64).sum::<i64>();
            continue;
        }
        total += on!(conn, |c| {
            let mut query = tasks::table
                .select(diesel::dsl::count_star())
                .into_boxed::<Backend>();
            narrow!(query, scope, list.filter, now);
            query.first::<i64>(c).await
        })?;
    }
    Ok(total)
}

/// Returns one page of tasks for each parent, with one statement per scope.
pub async fn pages(
    conn: &mut Conn,
    of: TaskParent,
    ids: &[Id],
    list: &TaskList,
    now: Timestamp,
) -> Result<HashMap<Id, Page<Task>>> {
    let mut rows: Vec<Task> = Vec::new();
    for scope in &list.scopes {
        let found =
            flatten(search_ids(conn, scope, list, Some((of, ids)), list.window.rows(), now).await?);
        let walk = async {
            on!(conn, |c| {
                let mut query = tasks::table
                    .select(list.expression())
                    .into_boxed::<Backend>();
                if let Some(ids) = &found {
                    query = query.filter(any_id(tasks::id, ids));
                }
                query = match of {
                    TaskParent::Project => query.filter(tasks::project_id.eq(Parent)),
                    TaskParent::Assignee => query.filter(tasks::assignee_id.eq(Parent.nullable())),
                };
                narrow!(query, scope, list.filter, now);
                order!(query, list);
                lateral(ids, "tasks", list.expression(), query)
                    .load::<Task>(c)
                    .await
            })
        };
        rows.extend(inline_if_few(list.max_rows_read(ids.len()), walk).await?);
    }
    let mut groups = group_by_parent(rows, |task| match of {
        TaskParent::Project => task.project_id,
        TaskParent::Assignee => task.assignee_id.unwrap_or(task.project_id),
    });
    Ok(ids
        .iter()
        .map(|id| {
            let rows = groups.remove(id).unwrap_or_default();
            (
                *id,
                list.window
                    .page(list.descending, rows, |task| task.position(list.order)),
            )
        })
        .collect())
}

/// Returns the number of tasks on all pages of the list, for each parent.
pub async fn counts(
    conn: &mut Conn,
    of: TaskParent,
    ids: &[Id],
    list: &TaskList,
    now: Timestamp,
) -> Result<HashMap<Id, i64>> {
    let mut totals: HashMap<Id, i64> = HashMap::new();
    for scope in &list.scopes {
        if let Some(found) = search_ids(conn, scope, list, Some((of, ids)), usize::MAX, now).await?
        {
            for (parent, ids) in found {
                if let Some(parent) = parent {
                    *totals.entry(parent).or_default() += ids.len() as i64;
                }
            }
            continue;
        }
        let counts: Vec<(Option<Id>, i64)> = match of {
            TaskParent::Project => on!(conn, |c| {
                let mut query = tasks::table
                    .filter(any_id(tasks::project_id, ids))
                    .group_by(tasks::project_id)
                    .select((tasks::project_id.nullable(), diesel::dsl::count_star()))
                    .into_boxed::<Backend>();
                narrow!(query, scope, list.filter, now);
                query.load(c).await
            })?,
            TaskParent::Assignee => on!(conn, |c| {
                let mut query = tasks::table
                    .filter(any_id(tasks::assignee_id, ids))
                    .group_by(tasks::assignee_id)
                    .select((tasks::assignee_id, diesel::dsl::count_star()))
                    .into_boxed::<Backend>();
                narrow!(query, scope, list.filter, now);
                query.load(c).await
            })?,
        };
        for (id, count) in counts {
            if let Some(id) = id {
                *totals.entry(id).or_default() += count;
            }
        }
    }
    Ok(totals)
}
