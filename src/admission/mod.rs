//! Admission control: limits on GraphQL documents, checked before async-graphql sees them.
//!
//! The library checks its limits after parsing and expanding a document. By then a small document
//! has done its harm: two thousand nested `[` overflow the parser's stack, and a chain of fragments
//! that each spread the next one twice takes seconds. Here every step is bounded by the step before
//! it:
//!
//! 1. the length of the document,
//! 2. a lexical scan, which bounds its tokens and nesting ([`lexer`]),
//! 3. the library's parser, whose recursion depth is the nesting that the scan has bounded,
//! 4. the size and nesting of the variables,
//! 5. a walk that measures each fragment once and never expands one ([`complexity`]).
//!
//! [`parse`] does the first three; its result depends only on the text and can be cached. [`admit`]
//! does the others and returns the estimated cost of the operation. Validation against the schema
//! remains with the library: a field or fragment that does not exist counts like one that does, or
//! not at all.
//!
//! All functions are pure, linear in the size of the request, and never panic.

mod complexity;
mod lexer;

use std::fmt;

use async_graphql::parser::{
    Error, parse_query,
    types::{DocumentOperations, ExecutableDocument, OperationDefinition, OperationType},
};
use serde_json::{Map, Value};

use crate::error::Code;

/// The limits of a request.
///
/// *Expanded* counts are taken as if each fragment spread were replaced by the fragment's
/// selections, because that is what validation and execution visit.
#[derive(Clone, Debug)]
pub struct DocumentLimits {
    /// Bytes of the document.
    pub document_bytes: usize,
    /// Lexical tokens of the document. Comments, commas and white space do not count.
    pub tokens: usize,
    /// Nested brackets of any kind, and nested selection sets when expanded. Capped at 64.
    pub nesting: usize,
    /// Operations in the document.
    pub operations: usize,
    /// Fragments in the document.
    pub fragments: usize,
    /// Variables of one operation.
    pub variables: usize,
    /// Nested objects and lists in the variables, including the variables object itself.
    pub variable_nesting: usize,
    /// Values anywhere in the variables.
    pub variable_values: usize,
    /// Arguments of one field or directive.
    pub arguments: usize,
    /// Directives in one location: on one field, fragment, operation or variable.
    pub directives_per_location: usize,
    /// Directives of the document, not expanded.
    pub directives: usize,
    /// Expanded fields, inline fragments and spreads of all operations together, since validation
    /// visits every operation.
    pub selections: u64,
    /// Nested fields, except under introspection fields.
    pub depth: u64,
    /// Expanded aliases of one operation.
    pub aliases: u64,
    /// Expanded root fields of a query or subscription. Repeated fields count each time.
    pub root_fields: u64,
    /// Expanded root fields of a mutation.
    pub mutation_root_fields: u64,
    /// Nested fields under `__schema` and `__type`.
    pub introspection_depth: u64,
    /// Nested lists under `__schema` and `__type`, such as the types of the fields of types.
    pub introspection_lists: u64,
    /// Page size of a connection without `first` and `last`.
    pub default_page_size: u64,
    /// Maximum page size of a connection.
    pub max_page_size: u64,
    /// Nodes of all connections of the chosen operation, assuming full pages, and members of its
    /// other lists, assuming ten each.
    pub nodes: u64,
    /// Values that the library resolves for the chosen operation: its expanded selections, each
    /// multiplied by the nodes of the pages above it. [`DocumentLimits::nodes`] alone would let a
    /// client select a thousand fields on each of ten thousand nodes.
    pub values: u64,
    /// Like [`DocumentLimits::nodes`] for a subscription, which is executed for each event.
    pub subscription_nodes: u64,
    /// Like [`DocumentLimits::values`] for a subscription.
    pub subscription_values: u64,
    /// Searches of one operation. Each reads text from the database.
    pub searches: u64,
}

impl Default for DocumentLimits {
    fn default() -> Self {
        Self {
            document_bytes: 16 * 1024,
            tokens: 2_000,
            nesting: 32,
            operations: 10,
            fragments: 50,
            variables: 50,
            variable_nesting: 32,
            variable_values: 2_000,
            arguments: 30,
            directives_per_location: 5,
            directives: 50,
            selections: 1_000,
            depth: 12,
            aliases: 30,
            root_fields: 50,
            mutation_root_fields: 10,
            introspection_depth: 20,
            introspection_lists: 3,
            default_page_size: 20,
            max_page_size: 100,
            nodes: 10_000,
            values: 100_000,
            subscription_nodes: 200,
            subscription_values: 2_000,
            searches: 10,
        }
    }
}

/// An operation within its limits.
#[derive(Debug)]
pub struct AdmittedOperation {
    pub operation: OperationType,
    pub name: Option<String>,
    pub root_fields: u64,
    /// Nodes of all connections, assuming full pages.
    pub nodes: u64,
    /// Values to resolve, assuming full pages.
    pub values: u64,
    /// Searches: each page of a list with `search`, and each of its total counts. Each may read as
    /// much text as one search is allowed.
    pub searches: u64,
    /// Cost in points: 1, plus 1 per thousand values, 10 per root field of a mutation, 1 per KiB of
    /// text in the arguments of a mutation, [`SEARCH_POINTS`] per search, and 1000 for an export.
    pub cost: u32,
    /// Whether the operation exports an account. At most one export is allowed.
    pub export: bool,
    /// Whether the operation selects `__schema` or `__type`.
    pub introspection: bool,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionError {
    pub code: Code,
    /// A human-readable reason of at most 200 characters. Quotes nothing of the request but a name.
    pub message: String,
    /// Line and column in the document, counted from one.
    pub location: Option<(usize, usize)>,
}

/// Cost of a search in points. It may read 16 MiB of text, which takes about as long as resolving
/// twenty thousand values.
const SEARCH_POINTS: u64 = 20;

/// Maximum length of a refusal's message, in characters.
const MAX_MESSAGE_CHARS: usize = 200;

impl AdmissionError {
    fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE_CHARS) {
            message.truncate(end);
        }
        Self {
            code,
            message,
            location: None,
        }
    }

    fn at(mut self, location: (usize, usize)) -> Self {
        self.location = Some(location);
        self
    }
}

impl fmt::Display for AdmissionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AdmissionError {}

/// Parses a document within the limits on size and nesting. The result depends only on the text.
pub fn parse(
    document: &str,
    limits: &DocumentLimits,
) -> Result<ExecutableDocument, AdmissionError> {
    if document.len() > limits.document_bytes {
        let message = format!(
            "The document is too long: at most {} bytes are allowed",
            limits.document_bytes
        );
        return Err(AdmissionError::new(Code::DocumentTooLarge, message));
    }
    lexer::scan(document, limits)?;
    parse_query(document).map_err(syntax_error)
}

/// Decides whether a document from [`parse`] may be executed: selects its operation and measures
/// it.
///
/// An empty `operation_name` counts as absent, since no operation can have it.
pub fn admit(
    document: &ExecutableDocument,
    operation_name: Option<&str>,
    variables: &Map<String, Value>,
    limits: &DocumentLimits,
) -> Result<AdmittedOperation, AdmissionError> {
    check_variables(variables, limits)?;
    let (name, operation) = select_operation(
        &document.operations,
        operation_name.filter(|name| !name.is_empty()),
    )?;
    let complexity = complexity::measure(document, operation, variables, limits)?;
    Ok(AdmittedOperation {
        operation: operation.ty,
        name,
        root_fields: complexity.root_fields,
        nodes: complexity.nodes,
        values: complexity.values,
        searches: complexity.searches,
        cost: cost(operation.ty, &complexity),
        export: complexity.exports > 0,
        introspection: complexity.introspection,
    })
}

/// Bytes of text that a mutation may write for one point.
const WRITTEN_BYTES: u64 = 1024;

/// Reads are cheap: a page of a few fields adds nothing to the base cost of a request. Each
/// mutation field is a transaction that stores the text it is given, and an export reads a whole
/// account.
fn cost(operation: OperationType, complexity: &complexity::Complexity) -> u32 {
    let (mutations, written) = match operation {
        OperationType::Mutation => (
            complexity.root_fields,
            complexity.text_bytes / WRITTEN_BYTES,
        ),
        OperationType::Query | OperationType::Subscription => (0, 0),
    };
    let searches = complexity.searches.saturating_mul(SEARCH_POINTS);
    let exports = complexity.exports.saturating_mul(1_000);
    let points = [
        1,
        complexity.values / 1_000,
        mutations.saturating_mul(10),
        written,
        searches,
        exports,
    ];
    u32::try_from(points.into_iter().fold(0, u64::saturating_add)).unwrap_or(u32::MAX)
}

/// Selects the operation to execute (GraphQL specification, `GetOperation`).
fn select_operation<'a>(
    operations: &'a DocumentOperations,
    name: Option<&str>,
) -> Result<(Option<String>, &'a OperationDefinition), AdmissionError> {
    let mut candidates = operations.iter();
    match (name, candidates.next()) {
        (None, Some((name, only))) if candidates.next().is_none() => {
            Ok((name.map(ToString::to_string), &only.node))
        }
        (None, _) => Err(AdmissionError::new(
            Code::OperationNameRequired,
            "The document has several operations: select one with operationName",
        )),
        (Some(wanted), _) => operations
            .iter()
            .find(|(name, _)| name.is_some_and(|name| name.as_str() == wanted))
            .map(|(_, found)| (Some(wanted.to_owned()), &found.node))
            .ok_or_else(|| {
                AdmissionError::new(
                    Code::OperationNotFound,
                    "The document has no operation with this operationName",
                )
            }),
    }
}

/// Keeps the last line of the parser's message, which states what was expected. The lines before it
/// quote the document.
fn syntax_error(error: Error) -> AdmissionError {
    let message = match &error {
        Error::Syntax { message, .. } => {
            let expectation = message.lines().next_back().unwrap_or_default();
            let expectation = expectation.trim_start().trim_start_matches("= ");
            // For a number, the message ends with a location inside the number.
            let expectation = expectation.split(" at line ").next().unwrap_or_default();
            format!("Syntax error: {expectation}")
        }
        other => other.to_string(),
    };
    let refusal = AdmissionError::new(Code::ParseFailed, message);
    match error.positions().next() {
        Some(position) => refusal.at((position.line, position.column)),
        None => refusal,
    }
}

/// Limits the variables, because the library copies and checks them at every use.
fn check_variables(
    variables: &Map<String, Value>,
    limits: &DocumentLimits,
) -> Result<(), AdmissionError> {
    let too_large = |what, limit| {
        let message = format!("The variables have too many {what}: at most {limit} are allowed");
        Err(AdmissionError::new(Code::VariablesTooLarge, message))
    };
    let mut values = variables.len();
    // An explicit stack instead of recursion, bounded by the limit on values.
    let mut waiting: Vec<(&Value, usize)> = Vec::new();
    if values <= limits.variable_values {
        waiting.extend(variables.values().map(|value| (value, 1)));
    }
    while let Some((value, outside)) = waiting.pop() {
        let inside = outside + 1;
        let children = match value {
            Value::Array(items) => items.len(),
            Value::Object(fields) => fields.len(),
            _ => continue,
        };
        if inside > limits.variable_nesting {
            return too_large("nested lists and objects", limits.variable_nesting);
        }
        values = values.saturating_add(children);
        if values > limits.variable_values {
            break;
        }
        match value {
            Value::Array(items) => waiting.extend(items.iter().map(|item| (item, inside))),
            Value::Object(fields) => waiting.extend(fields.values().map(|field| (field, inside))),
            _ => {}
        }
    }
    if values > limits.variable_values {
        return too_large("values", limits.variable_values);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
