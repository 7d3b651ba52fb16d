//! Cache of parsed documents and of what is known about their operations.
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

use super::recent::Recent;
use crate::admission::{self, DocumentLimits, AdmissionError};
use crate::graphql::ExecutionHints;
use crate::graphql::null_propagation::{SchemaIndex, operation_named};
use crate::graphql::field_merging::{self, FieldConflict};

/// Maximum number of validated forms per document, and maximum length of a form in bytes.
const FORMS: usize = 16;
const LONG: usize = 128;

/// Capacity of the document cache, in bytes of source text. The parsed form takes up to a hundred
/// times as much.
const MAX_CACHED_BYTES: usize = 256 * 1024;
/// Minimum size that a document counts with in the cache, in bytes, because its metadata takes
/// memory too.
pub const MIN_CACHED_BYTES: usize = 256;

/// Parses documents and caches them, first in, first out.
pub struct Reader {
    limits: Arc<DocumentLimits>,
    cache: Recent<Arc<Document>>,
}

impl Reader {
    pub fn new(limits: Arc<DocumentLimits>) -> Self {
        Self { limits, cache: Recent::new(MAX_CACHED_BYTES) }
    }

    /// Returns a document from the cache, or parses and caches it.
    pub fn read(&self, query: &str) -> Result<Arc<Document>, AdmissionError> {
        if let Some(document) = self.cache.get(query) {
            return Ok(document);
        }
        let document = Arc::new(Document::from(admission::parse(query, &self.limits)?));
        self.cache.keep(query, query.len().max(MIN_CACHED_BYTES), Arc::clone(&document));
        Ok(document)
    }
}

/// A parsed document.
#[derive(Debug)]
pub struct Document {
    read: ExecutableDocument,
    /// Execution hints of each operation, by name.
    manners: HashMap<String, OnceLock<Result<ExecutionHints, FieldConflict>>>,
    valid: Mutex<HashSet<Form>>,
}

/// An operation of a document and the properties of its variables that decide whether it is valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Form(String);

impl From<ExecutableDocument> for Document {
    fn from(read: ExecutableDocument) -> Self {
        let names = read.operations.iter().map(|(name, _)| name.map_or("", |name| name.as_str()).to_owned());
        let manners = names.map(|name| (name, OnceLock::new())).collect();
        Self { read, manners, valid: Mutex::default() }
    }
}

impl Deref for Document {
    type Target = ExecutableDocument;

    fn deref(&self) -> &ExecutableDocument {
        &self.read
    }
}

impl Document {
    /// The form of an operation. Returns `None` if it is too specific to be worth remembering.
    pub fn form(&self, name: Option<&str>, variables: &Variables) -> Option<Form> {
        // A name contains no bracket, so its end is unambiguous.
        let mut form = format!("{}(", name.unwrap_or_default());
        for definition in &operation_named(&self.read, name)?.variable_definitions {
            let value = variables.get(&definition.node.name.node);
            let by_kind = match &definition.node.var_type.node.base {
                BaseType::Named(name) => matches!(name.as_str(), "ID" | "String" | "Int" | "Float" | "Boolean"),
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
        (form.len() <= LONG).then_some(Form(form))
    }

    /// The execution hints of an operation, or the conflict between its fields.
    pub fn manner(&self, name: Option<&str>, shape: &SchemaIndex) -> Result<ExecutionHints, FieldConflict> {
        let Some(place) = self.manners.get(name.unwrap_or_default()) else { return Ok(ExecutionHints::default()) };
        let look = || field_merging::check(shape, &self.read, name).map(|()| shape.plan(&self.read, name).hints());
        place.get_or_init(look).clone()
    }

    pub fn is_known(&self, form: &Form) -> bool {
        self.lock().contains(form)
    }

    /// Records that an operation of this form is valid.
    pub fn remember(&self, form: Form) {
        let mut valid = self.lock();
        if valid.len() < FORMS {
            valid.insert(form);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Form>> {
        self.valid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;
    use serde_json::{Value as Json, json};

    use super::*;

    #[test]
    fn a_form_tells_apart_what_may_differ_in_being_valid() {
        let document = "query A($id: ID!, $n: Int, $s: [S!], $t: S) { a } query B($id: ID!) { a } query Bs { a }";
        let document = Document::from(parse_query(document).expect("a document"));
        let form = |name, variables: Json| document.form(Some(name), &Variables::from_json(variables));
        let same = |one, other| assert_eq!(form("A", one).expect("a form"), form("A", other).expect("a form"));
        let apart = |one, other| assert_ne!(form("A", one), form("A", other));
        same(json!({ "id": "1", "n": 1, "unknown": 1 }), json!({ "id": "2", "n": 2 }));
        same(json!({ "s": ["X"], "t": "X" }), json!({ "t": "X", "s": ["X"] }));
        apart(json!({ "id": "1" }), json!({ "id": 1 }));
        apart(json!({ "id": "1" }), json!({ "id": null }));
        apart(json!({ "id": "1" }), json!({}));
        apart(json!({ "id": 1 }), json!({ "id": 1.5 }));
        apart(json!({ "id": 1 }), json!({ "id": 9_223_372_036_854_775_808_u64 }));
        apart(json!({ "id": "1" }), json!({ "id": ["1"] }));
        apart(json!({ "s": ["X"] }), json!({ "s": ["Y"] }));
        apart(json!({ "s": ["X"] }), json!({ "s": "X" }));
        apart(json!({ "t": "X" }), json!({ "t": "Y" }));
        apart(json!({ "s": [";"], "t": "X" }), json!({ "s": [], "t": ";" }));
        let named = |name| form(name, json!({ "id": "1" }));
        assert_ne!(named("A"), named("B"));
        assert_ne!(named("B"), named("Bs"));
        assert_eq!(named("C"), None);
        assert_eq!(form("A", json!({ "t": "x".repeat(LONG) })), None);
    }

    #[test]
    fn so_many_forms_are_remembered() {
        let document = Document::from(parse_query("query ($t: S) { a }").expect("a document"));
        let form = |number: usize| document.form(None, &Variables::from_json(json!({ "t": number }))).expect("a form");
        (0..=FORMS).for_each(|number| document.remember(form(number)));
        assert!(document.is_known(&form(FORMS - 1)) && !document.is_known(&form(FORMS)));
    }
}
