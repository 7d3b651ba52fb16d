//! Global ids: opaque, and they say which type they are of. `node` and `nodes` find any object by them.

use async_graphql::{Context, ID, Interface, Object, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::comment::{self, Comment};
use super::label::Label;
use super::level::Selected;
use super::notification::Notification;
use super::project::{self, Project};
use super::session::Session;
use super::task::{self, Task};
use super::user::User;
use super::{Caller, guard};
use crate::error::Error;
use crate::id::Id;

/// What an id is of; the number is part of every id ever given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noun {
    /// A user.
    User = 1,
    /// A session.
    Session = 2,
    /// A project.
    Project = 3,
    /// A label.
    Label = 4,
    /// A task.
    Task = 5,
    /// A comment.
    Comment = 6,
    /// An event.
    Event = 7,
    /// A line of the audit log.
    AuditEntry = 8,
    /// A notification; the row is the event's, the inbox the viewer's.
    Notification = 9,
}

impl Noun {
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

    /// The type's name in the schema.
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

/// The global id of a row.
pub fn encode(noun: Noun, id: Id) -> ID {
    ID(URL_SAFE_NO_PAD.encode(bytes(noun, id)))
}

/// The bytes of which that is the text.
pub fn bytes(noun: Noun, id: Id) -> [u8; 17] {
    let mut bytes = [0; 17];
    bytes[0] = noun as u8;
    bytes[1..].copy_from_slice(id.as_bytes());
    bytes
}

/// What a global id is of and its row; nothing for text that this server never gave out.
pub fn decode(id: &ID) -> Option<(Noun, Id)> {
    let bytes: [u8; 17] = URL_SAFE_NO_PAD.decode(id.as_bytes()).ok()?.try_into().ok()?;
    let noun = Noun::ALL.into_iter().find(|noun| *noun as u8 == bytes[0])?;
    Some((noun, Id::from_bytes(bytes[1..].try_into().ok()?)))
}

/// The row of an id that must be of this type; nothing for any other.
pub fn decode_as(noun: Noun, id: &ID) -> Option<Id> {
    decode(id).filter(|(found, _)| *found == noun).map(|(_, id)| id)
}

/// An id in an input: one that names nothing is a fault of its field.
pub fn named(noun: Noun, id: &ID, field: &'static str) -> crate::error::Result<Id> {
    decode_as(noun, id).ok_or_else(|| Error::not_found(field, noun.name()))
}

/// An id in a filter: one of another type is refused, never ignored.
pub fn filtered(noun: Noun, id: &ID) -> crate::error::Result<Id> {
    decode_as(noun, id)
        .ok_or_else(|| Error::bad_input(format!("A filter holds an id that is not of a {}.", noun.name())))
}

/// An object with a global id.
#[derive(Interface)]
#[graphql(field(name = "id", ty = "ID", desc = "The object's global id; opaque, and it never changes."))]
pub enum Node {
    /// A user.
    User(User),
    /// A project.
    Project(Project),
    /// A label.
    Label(Label),
    /// A task.
    Task(Task),
    /// A comment.
    Comment(Comment),
    /// A session.
    Session(Session),
    /// A notification.
    Notification(Notification),
}

/// A session of the viewer that has not ended.
async fn session(ctx: &Context<'_>, id: Id) -> Result<Option<Session>> {
    let caller = Caller::of(ctx);
    let sessions = caller.loaders()?.sessions(caller.viewer()?.id).await?;
    Ok(sessions.into_iter().find(|session| session.id == id).map(Session))
}

async fn find(ctx: &Context<'_>, id: &ID) -> Result<Option<Node>> {
    let (loaders, field) = (Caller::of(ctx).loaders()?, Selected::of(ctx));
    let Some((noun, id)) = decode(id) else {
        return Ok(None);
    };
    Ok(match noun {
        Noun::User => loaders.user(id).await?.map(User::from).map(Node::User),
        Noun::Project => loaders.project(id, project::columns(&field)).await?.map(Project).map(Node::Project),
        Noun::Label => loaders.label(id).await?.map(Label).map(Node::Label),
        Noun::Task => loaders.task(id, task::columns(&field)).await?.map(Task).map(Node::Task),
        Noun::Comment => loaders.comment(id, comment::columns(&field)).await?.map(Comment).map(Node::Comment),
        Noun::Session => session(ctx, id).await?.map(Node::Session),
        Noun::Notification => loaders.notification(id).await?.map(Notification).map(Node::Notification),
        Noun::Event | Noun::AuditEntry => None,
    })
}

/// The queries by global id.
#[derive(Default)]
pub struct NodeQuery;

#[Object]
impl NodeQuery {
    /// The object with this global id; null if there is none for the viewer.
    #[graphql(guard = "guard::signed_in")]
    async fn node(&self, ctx: &Context<'_>, #[graphql(desc = "Its global id.")] id: ID) -> Result<Option<Node>> {
        find(ctx, &id).await
    }

    /// The objects with these global ids, in the same order; null in the place of each that is not there for the
    /// viewer. At most 100 ids.
    #[graphql(guard = "guard::signed_in")]
    async fn nodes(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Their global ids, at most 100.")] ids: Vec<ID>,
    ) -> Result<Vec<Option<Node>>> {
        if ids.len() > super::connection::MAX_PAGE {
            return Err(Error::bad_input("`nodes` takes at most 100 ids.").into());
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
        for noun in Noun::ALL {
            let id = encode(noun, row);
            assert_eq!(decode(&id), Some((noun, row)));
            assert_eq!(decode_as(Noun::Task, &id).is_some(), noun == Noun::Task);
        }
        for text in ["", "x", "AAAA", "fwAAAAAAAAAAAAAAAAAAAAA", "ÄÖÜ"] {
            assert_eq!(decode(&ID(text.to_owned())), None, "{text}");
        }
    }
}
