//! Comments.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, Result, SimpleObject};

use super::connection::needs;
use super::json::Encoded;
use super::level::{Level, Selected, Step};
use super::node::{self, Noun};
use super::payload::{UserError, write};
use super::task::{self, Task};
use super::text::Text;
use super::user::User;
use super::{Caller, guard, loader};
use crate::access::Action;
use crate::error::{Code, Error};
use crate::own;
use crate::store::comment::{self as store, CommentColumns};
use crate::store::value::Body;
use crate::time::Timestamp;

/// A comment, as the schema shows it.
#[derive(Clone)]
pub struct Comment(pub Arc<store::Comment>);

/// What a person wrote about a task. Whoever sees the task sees it; its author changes it, its author and ADMIN delete
/// it.
#[Object]
impl Comment {
    /// The object's global id; opaque, and it never changes.
    pub async fn id(&self) -> ID {
        node::encode(Noun::Comment, self.0.id)
    }

    /// The text: 1–5,000 characters.
    async fn body(&self) -> Text<&str> {
        Text(&self.0.body)
    }

    /// Who wrote it.
    async fn author(&self, ctx: &Context<'_>) -> Result<User> {
        let author = Caller::of(ctx).loaders()?.user(self.0.author_id).await?;
        Ok(author.ok_or_else(|| Error::internal("a comment without its author"))?.into())
    }

    /// The task it is about.
    async fn task(&self, ctx: &Context<'_>) -> Result<Task> {
        let columns = task::columns(&Selected::of(ctx));
        let task = Caller::of(ctx).loaders()?.task(self.0.task_id, columns).await?;
        Ok(Task(task.ok_or_else(|| Error::refused(Code::NotFound, "The task is gone."))?))
    }

    /// When it was added.
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    /// When the text last changed.
    async fn updated_at(&self) -> Timestamp {
        self.0.updated_at
    }

    /// Whether the text was changed after it was added.
    async fn is_edited(&self) -> bool {
        self.0.is_edited
    }

    /// Whether the viewer may change the text.
    async fn viewer_can_update(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(Caller::of(ctx).may(Action::UpdateComment, &*self.0)?)
    }

    /// Whether the viewer may delete it.
    async fn viewer_can_delete(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(Caller::of(ctx).may(Action::DeleteComment, &*self.0)?)
    }
}

impl Level for Comment {
    const IS_NODE: bool = true;

    fn step<'a>(field: &Selected<'a>) -> Option<Step<'a, Self>> {
        Some(match field.name() {
            "id" => own!(|comment| Encoded(&node::bytes(Noun::Comment, comment.0.id))),
            "body" => own!(|comment| comment.0.body),
            "author" => {
                field.one(|comment: &Self| Some(comment.0.author_id), loader::Users, |id| id, User::from, true)?
            }
            "task" => {
                let columns = task::columns(field);
                let key = move |id| (columns, id);
                field.one(|comment: &Self| Some(comment.0.task_id), loader::Tasks, key, Task, true)?
            }
            "createdAt" => own!(|comment| comment.0.created_at),
            "updatedAt" => own!(|comment| comment.0.updated_at),
            "isEdited" => own!(|comment| comment.0.is_edited),
            "viewerCanUpdate" => own!(|comment, caller| caller.may(Action::UpdateComment, &*comment.0)?),
            "viewerCanDelete" => own!(|comment, caller| caller.may(Action::DeleteComment, &*comment.0)?),
            _ => return None,
        })
    }
}

/// What of a comment is read for what is selected of it.
pub fn columns(comment: &Selected<'_>) -> CommentColumns {
    comment.greatest(&["Comment", "Node"], CommentColumns::Summary, |field| match field.name() {
        "body" => CommentColumns::Full,
        _ => CommentColumns::Summary,
    })
}

/// What of comments is read for what is selected of a connection of them.
pub fn columns_of_nodes(connection: &Selected<'_>) -> CommentColumns {
    needs(connection, ["CommentConnection", "CommentEdge"], CommentColumns::Summary, |comment| columns(&comment))
}

/// A comment to be added.
#[derive(InputObject)]
pub struct AddCommentInput {
    /// The task it is about.
    task_id: ID,
    /// The text: 1–5,000 characters after trimming.
    body: String,
}

/// What came of `addComment`.
#[derive(SimpleObject)]
pub struct AddCommentPayload {
    /// The new comment; null if nothing was written.
    comment: Option<Comment>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// What to change of a comment.
#[derive(InputObject)]
pub struct UpdateCommentInput {
    /// Which comment.
    id: ID,
    /// The new text: 1–5,000 characters after trimming.
    body: String,
}

/// What came of `updateComment`.
#[derive(SimpleObject)]
pub struct UpdateCommentPayload {
    /// The comment as it is now; null if nothing was written.
    comment: Option<Comment>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// Which comment to delete.
#[derive(InputObject)]
pub struct DeleteCommentInput {
    /// Which comment.
    id: ID,
}

/// What came of `deleteComment`.
#[derive(SimpleObject)]
pub struct DeleteCommentPayload {
    /// The id that is gone; null if nothing was written.
    deleted_comment_id: Option<ID>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// The mutations of comments.
#[derive(Default)]
pub struct CommentMutation;

#[Object]
impl CommentMutation {
    /// Adds a comment to a task. Whoever sees the task. User errors: BLANK, TOO_LONG, INVALID, NOT_FOUND,
    /// QUOTA_EXCEEDED.
    #[graphql(guard = "guard::signed_in")]
    async fn add_comment(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to add.")] input: AddCommentInput,
    ) -> Result<AddCommentPayload> {
        let (comment, user_errors) = write(ctx, |app, viewer| async move {
            let task = node::named(Noun::Task, &input.task_id, "taskId")?;
            let body = Body::parse("body", &input.body).map_err(|fault| Error::Faults(vec![fault]))?;
            store::create(&app.db, app.clock.now(), &viewer, task, &body).await
        })
        .await?;
        Ok(AddCommentPayload { comment: comment.map(|row| Comment(Arc::new(row))), user_errors })
    }

    /// Changes a comment's text. Its author. User errors: BLANK, TOO_LONG, INVALID, NOT_FOUND, QUOTA_EXCEEDED.
    #[graphql(guard = "guard::signed_in")]
    async fn update_comment(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to change.")] input: UpdateCommentInput,
    ) -> Result<UpdateCommentPayload> {
        let (comment, user_errors) = write(ctx, |app, viewer| async move {
            let id = node::named(Noun::Comment, &input.id, "id")?;
            let body = Body::parse("body", &input.body).map_err(|fault| Error::Faults(vec![fault]))?;
            store::update(&app.db, app.clock.now(), &viewer, id, &body).await
        })
        .await?;
        Ok(UpdateCommentPayload { comment: comment.map(|row| Comment(Arc::new(row))), user_errors })
    }

    /// Deletes a comment. Its author and ADMIN. User errors: NOT_FOUND.
    #[graphql(guard = "guard::signed_in")]
    async fn delete_comment(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to delete.")] input: DeleteCommentInput,
    ) -> Result<DeleteCommentPayload> {
        let (deleted_comment_id, user_errors) = write(ctx, |app, viewer| async move {
            let id = node::named(Noun::Comment, &input.id, "id")?;
            store::delete(&app.db, app.clock.now(), &viewer, id).await?;
            Ok(input.id)
        })
        .await?;
        Ok(DeleteCommentPayload { deleted_comment_id, user_errors })
    }
}
