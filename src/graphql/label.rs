//! The `Label` type and its mutations. Rules and SQL are in `store::label`.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, Result, SimpleObject};

use super::batch::{BatchObject, FieldResolver, SelectedField};
use super::json::Base64Text;
use super::node::{self, NodeType};
use super::payload::{UserErrorPayload, run_mutation};
use super::project::{self, Project};
use super::text::CountedText;
use super::user::required_field;
use super::{RequestContext, guard, loader};
use crate::error::Error;
use crate::inline;
use crate::store::label as store;
use crate::store::value::{Color, LabelName, UserErrors};

#[derive(Clone)]
pub struct Label(pub Arc<store::Label>);

/// A tag for the tasks of one project. Everyone who may see the project may see its labels; the
/// project's owner and ADMIN manage them.
#[Object]
impl Label {
    /// Global ID of the object. Opaque; never changes.
    pub async fn id(&self) -> ID {
        node::encode(NodeType::Label, self.0.id)
    }

    /// Name; 1–50 characters, unique within the project ignoring case.
    async fn name(&self) -> CountedText<&str> {
        CountedText(&self.0.name)
    }

    /// Color as `#rrggbb`, in lower case.
    async fn color(&self) -> &str {
        &self.0.color
    }

    /// The project that the label belongs to.
    async fn project(&self, ctx: &Context<'_>) -> Result<Project> {
        let columns = project::required_columns(&SelectedField::of(ctx));
        let project = RequestContext::of(ctx)
            .loaders()?
            .project(self.0.project_id, columns)
            .await?;
        Ok(Project(project.ok_or_else(|| {
            Error::refused(
                crate::error::Code::NotFound,
                "The project no longer exists.",
            )
        })?))
    }
}

impl BatchObject for Label {
    const IS_NODE: bool = true;

    fn resolver<'a>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, Self>> {
        Some(match field.name() {
            "id" => inline!(|label| Base64Text(&node::bytes(NodeType::Label, label.0.id))),
            "name" => inline!(|label| label.0.name),
            "color" => inline!(|label| label.0.color),
            "project" => {
                let columns = project::required_columns(field);
                let key = move |id| (columns, id);
                field.object_by_id(
                    |label: &Self| Some(label.0.project_id),
                    loader::Projects,
                    key,
                    Project,
                    true,
                )?
            }
            _ => return None,
        })
    }
}

/// Input of `createLabel`.
#[derive(InputObject)]
pub struct CreateLabelInput {
    /// The project to add the label to.
    project_id: ID,
    /// Name; 1–50 characters after trimming, unique within the project ignoring case.
    name: String,
    /// Color as `#rrggbb`. The default is `#808080`.
    color: Option<String>,
}

/// Payload of `createLabel`.
#[derive(SimpleObject)]
pub struct CreateLabelPayload {
    /// The created label; null if nothing was written.
    label: Option<Label>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `updateLabel`. Omitted fields stay unchanged.
#[derive(InputObject)]
pub struct UpdateLabelInput {
    /// The label to update.
    id: ID,
    /// New name; 1–50 characters after trimming, unique within the project ignoring case. Cannot be
    /// null.
    name: MaybeUndefined<String>,
    /// New color as `#rrggbb`. Cannot be null.
    color: MaybeUndefined<String>,
}

/// Payload of `updateLabel`.
#[derive(SimpleObject)]
pub struct UpdateLabelPayload {
    /// The updated label; null if nothing was written.
    label: Option<Label>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `deleteLabel`.
#[derive(InputObject)]
pub struct DeleteLabelInput {
    /// The label to delete.
    id: ID,
}

/// Payload of `deleteLabel`.
#[derive(SimpleObject)]
pub struct DeleteLabelPayload {
    /// Global ID of the deleted label; null if nothing was deleted.
    deleted_label_id: Option<ID>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

#[derive(Default)]
pub struct LabelMutation;

#[Object]
impl LabelMutation {
    /// Creates a label in a project. A project can have at most 100 labels. Allowed for the
    /// project's owner and ADMIN. User errors: BLANK, TOO_LONG, INVALID, TAKEN, NOT_FOUND,
    /// QUOTA_EXCEEDED.
    #[graphql(guard = "guard::require_viewer")]
    async fn create_label(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The label to create.")] input: CreateLabelInput,
    ) -> Result<CreateLabelPayload> {
        let (label, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let project = node::decode_input(NodeType::Project, &input.project_id, "projectId")?;
            let mut faults = UserErrors::default();
            let name = faults.take(LabelName::parse("name", &input.name));
            let color = input
                .color
                .map_or(Ok(Color::grey()), |color| Color::parse("color", &color));
            let color = faults.take(color);
            faults.check()?;
            let (Some(name), Some(color)) = (name, color) else {
                return Err(Error::internal("no value and no user error"));
            };
            store::create(&app.db, app.clock.now(), &viewer, project, &name, &color).await
        })
        .await?;
        Ok(CreateLabelPayload {
            label: label.map(|row| Label(Arc::new(row))),
            user_errors,
        })
    }

    /// Updates the name or color of a label. Allowed for the project's owner and ADMIN. User
    /// errors: BLANK, TOO_LONG, INVALID, TAKEN, NOT_FOUND.
    #[graphql(guard = "guard::require_viewer")]
    async fn update_label(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The label and the changes to make.")] input: UpdateLabelInput,
    ) -> Result<UpdateLabelPayload> {
        let (label, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let id = node::decode_input(NodeType::Label, &input.id, "id")?;
            let mut faults = UserErrors::default();
            let name = required_field(&mut faults, "name", input.name);
            let name = name.and_then(|name| faults.take(LabelName::parse("name", &name)));
            let color = required_field(&mut faults, "color", input.color);
            let color = color.and_then(|color| faults.take(Color::parse("color", &color)));
            faults.check()?;
            store::update(
                &app.db,
                app.clock.now(),
                &viewer,
                id,
                name.as_ref(),
                color.as_ref(),
            )
            .await
        })
        .await?;
        Ok(UpdateLabelPayload {
            label: label.map(|row| Label(Arc::new(row))),
            user_errors,
        })
    }

    /// Deletes a label and removes it from all tasks. Allowed for the project's owner and ADMIN.
    /// User errors: NOT_FOUND.
    #[graphql(guard = "guard::require_viewer")]
    async fn delete_label(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The label to delete.")] input: DeleteLabelInput,
    ) -> Result<DeleteLabelPayload> {
        let (deleted_label_id, user_errors) = run_mutation(ctx, |app, viewer| async move {
            store::delete(
                &app.db,
                app.clock.now(),
                &viewer,
                node::decode_input(NodeType::Label, &input.id, "id")?,
            )
            .await?;
            Ok(input.id)
        })
        .await?;
        Ok(DeleteLabelPayload {
            deleted_label_id,
            user_errors,
        })
    }
}
