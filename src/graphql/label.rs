//! Labels.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, Result, SimpleObject};

use super::json::Encoded;
use super::level::{Level, Selected, Step};
use super::node::{self, Noun};
use super::payload::{UserError, write};
use super::project::{self, Project};
use super::text::Text;
use super::user::required;
use super::{Caller, guard, loader};
use crate::error::Error;
use crate::own;
use crate::store::label as store;
use crate::store::value::{Color, Faults, LabelName};

/// A label; see the schema's own words below.
#[derive(Clone)]
pub struct Label(pub Arc<store::Label>);

/// A project's own tag or category for its tasks. Whoever sees the project sees it; whoever may update the project
/// manages it.
#[Object]
impl Label {
    /// The object's global id; opaque, and it never changes.
    pub async fn id(&self) -> ID {
        node::encode(Noun::Label, self.0.id)
    }

    /// Its name: 1–50 characters, unique in its project without regard to case.
    async fn name(&self) -> Text<&str> {
        Text(&self.0.name)
    }

    /// Its colour as `#rrggbb`, in lower case.
    async fn color(&self) -> &str {
        &self.0.color
    }

    /// The project it belongs to.
    async fn project(&self, ctx: &Context<'_>) -> Result<Project> {
        let columns = project::columns(&Selected::of(ctx));
        let project = Caller::of(ctx).loaders()?.project(self.0.project_id, columns).await?;
        Ok(Project(project.ok_or_else(|| Error::refused(crate::error::Code::NotFound, "The project is gone."))?))
    }
}

impl Level for Label {
    const IS_NODE: bool = true;

    fn step<'a>(field: &Selected<'a>) -> Option<Step<'a, Self>> {
        Some(match field.name() {
            "id" => own!(|label| Encoded(&node::bytes(Noun::Label, label.0.id))),
            "name" => own!(|label| label.0.name),
            "color" => own!(|label| label.0.color),
            "project" => {
                let columns = project::columns(field);
                let key = move |id| (columns, id);
                field.one(|label: &Self| Some(label.0.project_id), loader::Projects, key, Project, true)?
            }
            _ => return None,
        })
    }
}

/// A label to be made.
#[derive(InputObject)]
pub struct CreateLabelInput {
    /// The project it is for.
    project_id: ID,
    /// Its name: 1–50 characters after trimming.
    name: String,
    /// `#rrggbb`; `#808080` if left out.
    color: Option<String>,
}

/// What came of `createLabel`.
#[derive(SimpleObject)]
pub struct CreateLabelPayload {
    /// The new label; null if nothing was written.
    label: Option<Label>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// What to change of a label. A field that is left out stays as it is.
#[derive(InputObject)]
pub struct UpdateLabelInput {
    /// Which label.
    id: ID,
    /// A new name: 1–50 characters after trimming; cannot be cleared.
    name: MaybeUndefined<String>,
    /// A new colour, `#rrggbb`; cannot be cleared.
    color: MaybeUndefined<String>,
}

/// What came of `updateLabel`.
#[derive(SimpleObject)]
pub struct UpdateLabelPayload {
    /// The label as it is now; null if nothing was written.
    label: Option<Label>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// Which label to delete.
#[derive(InputObject)]
pub struct DeleteLabelInput {
    /// Which label.
    id: ID,
}

/// What came of `deleteLabel`.
#[derive(SimpleObject)]
pub struct DeleteLabelPayload {
    /// The id that is gone; null if nothing was written.
    deleted_label_id: Option<ID>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// The mutations of labels.
#[derive(Default)]
pub struct LabelMutation;

#[Object]
impl LabelMutation {
    /// Adds a label to a project, which has at most 100. The project's owner and ADMIN. User errors: BLANK, TOO_LONG,
    /// INVALID, TAKEN, NOT_FOUND, QUOTA_EXCEEDED.
    #[graphql(guard = "guard::signed_in")]
    async fn create_label(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to make.")] input: CreateLabelInput,
    ) -> Result<CreateLabelPayload> {
        let (label, user_errors) = write(ctx, |app, viewer| async move {
            let project = node::named(Noun::Project, &input.project_id, "projectId")?;
            let mut faults = Faults::default();
            let name = faults.take(LabelName::parse("name", &input.name));
            let color = input.color.map_or(Ok(Color::grey()), |color| Color::parse("color", &color));
            let color = faults.take(color);
            faults.check()?;
            let (Some(name), Some(color)) = (name, color) else {
                return Err(Error::internal("a value without a fault"));
            };
            store::create(&app.db, app.clock.now(), &viewer, project, &name, &color).await
        })
        .await?;
        Ok(CreateLabelPayload { label: label.map(|row| Label(Arc::new(row))), user_errors })
    }

    /// Changes a label's name or colour. The project's owner and ADMIN. User errors: BLANK, TOO_LONG, INVALID, TAKEN,
    /// NOT_FOUND.
    #[graphql(guard = "guard::signed_in")]
    async fn update_label(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to change.")] input: UpdateLabelInput,
    ) -> Result<UpdateLabelPayload> {
        let (label, user_errors) = write(ctx, |app, viewer| async move {
            let id = node::named(Noun::Label, &input.id, "id")?;
            let mut faults = Faults::default();
            let name = required(&mut faults, "name", input.name);
            let name = name.and_then(|name| faults.take(LabelName::parse("name", &name)));
            let color = required(&mut faults, "color", input.color);
            let color = color.and_then(|color| faults.take(Color::parse("color", &color)));
            faults.check()?;
            store::update(&app.db, app.clock.now(), &viewer, id, name.as_ref(), color.as_ref()).await
        })
        .await?;
        Ok(UpdateLabelPayload { label: label.map(|row| Label(Arc::new(row))), user_errors })
    }

    /// Deletes a label and takes it off every task. The project's owner and ADMIN. User errors: NOT_FOUND.
    #[graphql(guard = "guard::signed_in")]
    async fn delete_label(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to delete.")] input: DeleteLabelInput,
    ) -> Result<DeleteLabelPayload> {
        let (deleted_label_id, user_errors) = write(ctx, |app, viewer| async move {
            store::delete(&app.db, app.clock.now(), &viewer, node::named(Noun::Label, &input.id, "id")?).await?;
            Ok(input.id)
        })
        .await?;
        Ok(DeleteLabelPayload { deleted_label_id, user_errors })
    }
}
