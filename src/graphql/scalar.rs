//! The `DateTime` scalar: RFC 3339, UTC, microseconds.

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value};

use crate::time::Timestamp;

/// A moment as RFC 3339 writes it. Answers are in UTC with six digits of a second (`2026-11-21T07:30:00.123456Z`);
/// input may have any offset, and digits beyond microseconds are cut off.
#[Scalar(name = "DateTime", specified_by_url = "https://scalars.graphql.org/andimarek/date-time.html")]
impl ScalarType for Timestamp {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            Value::String(text) => {
                Self::parse(text).ok_or_else(|| InputValueError::custom("not an RFC 3339 date-time"))
            }
            _ => Err(InputValueError::expected_type(value)),
        }
    }

    fn to_value(&self) -> Value {
        Value::String(self.to_string())
    }
}
