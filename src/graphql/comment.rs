//! The `Comment` type and its mutations. Rules and SQL are in `store::comment`.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, Result, SimpleObject};

use super::batch::{BatchObject, FieldResolver, SelectedField};
use super::connection::max_required;
use super::json::Base64Text;
use super::node::{self, NodeType};
use super::payload::{UserErrorPayload, run_mutation};
use super::task::{self, Task};
use super::text::CountedText;
use super::user::User;
use super::{RequestContext, guard, loader};
use crate::access::Action;
use crate::error::{Code, Error};
use crate::inline;
use crate::store::comment::{self as store, CommentColumns};
use crate::store::value::CommentBody;
use crate::time::Timestamp;

#[derive(Clone)]
pub struct Comment(pub Arc<store::Comment>);

/// A comment on a task. Everyone who may see the task may see its comments. The author may edit a
/// comment; the author and ADMIN may delete it.
#[Object]
impl Comment {
    /// Global ID of the object. Opaque; never changes.
    pub async fn id(&self) -> ID {
        node::encode(NodeType::Comment, self.0.id)
    }

    /// Text; 1–5,000 characters.
    async fn body(&self) -> CountedText<&str> {
        CountedText(&self.0.body)
    }

    /// The user who wrote the comment. Deleted accounts appear as a user named `Deleted user`.
    async fn author(&self, ctx: &Context<'_>) -> Result<User> {
        let author = RequestContext::of(ctx)
            .loaders()?
            .user(self.0.author_id)
            .await?;
        Ok(author
            .ok_or_else(|| Error::internal("comment without an author"))?
            .into())
    }

    /// The task that the comment belongs to.
    async fn task(&self, ctx: &Context<'_>) -> Result<Task> {
        let columns = task::required_columns(&SelectedField::of(ctx));
        let task = RequestContext::of(ctx)
            .loaders()?
            .task(self.0.task_id, columns)
            .await?;
        Ok(Task(task.ok_or_else(|| {
            Error::refused(Code::NotFound, "The task no longer exists.")
        })?))
    }

    /// When the comment was added.
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    /// When the text was last edited.
    async fn updated_at(&self) -> Timestamp {
        self.0.updated_at
    }

    /// Whether the text was edited after the comment was added.
    async fn is_edited(&self) -> bool {
        self.0.is_edited
    }

    /// Whether the viewer may edit the text.
    async fn viewer_can_update(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(RequestContext::of(ctx).may(Action::UpdateComment, &*self.0)?)
    }

    /// Whether the viewer may delete the comment.
    async fn viewer_can_delete(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(RequestContext::of(ctx).may(Action::DeleteComment, &*self.0)?)
    }
}

impl BatchObject for Comment {
    const IS_NODE: bool = true;

    fn resolver<'a>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, Self>> {
        Some(match field.name() {
            "id" => inline!(|comment| Base64Text(&node::bytes(NodeType::Comment, comment.0.id))),
            "body" => inline!(|comment| comment.0.body),
            "author" => field.object_by_id(
                |comment: &Self| Some(comment.0.author_id),
                loader::Users,
                |id| id,
                User::from,
                true,
            )?,
            "task" => {
                let columns = task::required_columns(field);
                let key = move |id| (columns, id);
                field.object_by_id(
                    |comment: &Self| Some(comment.0.task_id),
                    loader::Tasks,
                    key,
                    Task,
                    true,
                )?
            }
            "createdAt" => inline!(|comment| comment.0.created_at),
            "updatedAt" => inline!(|comment| comment.0.updated_at),
            "isEdited" => inline!(|comment| comment.0.is_edited),
            "viewerCanUpdate" => {
                inline!(|comment, caller| caller.may(Action::UpdateComment, &*comment.0)?)
            }
            "viewerCanDelete" => {
                inline!(|comment, caller| caller.may(Action::DeleteComment, &*comment.0)?)
            }
            _ => return None,
        })
    }
}

/// The narrowest set of columns that serves a selection on a comment.
pub fn required_columns(comment: &SelectedField<'_>) -> CommentColumns {
    comment.max_over_fields(
        &["Comment", "Node"],
        CommentColumns::Summary,
        |field| match field.name() {
            "body" => CommentColumns::Full,
            _ => CommentColumns::Summary,
        },
    )
}

/// The narrowest set of columns that serves a selection on a connection of comments.
pub fn required_node_columns(connection: &SelectedField<'_>) -> CommentColumns {
    max_required(
        connection,
        ["CommentConnection", "CommentEdge"],
        CommentColumns::Summary,
        |comment| required_columns(&comment),
    )
}

/// Input of `addComment`.
#[derive(InputObject)]
pub struct AddCommentInput {
    /// The task to comment on.
    task_id: ID,
    /// Text; 1–5,000 characters after trimming. `@username` notifies that user if they may see the
    /// task; at most 20 users per comment.
    body: String,
}

/// Payload of `addComment`.
#[derive(SimpleObject)]
pub struct AddCommentPayload {
    /// The added comment; null if nothing was written.
    comment: Option<Comment>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `updateComment`.
#[derive(InputObject)]
pub struct UpdateCommentInput {
    /// The comment to edit.
    id: ID,
    /// New text; 1–5,000 characters after trimming. Only users that the previous text did not
    /// mention are notified.
    body: String,
}

/// Payload of `updateComment`.
#[derive(SimpleObject)]
pub struct UpdateCommentPayload {
    /// The updated comment; null if nothing was written.
    comment: Option<Comment>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `deleteComment`.
#[derive(InputObject)]
pub struct DeleteCommentInput {
    /// The comment to delete.
    id: ID,
}

/// Payload of `deleteComment`.
#[derive(SimpleObject)]
pub struct DeleteCommentPayload {
    /// Global ID of the deleted comment; null if nothing was deleted.
    deleted_comment_id: Option<ID>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

#[derive(Default)]
pub struct CommentMutation;

#[Object]
impl CommentMutation {
    /// Adds a comment to a task. Allowed for everyone who may see the task. User errors: BLANK,
    /// TOO_LONG, INVALID, NOT_FOUND, QUOTA_EXCEEDED.
    #[graphql(guard = "guard::require_viewer")]
    async fn add_comment(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The comment to add.")] input: AddCommentInput,
    ) -> Result<AddCommentPayload> {
        let (comment, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let task = node::decode_input(NodeType::Task, &input.task_id, "taskId")?;
            let body = CommentBody::parse("body", &input.body)
                .map_err(|fault| Error::UserErrors(vec![fault]))?;
            store::create(&app.db, app.clock.now(), &viewer, task, &body).await
        })
        .await?;
        Ok(AddCommentPayload {
            comment: comment.map(|row| Comment(Arc::new(row))),
            user_errors,
        })
    }

    /// Edits the text of a comment. Allowed for its author. User errors: BLANK, TOO_LONG, INVALID,
    /// NOT_FOUND, QUOTA_EXCEEDED.
    #[graphql(guard = "guard::require_viewer")]
    async fn update_comment(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The comment and its new text.")] input: UpdateCommentInput,
    ) -> Result<UpdateCommentPayload> {
        let (comment, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let id = node::decode_input(NodeType::Comment, &input.id, "id")?;
            let body = CommentBody::parse("body", &input.body)
                .map_err(|fault| Error::UserErrors(vec![fault]))?;
            store::update(&app.db, app.clock.now(), &viewer, id, &body).await
        })
        .await?;
        Ok(UpdateCommentPayload {
            comment: comment.map(|row| Comment(Arc::new(row))),
            user_errors,
        })
    }

    /// Deletes a comment. Allowed for its author and ADMIN. User errors: NOT_FOUND.
    #[graphql(guard = "guard::require_viewer")]
    async fn delete_comment(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The comment to delete.")] input: DeleteCommentInput,
    ) -> Result<DeleteCommentPayload> {
        let (deleted_comment_id, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let id = node::decode_input(NodeType::Comment, &input.id, "id")?;
            store::delete(&app.db, app.clock.now(), &viewer, id).await?;
            Ok(input.id)
        })
        .await?;
        Ok(DeleteCommentPayload {
            deleted_comment_id,
            user_errors,
        })
    }
}
