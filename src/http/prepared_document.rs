//! Cache of parsed documents, with the operations that were found valid and their execution hints.
//!
//! The library validates an operation on every execution. Validity depends only on the document,
//! the operation name and the kinds of the variable values, so a combination that was valid is not
//! validated again. How an operation is executed depends only on the document, and is determined
//! once.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_graphql::parser::types::{BaseType, ExecutableDocument};
use async_graphql::{Value, Variables};

use super::fifo_cache::FifoCache;
use crate::admission::{self, AdmissionError, DocumentLimits};
use crate::graphql::ExecutionHints;
use crate::graphql::field_merging::{self, FieldConflict};
use crate::graphql::null_propagation::{SchemaIndex, operation_named};

/// Maximum number of validation keys per document, and maximum length of a key in bytes.
const MAX_VALIDATION_KEYS: usize = 16;
const MAX_KEY_BYTES: usize = 128;

/// Capacity of the document cache, in bytes of source text. The parsed form takes up to a hundred
/// times as much.
const MAX_CACHED_BYTES: usize = 256 * 1024;
/// Minimum size that a document counts with in the cache, in bytes, because its metadata takes
/// memory too.
pub const MIN_CACHED_BYTES: usize = 256;

/// Parses documents and caches them, first in, first out.
pub struct DocumentReader {
    limits: Arc<DocumentLimits>,
    cache: FifoCache<Arc<PreparedDocument>>,
}

impl DocumentReader {
    pub fn new(limits: Arc<DocumentLimits>) -> Self {
        Self {
            limits,
            cache: FifoCache::new(MAX_CACHED_BYTES),
        }
    }

    /// Returns a document from the cache, or parses and caches it.
    pub fn read(&self, query: &str) -> Result<Arc<PreparedDocument>, AdmissionError> {
        if let Some(document) = self.cache.get(query) {
            return Ok(document);
        }
        let document = Arc::new(PreparedDocument::from(admission::parse(
            query,
            &self.limits,
        )?));
        self.cache.insert(
            query,
            query.len().max(MIN_CACHED_BYTES),
            Arc::clone(&document),
        );
        Ok(document)
    }
}

/// A parsed document.
#[derive(Debug)]
pub struct PreparedDocument {
    parsed: ExecutableDocument,
    /// Execution hints of each operation, by name.
    hints: HashMap<String, OnceLock<Result<ExecutionHints, FieldConflict>>>,
    validated: Mutex<HashSet<ValidationKey>>,
}

/// An operation of a document and the properties of its variables that decide whether it is valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ValidationKey(String);

impl From<ExecutableDocument> for PreparedDocument {
    fn from(read: ExecutableDocument) -> Self {
        let names = read
            .operations
            .iter()
            .map(|(name, _)| name.map_or("", |name| name.as_str()).to_owned());
        let manners = names.map(|name| (name, OnceLock::new())).collect();
        Self {
            parsed: read,
            hints: manners,
            validated: Mutex::default(),
        }
    }
}

impl Deref for PreparedDocument {
    type Target = ExecutableDocument;

    fn deref(&self) -> &ExecutableDocument {
        &self.parsed
    }
}

impl PreparedDocument {
    /// The validation key of an operation. Returns `None` if it is too specific to be worth
    /// remembering.
    pub fn validation_key(
        &self,
        name: Option<&str>,
        variables: &Variables,
    ) -> Option<ValidationKey> {
        // A name contains no bracket, so its end is unambiguous.
        let mut form = format!("{}(", name.unwrap_or_default());
        for definition in &operation_named(&self.parsed, name)?.variable_definitions {
            let value = variables.get(&definition.node.name.node);
            let by_kind = match &definition.node.var_type.node.base {
                BaseType::Named(name) => {
                    matches!(name.as_str(), "ID" | "String" | "Int" | "Float" | "Boolean")
                }
                BaseType::List(_) => false,
            };
            let kind = match value {
                None => '-',
                Some(Value::Null) => '0',
                // A built-in scalar accepts all values of a kind or none.
                Some(Value::String(_)) if by_kind => 's',
                Some(Value::Boolean(_)) if by_kind => 'b',
                Some(Value::Number(number)) if by_kind && number.is_i64() => 'i',
                Some(Value::Number(_)) if by_kind => 'f',
                Some(other) => {
                    // Prefixed with its length, so that its content cannot be confused with what
                    // follows.
                    let text = other.to_string();
                    write!(form, "={}:{text}", text.len()).ok()?;
                    ';'
                }
            };
            form.push(kind);
        }
        (form.len() <= MAX_KEY_BYTES).then_some(ValidationKey(form))
    }

    /// The execution hints of an operation, or the conflict between its fields.
    pub fn hints(
        &self,
        name: Option<&str>,
        shape: &SchemaIndex,
    ) -> Result<ExecutionHints, FieldConflict> {
        let Some(place) = self.hints.get(name.unwrap_or_default()) else {
            return Ok(ExecutionHints::default());
        };
        let compute = || {
            field_merging::check(shape, &self.parsed, name)
                .map(|()| shape.plan(&self.parsed, name).hints())
        };
        place.get_or_init(compute).clone()
    }

    pub fn is_validated(&self, form: &ValidationKey) -> bool {
        self.lock().contains(form)
    }

    /// Records that operations with this key are valid.
    pub fn mark_validated(&self, form: ValidationKey) {
        let mut valid = self.lock();
        if valid.len() < MAX_VALIDATION_KEYS {
            valid.insert(form);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<ValidationKey>> {
        self.validated
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;
    use serde_json::{Value as Json, json};

    use super::*;

    #[test]
    fn a_validation_key_distinguishes_what_may_differ_in_validity() {
        let document = "query A($id: ID!, $n: Int, $s: [S!], $t: S) { a } query B($id: ID!) { a } query Bs { a }";
        let document = PreparedDocument::from(parse_query(document).expect("a document"));
        let form = |name, variables: Json| {
            document.validation_key(Some(name), &Variables::from_json(variables))
        };
        let same = |one, other| {
            assert_eq!(
                form("A", one).expect("a form"),
                form("A", other).expect("a form")
            )
        };
        let apart = |one, other| assert_ne!(form("A", one), form("A", other));
        same(
            json!({ "id": "1", "n": 1, "unknown": 1 }),
            json!({ "id": "2", "n": 2 }),
        );
        same(
            json!({ "s": ["X"], "t": "X" }),
            json!({ "t": "X", "s": ["X"] }),
        );
        apart(json!({ "id": "1" }), json!({ "id": 1 }));
        apart(json!({ "id": "1" }), json!({ "id": null }));
        apart(json!({ "id": "1" }), json!({}));
        apart(json!({ "id": 1 }), json!({ "id": 1.5 }));
        apart(
            json!({ "id": 1 }),
            json!({ "id": 9_223_372_036_854_775_808_u64 }),
        );
        apart(json!({ "id": "1" }), json!({ "id": ["1"] }));
        apart(json!({ "s": ["X"] }), json!({ "s": ["Y"] }));
        apart(json!({ "s": ["X"] }), json!({ "s": "X" }));
        apart(json!({ "t": "X" }), json!({ "t": "Y" }));
        apart(
            json!({ "s": [";"], "t": "X" }),
            json!({ "s": [], "t": ";" }),
        );
        let named = |name| form(name, json!({ "id": "1" }));
        assert_ne!(named("A"), named("B"));
        assert_ne!(named("B"), named("Bs"));
        assert_eq!(named("C"), None);
        assert_eq!(form("A", json!({ "t": "x".repeat(MAX_KEY_BYTES) })), None);
    }

    #[test]
    fn a_limited_number_of_keys_is_cached() {
        let document =
            PreparedDocument::from(parse_query("query ($t: S) { a }").expect("a document"));
        let form = |number: usize| {
            document
                .validation_key(None, &Variables::from_json(json!({ "t": number })))
                .expect("a form")
        };
        (0..=MAX_VALIDATION_KEYS).for_each(|number| document.mark_validated(form(number)));
        assert!(
            document.is_validated(&form(MAX_VALIDATION_KEYS - 1))
                && !document.is_validated(&form(MAX_VALIDATION_KEYS))
        );
    }
}
