//! What a GraphQL document may cost, decided before async-graphql sees it.
//!
//! The library compares a request with its limits after parsing and expanding it, and by then a
//! small document has done its harm: two thousand nested `[` overflow the parser's stack, and a
//! chain of fragments that each spread the next one twice takes seconds. Here every step is
//! bounded by the step before it:
//!
//! 1. the length of the document,
//! 2. a lexical scan, which bounds its tokens and nesting ([`scan`]),
//! 3. the library's parser, whose recursion is the nesting the scan has bounded,
//! 4. the size and nesting of the variables,
//! 5. a walk that measures each fragment once and never expands one ([`survey`]).
//!
//! The first three are [`read`], whose outcome depends on nothing but the text and may be kept, the others [`admit`],
//! which tells what the operation is estimated to cost. Whether it is valid remains the library's question: a field or
//! a fragment that does not exist counts like one that does, or not at all.
//!
//! Everything here is pure, linear in the request, and answers any input with a value.

mod scan;
mod survey;

use std::fmt;

use async_graphql::parser::{
    Error, parse_query,
    types::{DocumentOperations, ExecutableDocument, OperationDefinition, OperationType},
};
use serde_json::{Map, Value};

use crate::error::Code;

/// The most of everything that one request may contain.
///
/// What a client asks for in *expanded* counts is counted as if each fragment spread were replaced
/// by what it spreads, because that is what validation and execution will visit.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of the document.
    pub document_bytes: usize,
    /// Lexical tokens of the document; comments, commas and white space are free.
    pub tokens: usize,
    /// Brackets of any kind open at once, and selection sets within each other when expanded.
    /// At most 64 is honoured.
    pub nesting: usize,
    /// Operations in the document.
    pub operations: usize,
    /// Fragments in the document.
    pub fragments: usize,
    /// Variables of one operation.
    pub variables: usize,
    /// Objects and lists within each other in the variables, themselves an object, included.
    pub variable_nesting: usize,
    /// Values anywhere in the variables.
    pub variable_values: usize,
    /// Arguments of one field or directive.
    pub arguments: usize,
    /// Directives in one place: on one field, fragment, operation or variable.
    pub directives_in_one_place: usize,
    /// Directives of the document, as written.
    pub directives: usize,
    /// Expanded fields, inline fragments and spreads of all operations together: validation visits
    /// every operation, whichever is chosen.
    pub selections: u64,
    /// Fields within each other, the introspection fields' own depth aside.
    pub depth: u64,
    /// Expanded aliases of one operation.
    pub aliases: u64,
    /// Expanded root fields of a query or subscription. Repeated fields count each time.
    pub root_fields: u64,
    /// Expanded root fields of a mutation.
    pub mutation_root_fields: u64,
    /// Fields within each other under `__schema` and `__type`.
    pub introspection_depth: u64,
    /// Lists within each other under `__schema` and `__type`: types of fields of types…
    pub introspection_lists: u64,
    /// What a connection yields if asked for neither `first` nor `last`.
    pub default_page: u64,
    /// What a connection yields at most, whatever is asked for.
    pub largest_page: u64,
    /// Nodes of all connections of the chosen operation, if every page is full, and members of its
    /// other lists, if each has ten.
    pub nodes: u64,
    /// Expanded selections of the chosen operation, each as often as the pages above it have
    /// nodes: what the library resolves. [`Limits::nodes`] alone would let a client select a
    /// thousand things of each of ten thousand nodes.
    pub values: u64,
    /// The same two of a subscription, which is executed for each event.
    pub subscription_nodes: u64,
    /// See [`Limits::subscription_nodes`].
    pub subscription_values: u64,
    /// Searches of one operation: each reads text.
    pub searches: u64,
}

impl Default for Limits {
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
            directives_in_one_place: 5,
            directives: 50,
            selections: 1_000,
            depth: 12,
            aliases: 30,
            root_fields: 50,
            mutation_root_fields: 10,
            introspection_depth: 20,
            introspection_lists: 3,
            default_page: 20,
            largest_page: 100,
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
pub struct Admitted {
    /// What the chosen operation is.
    pub operation: OperationType,
    /// The chosen operation's name, if it has one.
    pub name: Option<String>,
    /// How many root fields the operation has.
    pub root_fields: u64,
    /// How many nodes the operation's connections have if every page is full.
    pub nodes: u64,
    /// How many selections the operation resolves if every page is full.
    pub values: u64,
    /// How many searches the operation runs: each page of a list with `search`, and each of its
    /// total counts. Every one may read as much text as is allowed for one.
    pub searches: u64,
    /// What the request costs in points: 1, and 1 for every thousand values, 10 for each root
    /// field of a mutation, 1 for every KiB of text in the arguments of a mutation,
    /// [`SEARCH_POINTS`] for each search and 1000 for an export.
    pub cost: u32,
    /// Whether the operation exports an account, which it does once at most.
    pub export: bool,
    /// Whether the operation reaches `__schema` or `__type`.
    pub introspection: bool,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for programs.
    pub code: Code,
    /// Why, for people, in at most 200 characters. Quotes no more of the request than a name.
    pub message: String,
    /// Where in the document, as line and column counted from one.
    pub location: Option<(usize, usize)>,
}

/// What a search costs: it may read 16 MiB of text, which takes about as long as twenty thousand
/// values.
const SEARCH_POINTS: u64 = 20;

/// The longest message of a refusal, in characters.
const MESSAGE_CHARACTERS: usize = 200;

impl Refusal {
    fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARACTERS) {
            message.truncate(end);
        }
        Self { code, message, location: None }
    }

    fn at(mut self, location: (usize, usize)) -> Self {
        self.location = Some(location);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// Reads a document that is no larger and no deeper than is allowed. The same text is read alike each time.
pub fn read(document: &str, limits: &Limits) -> Result<ExecutableDocument, Refusal> {
    if document.len() > limits.document_bytes {
        let message = format!("The document is too long: at most {} bytes are allowed", limits.document_bytes);
        return Err(Refusal::new(Code::DocumentTooLarge, message));
    }
    scan::scan(document, limits)?;
    parse_query(document).map_err(syntax_error)
}

/// Decides whether a document that was [`read`] may be executed: chooses its operation and measures it.
///
/// An empty `operation_name` is none, as no operation can have it.
pub fn admit(
    document: &ExecutableDocument,
    operation_name: Option<&str>,
    variables: &Map<String, Value>,
    limits: &Limits,
) -> Result<Admitted, Refusal> {
    check_variables(variables, limits)?;
    let (name, operation) = choose(&document.operations, operation_name.filter(|name| !name.is_empty()))?;
    let survey = survey::survey(document, operation, variables, limits)?;
    Ok(Admitted {
        operation: operation.ty,
        name,
        root_fields: survey.root_fields,
        nodes: survey.nodes,
        values: survey.values,
        searches: survey.searches,
        cost: cost(operation.ty, &survey),
        export: survey.exports > 0,
        introspection: survey.introspection,
    })
}

/// Bytes of text that a mutation writes for one point.
const WRITTEN_BYTES: u64 = 1024;

/// Reading is cheap, and so a page of a few fields costs no more than the request itself; every
/// mutation is a transaction of its own, which stores the text that it is given once, and an export
/// reads a whole account.
fn cost(operation: OperationType, survey: &survey::Survey) -> u32 {
    let (mutations, written) = match operation {
        OperationType::Mutation => (survey.root_fields, survey.text_bytes / WRITTEN_BYTES),
        OperationType::Query | OperationType::Subscription => (0, 0),
    };
    let searches = survey.searches.saturating_mul(SEARCH_POINTS);
    let exports = survey.exports.saturating_mul(1_000);
    let points = [1, survey.values / 1_000, mutations.saturating_mul(10), written, searches, exports];
    u32::try_from(points.into_iter().fold(0, u64::saturating_add)).unwrap_or(u32::MAX)
}

/// Finds the operation a request means, by the rules of the specification.
fn choose<'a>(
    operations: &'a DocumentOperations,
    name: Option<&str>,
) -> Result<(Option<String>, &'a OperationDefinition), Refusal> {
    let mut candidates = operations.iter();
    match (name, candidates.next()) {
        (None, Some((name, only))) if candidates.next().is_none() => Ok((name.map(ToString::to_string), &only.node)),
        (None, _) => Err(Refusal::new(
            Code::OperationNameRequired,
            "The document has several operations: choose one with operationName",
        )),
        (Some(wanted), _) => operations
            .iter()
            .find(|(name, _)| name.is_some_and(|name| name.as_str() == wanted))
            .map(|(_, found)| (Some(wanted.to_owned()), &found.node))
            .ok_or_else(|| {
                Refusal::new(Code::OperationNotFound, "The document has no operation with this operationName")
            }),
    }
}

/// The parser's own message quotes the line it stopped in; its last line says what it expected.
fn syntax_error(error: Error) -> Refusal {
    let message = match &error {
        Error::Syntax { message, .. } => {
            let expectation = message.lines().next_back().unwrap_or_default();
            let expectation = expectation.trim_start().trim_start_matches("= ");
            // Of a number, it tells where in the number.
            let expectation = expectation.split(" at line ").next().unwrap_or_default();
            format!("Syntax error: {expectation}")
        }
        other => other.to_string(),
    };
    let refusal = Refusal::new(Code::ParseFailed, message);
    match error.positions().next() {
        Some(position) => refusal.at((position.line, position.column)),
        None => refusal,
    }
}

/// Bounds the variables, as the library copies and checks them wherever they are used.
fn check_variables(variables: &Map<String, Value>, limits: &Limits) -> Result<(), Refusal> {
    let too_large = |what, limit| {
        let message = format!("The variables have too many {what}: at most {limit} are allowed");
        Err(Refusal::new(Code::VariablesTooLarge, message))
    };
    let mut values = variables.len();
    // A stack of its own instead of recursion, and never longer than the limit on values.
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
