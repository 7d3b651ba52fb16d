//! Connections that follow the Relay Cursor Connections specification, over keyset pages
//! (`db::page`).

use std::borrow::Cow;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use async_graphql::{Context, Object, OutputType, Result, SimpleObject, TypeName};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::{FutureExt, TryFutureExt};

use super::RequestContext;
use super::batch::{BatchField, BatchObject, FieldResolver, JsonFragments, SelectedField};
use super::json::Base64Text;
use crate::db::page::{Page, PageWindow, RowPosition, SortKey};
use crate::error::Error;
use crate::id::Id;
use crate::inline;
use crate::store::{audit, notification, project, task_list, user};
use crate::time::Timestamp;

/// Largest value of `first` and `last`.
pub const MAX_PAGE: usize = 100;
/// Page size without `first` and `last`.
pub const DEFAULT_PAGE: usize = 20;

/// Paging information of a connection.
#[derive(Clone, Debug, SimpleObject)]
pub struct PageInfo {
    /// Whether more items follow this page. With `last`, whether `before` was given.
    pub has_next_page: bool,
    /// Whether more items precede this page. With `first`, whether `after` was given.
    pub has_previous_page: bool,
    /// Cursor of the first edge; null on an empty page.
    pub start_cursor: Option<String>,
    /// Cursor of the last edge; null on an empty page.
    pub end_cursor: Option<String>,
}

/// The paging arguments of a field, not validated yet.
#[derive(Clone, Debug)]
pub struct PageArgs {
    first: Option<i32>,
    pub after: Option<String>,
    last: Option<i32>,
    pub before: Option<String>,
    /// Whether `pageInfo` may be selected, so that one row more must be read.
    detect_more: bool,
}

impl PageArgs {
    pub fn new(
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> Self {
        Self {
            first,
            after,
            last,
            before,
            detect_more: true,
        }
    }

    /// The paging arguments of a selected field; `None` if one is invalid.
    pub fn from_field(field: &SelectedField<'_>) -> Option<Self> {
        let [first, last] = ["first", "last"].map(|name| field.argument(name));
        let [after, before] = ["after", "before"].map(|name| field.argument(name));
        Some(Self::new(first?, after?, last?, before?).for_selection(field))
    }

    /// Saves the row that is read ahead unless the field may select `pageInfo`.
    pub fn for_selection(self, field: &SelectedField<'_>) -> Self {
        Self {
            detect_more: field.may_select("pageInfo"),
            ..self
        }
    }

    /// The page size, and whether it counts from the end.
    pub fn size(&self) -> crate::error::Result<(usize, bool)> {
        let (name, size, backward) = match (self.first, self.last) {
            (Some(_), Some(_)) => {
                return Err(Error::bad_input("Provide `first` or `last`, not both."));
            }
            (Some(first), None) => ("first", first, false),
            (None, Some(last)) => ("last", last, true),
            (None, None) => return Ok((DEFAULT_PAGE, false)),
        };
        match usize::try_from(size) {
            Ok(size) if (1..=MAX_PAGE).contains(&size) => Ok((size, backward)),
            _ => Err(Error::bad_input(format!(
                "`{name}` must be between 1 and {MAX_PAGE}."
            ))),
        }
    }

    /// The window on a list whose cursors have this tag.
    pub fn window(&self, tag: CursorTag) -> crate::error::Result<PageWindow> {
        let (limit, backward) = self.size()?;
        let read = |cursor: &Option<String>| {
            cursor
                .as_deref()
                .map(|cursor| tag.decode(cursor))
                .transpose()
        };
        Ok(PageWindow {
            after: read(&self.after)?,
            before: read(&self.before)?,
            limit,
            backward,
            detect_more: self.detect_more,
        })
    }
}

/// Marks the cursors of one list in one order, so that a cursor of another is rejected and not
/// misread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CursorTag(u32);

impl CursorTag {
    /// Hashes what identifies a list: its field, its parent if it has one, and its order.
    pub fn new(list: &str, parent: Option<Id>, order: &impl Hash, descending: bool) -> Self {
        // Fixed seed: a cursor is valid on every instance and after every restart.
        let hash = Fnv.hash_one((list, parent, order, descending));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "32 bits suffice to distinguish lists"
        )]
        Self((hash ^ (hash >> 32)) as u32)
    }

    /// The cursor of a position in the list.
    pub fn encode(self, position: &RowPosition) -> String {
        URL_SAFE_NO_PAD.encode(self.bytes(position))
    }

    /// The cursor before it is encoded as base64.
    fn bytes(self, position: &RowPosition) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        bytes.extend_from_slice(&self.0.to_be_bytes());
        bytes.extend_from_slice(position.id.as_bytes());
        match &position.key {
            SortKey::Time(moment) => {
                bytes.push(b't');
                bytes.extend_from_slice(&moment.micros().to_be_bytes());
            }
            SortKey::Rank(rank) => {
                bytes.push(b'r');
                bytes.extend_from_slice(&rank.to_be_bytes());
            }
            SortKey::Text(text) => {
                bytes.push(b's');
                bytes.extend_from_slice(text.as_bytes());
            }
        }
        bytes
    }

    fn decode(self, cursor: &str) -> crate::error::Result<RowPosition> {
        self.read(cursor).ok_or_else(|| {
            Error::bad_input("The cursor does not belong to this list in this order.")
        })
    }

    fn read(self, cursor: &str) -> Option<RowPosition> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (tag, rest) = bytes.split_at_checked(4)?;
        let (id, rest) = rest.split_at_checked(16)?;
        let (kind, value) = rest.split_at_checked(1)?;
        let key = match kind {
            b"t" => SortKey::Time(Timestamp::from_untrusted_micros(i64::from_be_bytes(
                value.try_into().ok()?,
            ))?),
            b"r" => SortKey::Rank(i16::from_be_bytes(value.try_into().ok()?)),
            b"s" => SortKey::Text(
                String::from_utf8(value.to_vec())
                    .ok()
                    .filter(|text| !text.contains('\0'))?,
            ),
            _ => return None,
        };
        (tag == self.0.to_be_bytes()).then_some(RowPosition {
            key,
            id: Id::from_bytes(id.try_into().ok()?),
        })
    }
}

/// FNV-1a. Unlike the standard library's hash it is stable across releases.
struct Fnv;
struct FnvState(u64);

impl BuildHasher for Fnv {
    type Hasher = FnvState;
    fn build_hasher(&self) -> FnvState {
        FnvState(0xcbf2_9ce4_8422_2325)
    }
}

impl std::hash::Hasher for FnvState {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// How to count the whole list, if `totalCount` is selected.
#[derive(Clone)]
pub enum TotalCount {
    Users(Arc<user::UserList>),
    Projects(Arc<project::ProjectList>),
    /// Projects of an owner.
    ProjectsOf(Id, Arc<project::ProjectList>),
    Tasks(Arc<task_list::TaskList>),
    /// Tasks of a project or an assignee.
    TasksOf(task_list::TaskParent, Id, Arc<task_list::TaskList>),
    /// Comments on a task.
    Comments(Id),
    /// The audit log of one account or of all.
    Audit(Option<Id>),
    /// Notifications of a user; only unread ones if true.
    Notifications(Id, bool),
}

impl TotalCount {
    async fn count(&self, caller: &RequestContext) -> crate::error::Result<i64> {
        let (app, viewer, loaders) = (caller.app(), caller.viewer()?, caller.loaders()?);
        match self {
            Self::Users(list) => user::count(&mut app.db.conn().await?, &list.filter).await,
            Self::Projects(list) => {
                project::count(&mut app.db.conn().await?, viewer, &list.filter).await
            }
            Self::ProjectsOf(owner, list) => loaders.project_count(*owner, Arc::clone(list)).await,
            Self::Tasks(list) => {
                task_list::count(&mut app.db.conn().await?, list, app.clock.now()).await
            }
            Self::TasksOf(of, id, list) => loaders.task_count(*of, *id, Arc::clone(list)).await,
            Self::Comments(task) => loaders.comment_count(*task).await,
            Self::Notifications(user, unread) => {
                notification::count(&mut app.db.conn().await?, *user, *unread).await
            }
            Self::Audit(user) => audit::count(&mut app.db.conn().await?, *user).await,
        }
    }
}

/// The widest set of columns that a selection on the nodes of a connection needs, at least `least`.
/// `types` are the names of the connection type and the edge type.
pub fn max_required<'a, C: Copy + Ord>(
    connection: &SelectedField<'a>,
    types: [&str; 2],
    least: C,
    node: impl Fn(SelectedField<'a>) -> C,
) -> C {
    connection.max_over_fields(&types[..1], least, |field| match field.name() {
        "nodes" => node(field),
        "edges" => field.max_over_fields(&types[1..], least, |field| {
            if field.name() == "node" {
                node(field)
            } else {
                least
            }
        }),
        _ => least,
    })
}

#[derive(Clone)]
pub struct Edge<T> {
    tag: CursorTag,
    position: RowPosition,
    node: T,
}

#[derive(Clone)]
pub struct Connection<T> {
    tag: CursorTag,
    total: TotalCount,
    nodes: Vec<(RowPosition, T)>,
    has_next: bool,
    has_previous: bool,
}

impl<T> Connection<T> {
    /// Wraps the rows of a page.
    pub fn new<R>(
        tag: CursorTag,
        total: TotalCount,
        page: Page<R>,
        position: impl Fn(&R) -> RowPosition,
        wrap: impl Fn(R) -> T,
    ) -> Self {
        let nodes = page
            .rows
            .into_iter()
            .map(|row| (position(&row), wrap(row)))
            .collect();
        Self {
            tag,
            total,
            nodes,
            has_next: page.has_next,
            has_previous: page.has_previous,
        }
    }
}

impl<T: Clone> Connection<T> {
    fn all_edges(&self) -> Vec<Edge<T>> {
        let edge = |(position, node): &(RowPosition, T)| Edge {
            tag: self.tag,
            position: position.clone(),
            node: node.clone(),
        };
        self.nodes.iter().map(edge).collect()
    }

    fn all_nodes(&self) -> Vec<T> {
        self.nodes.iter().map(|(_, node)| node.clone()).collect()
    }

    fn make_page_info(&self) -> PageInfo {
        PageInfo {
            has_next_page: self.has_next,
            has_previous_page: self.has_previous,
            start_cursor: self
                .nodes
                .first()
                .map(|(position, _)| self.tag.encode(position)),
            end_cursor: self
                .nodes
                .last()
                .map(|(position, _)| self.tag.encode(position)),
        }
    }
}

impl<T: OutputType> TypeName for Connection<T> {
    fn type_name() -> Cow<'static, str> {
        format!("{}Connection", T::type_name()).into()
    }
}

impl<T: OutputType> TypeName for Edge<T> {
    fn type_name() -> Cow<'static, str> {
        format!("{}Edge", T::type_name()).into()
    }
}

/// A page of a list, following the Relay Cursor Connections specification.
#[Object(name_type)]
impl<T: OutputType + Clone> Connection<T> {
    /// Items on this page, each with its cursor.
    pub async fn edges(&self) -> Vec<Edge<T>> {
        self.all_edges()
    }

    /// Items on this page.
    pub async fn nodes(&self) -> Vec<T> {
        self.all_nodes()
    }

    /// Paging information.
    pub async fn page_info(&self) -> PageInfo {
        self.make_page_info()
    }

    /// Number of items in the whole list. It requires a separate count; select it only where it is
    /// needed.
    pub async fn total_count(&self, ctx: &Context<'_>) -> Result<i64> {
        Ok(self.total.count(RequestContext::of(ctx)).await?)
    }
}

/// An item in a page of a list, with its cursor.
#[Object(name_type)]
impl<T: OutputType + Clone> Edge<T> {
    /// Opaque cursor of the item in the list. Pass it as `after` or `before` to continue from here.
    /// Valid only for the same list in the same order.
    async fn cursor(&self) -> String {
        self.tag.encode(&self.position)
    }

    /// The item.
    async fn node(&self) -> T {
        self.node.clone()
    }
}

impl<T: BatchObject> BatchObject for Connection<T> {
    const IS_NODE: bool = false;

    fn resolver<'a>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, Self>> {
        match field.name() {
            "edges" => field.lists(Self::all_edges),
            "nodes" => field.lists(Self::all_nodes),
            "pageInfo" => field.object(Self::make_page_info),
            "totalCount" => Some(FieldResolver::Batch(Box::new(TotalCountField))),
            _ => None,
        }
    }
}

struct TotalCountField;

impl<T: BatchObject> BatchField<Connection<T>> for TotalCountField {
    fn resolve<'r>(
        &'r self,
        pages: &'r [Connection<T>],
        caller: &'r RequestContext,
    ) -> BoxFuture<'r, Result<JsonFragments, Error>> {
        let counts = try_join_all(pages.iter().map(|page| page.total.count(caller)));
        counts.map_ok(JsonFragments::from_values).boxed()
    }
}

impl<T: BatchObject> BatchObject for Edge<T> {
    const IS_NODE: bool = false;

    fn resolver<'a>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, Self>> {
        match field.name() {
            "cursor" => Some(inline!(|edge| Base64Text(&edge.tag.bytes(&edge.position)))),
            "node" => field.object(|edge: &Self| edge.node.clone()),
            _ => None,
        }
    }
}

impl BatchObject for PageInfo {
    const IS_NODE: bool = false;

    fn resolver<'a>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, Self>> {
        Some(match field.name() {
            "hasNextPage" => inline!(|page| page.has_next_page),
            "hasPreviousPage" => inline!(|page| page.has_previous_page),
            "startCursor" => inline!(|page| page.start_cursor),
            "endCursor" => inline!(|page| page.end_cursor),
            _ => return None,
        })
    }
}
