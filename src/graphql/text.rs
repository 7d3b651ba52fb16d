//! Text written by users. It can be long and selected many times, so its bytes are counted towards
//! the size of the response before it is copied.

use std::borrow::Cow;

use async_graphql::parser::types::Field;
use async_graphql::registry::Registry;
use async_graphql::{ContextSelectionSet, OutputType, Positioned, ServerResult, Value};

use super::RequestContext;

/// A `String` in the schema whose bytes are counted.
pub struct CountedText<T>(pub T);

impl<T: AsRef<str> + Send + Sync> OutputType for CountedText<T> {
    fn type_name() -> Cow<'static, str> {
        <String as OutputType>::type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        <String as OutputType>::create_type_info(registry)
    }

    async fn resolve(
        &self,
        ctx: &ContextSelectionSet<'_>,
        field: &Positioned<Field>,
    ) -> ServerResult<Value> {
        let (caller, text): (&RequestContext, &str) = (ctx.data_unchecked(), self.0.as_ref());
        match caller.count_bytes(text.len()) {
            Ok(()) => Ok(Value::String(text.to_owned())),
            Err(error) => {
                Err(ctx
                    .set_error_path(async_graphql::Error::from(error).into_server_error(field.pos)))
            }
        }
    }
}
