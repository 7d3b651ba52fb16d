//! Global IDs, and the queries `node` and `nodes`. An ID contains the type and the row id; to
//! clients it is opaque.

use async_graphql::{Context, ID, Interface, Object, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::batch::SelectedField;
use super::comment::{self, Comment};
use super::label::Label;
use super::notification::Notification;
use super::project::{self, Project};
use super::session::Session;
use super::task::{self, Task};
use super::user::User;
use super::{RequestContext, guard};
use crate::error::Error;
use crate::id::Id;

/// The type of a global ID. Its number is part of every ID ever issued and must not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeType {
    User = 1,
    Session = 2,
    Project = 3,
    Label = 4,
    Task = 5,
    Comment = 6,
    Event = 7,
    AuditEntry = 8,
    /// The id is that of the event; the viewer determines the inbox.
    Notification = 9,
}

impl NodeType {
    const ALL: [Self; 9] = [
        Self::User,
        Self::Session,
        Self::Project,
        Self::Label,
        Self::Task,
        Self::Comment,
        Self::Event,
        Self::AuditEntry,
        Self::Notification,
    ];

    /// The name of the type in the schema.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::Session => "Session",
            Self::Project => "Project",
            Self::Label => "Label",
            Self::Task => "Task",
            Self::Comment => "Comment",
            Self::Event => "Event",
            Self::AuditEntry => "AuditEntry",
            Self::Notification => "Notification",
        }
    }
}

/// The global ID of a row.
pub fn encode(noun: NodeType, id: Id) -> ID {
    ID(URL_SAFE_NO_PAD.encode(bytes(noun, id)))
}

/// The global ID before it is encoded as base64.
pub fn bytes(noun: NodeType, id: Id) -> [u8; 17] {
    let mut bytes = [0; 17];
    bytes[0] = noun as u8;
    bytes[1..].copy_from_slice(id.as_bytes());
    bytes
}

/// The type and row id in a global ID; `None` if the text is not a global ID.
pub fn decode(id: &ID) -> Option<(NodeType, Id)> {
    let bytes: [u8; 17] = URL_SAFE_NO_PAD
        .decode(id.as_bytes())
        .ok()?
        .try_into()
        .ok()?;
    let noun = NodeType::ALL
        .into_iter()
        .find(|noun| *noun as u8 == bytes[0])?;
    Some((noun, Id::from_bytes(bytes[1..].try_into().ok()?)))
}

/// The row id in a global ID of this type; `None` for any other.
pub fn decode_as(noun: NodeType, id: &ID) -> Option<Id> {
    decode(id)
        .filter(|(found, _)| *found == noun)
        .map(|(_, id)| id)
}

/// Decodes an ID in an input. An ID of another type is the user error NOT_FOUND, like one of a
/// missing object.
pub fn decode_input(noun: NodeType, id: &ID, field: &'static str) -> crate::error::Result<Id> {
    decode_as(noun, id).ok_or_else(|| Error::not_found(field, noun.name()))
}

/// Decodes an ID in a filter. An ID of another type is rejected, not ignored.
pub fn decode_filter(noun: NodeType, id: &ID) -> crate::error::Result<Id> {
    decode_as(noun, id).ok_or_else(|| {
        Error::bad_input(format!(
            "The filter contains an ID that is not of type {}.",
            noun.name()
        ))
    })
}

/// An object with a global ID.
#[derive(Interface)]
#[graphql(field(
    name = "id",
    ty = "ID",
    desc = "Global ID of the object. Opaque; never changes."
))]
pub enum Node {
    User(User),
    Project(Project),
    Label(Label),
    Task(Task),
    Comment(Comment),
    Session(Session),
    Notification(Notification),
}

/// An active session of the viewer.
async fn session(ctx: &Context<'_>, id: Id) -> Result<Option<Session>> {
    let caller = RequestContext::of(ctx);
    let sessions = caller.loaders()?.sessions(caller.viewer()?.id).await?;
    Ok(sessions
        .into_iter()
        .find(|session| session.id == id)
        .map(Session))
}

async fn find(ctx: &Context<'_>, id: &ID) -> Result<Option<Node>> {
    let (loaders, field) = (RequestContext::of(ctx).loaders()?, SelectedField::of(ctx));
    let Some((noun, id)) = decode(id) else {
        return Ok(None);
    };
    Ok(match noun {
        NodeType::User => loaders.user(id).await?.map(User::from).map(Node::User),
        NodeType::Project => loaders
            .project(id, project::required_columns(&field))
            .await?
            .map(Project)
            .map(Node::Project),
        NodeType::Label => loaders.label(id).await?.map(Label).map(Node::Label),
        NodeType::Task => loaders
            .task(id, task::required_columns(&field))
            .await?
            .map(Task)
            .map(Node::Task),
        NodeType::Comment => loaders
            .comment(id, comment::required_columns(&field))
            .await?
            .map(Comment)
            .map(Node::Comment),
        NodeType::Session => session(ctx, id).await?.map(Node::Session),
        NodeType::Notification => loaders
            .notification(id)
            .await?
            .map(Notification)
            .map(Node::Notification),
        NodeType::Event | NodeType::AuditEntry => None,
    })
}

#[derive(Default)]
pub struct NodeQuery;

#[Object]
impl NodeQuery {
    /// Looks up a user, project, label, task, comment, session or notification by global ID. Null
    /// if it does not exist or the viewer may not see it.
    #[graphql(guard = "guard::require_viewer")]
    async fn node(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Global ID of the object.")] id: ID,
    ) -> Result<Option<Node>> {
        find(ctx, &id).await
    }

    /// Looks up objects by global ID, as `node` does, and returns them in the order of `ids`. Items
    /// that do not exist or that the viewer may not see are null. More than 100 IDs fail with
    /// BAD_USER_INPUT.
    #[graphql(guard = "guard::require_viewer")]
    async fn nodes(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Global IDs of the objects; at most 100.")] ids: Vec<ID>,
    ) -> Result<Vec<Option<Node>>> {
        if ids.len() > super::connection::MAX_PAGE {
            return Err(Error::bad_input("`nodes` accepts at most 100 IDs.").into());
        }
        futures_util::future::try_join_all(ids.iter().map(|id| find(ctx, id))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_what_it_is_of() {
        let row = Id::new();
        for noun in NodeType::ALL {
            let id = encode(noun, row);
            assert_eq!(decode(&id), Some((noun, row)));
            assert_eq!(
                decode_as(NodeType::Task, &id).is_some(),
                noun == NodeType::Task
            );
        }
        for text in ["", "x", "AAAA", "fwAAAAAAAAAAAAAAAAAAAAA", "ÄÖÜ"] {
            assert_eq!(decode(&ID(text.to_owned())), None, "{text}");
        }
    }
}
