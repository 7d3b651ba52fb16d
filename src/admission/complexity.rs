//! The complexity of a parsed document with its fragments expanded, computed without expanding
//! them.
//!
//! Every measure of a selection set is a sum or a maximum over its parts. So each fragment is
//! measured once, after the fragments it spreads, and its measure is reused at every spread.
//! Fragments that cannot be ordered this way form a cycle. The walk recurses only into the
//! selection sets of one definition, whose nesting the scan has bounded, and every sum saturates: a
//! fragment bomb yields a number above the limit, nothing worse.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use async_graphql::{
    Name, Value as Literal,
    parser::{
        Pos, Positioned,
        types::{
            Directive, ExecutableDocument, Field, FragmentDefinition, OperationDefinition,
            OperationType, Selection, SelectionSet,
        },
    },
};
use async_graphql_value::Value as Input;
use serde_json::{Map, Number, Value};

use super::{AdmissionError, DocumentLimits};
use crate::error::Code;

/// The lists of the introspection schema.
const INTROSPECTION_LISTS: [&str; 8] = [
    "args",
    "directives",
    "enumValues",
    "fields",
    "inputFields",
    "interfaces",
    "possibleTypes",
    "types",
];

/// The lists of objects of the schema without pagination.
pub(super) const UNPAGED_LISTS: [&str; 4] = ["changes", "labels", "sessions", "userErrors"];

/// Assumed length of all these lists: about the average of types × fields × arguments in a schema
/// of fifty types, and more labels than most tasks have.
const ASSUMED_LIST_LENGTH: u64 = 10;

/// The field that exports all data of an account.
const EXPORT_FIELD: &str = "exportViewerData";

/// The measures of the chosen operation that the caller uses.
#[derive(Debug, Default)]
pub(super) struct Complexity {
    pub(super) nodes: u64,
    pub(super) values: u64,
    pub(super) root_fields: u64,
    pub(super) exports: u64,
    pub(super) searches: u64,
    /// Bytes of text in the arguments of all its fields, each variable as often as it is used.
    pub(super) text_bytes: u64,
    pub(super) introspection: bool,
}

/// Measures the whole document and refuses it if it exceeds a limit. `chosen` is the operation that
/// will be executed, with `variables`.
pub(super) fn measure(
    document: &ExecutableDocument,
    chosen: &OperationDefinition,
    variables: &Map<String, Value>,
    limits: &DocumentLimits,
) -> Result<Complexity, AdmissionError> {
    let mut operations: Vec<_> = document.operations.iter().map(|(_, it)| it).collect();
    operations.sort_by_key(|operation| operation.pos);
    check_limit(limits.operations, operations.len(), "operations", None)?;
    let fragments = document.fragments.len();
    check_limit(limits.fragments, fragments, "fragments", None)?;

    let pages = PageSizes {
        operation: chosen,
        variables,
        limits,
    };
    let texts = TextSizes::new(chosen, variables);
    let mut walk = ComplexityVisitor {
        limits,
        pages,
        texts,
        fragments: HashMap::new(),
        directives: 0,
    };
    walk.measure_fragments(document)?;
    let mut complexity = Complexity::default();
    let mut selections = 0_u64;
    for operation in operations {
        let measure = walk.measure_operation(operation)?;
        let pos = Some(operation.pos);
        selections = selections.saturating_add(measure.selections);
        check_limit(limits.selections, selections, "selections", pos)?;
        if std::ptr::eq(&operation.node, chosen) {
            let (nodes, values) = match chosen.ty {
                OperationType::Subscription => {
                    (limits.subscription_nodes, limits.subscription_values)
                }
                OperationType::Query | OperationType::Mutation => (limits.nodes, limits.values),
            };
            check_limit(nodes, measure.load.nodes, "nodes", pos)?;
            check_limit(values, measure.load.values, "values", pos)?;
            check_limit(limits.searches, measure.searches, "searches", pos)?;
            complexity = Complexity {
                nodes: measure.load.nodes,
                values: measure.load.values,
                root_fields: measure.fields,
                exports: measure.exports,
                searches: measure.searches,
                text_bytes: measure.text_bytes,
                introspection: measure.introspection,
            };
        }
    }
    Ok(complexity)
}

/// The complexity of a selection set with its fragments expanded. All zero for the empty set.
#[derive(Clone, Copy, Debug, Default)]
struct SelectionSize {
    /// Fields, inline fragments and spreads, at any depth.
    selections: u64,
    /// Fields directly in the set. For an operation these are its root fields.
    fields: u64,
    aliases: u64,
    /// Fields that export an account, at any depth.
    exports: u64,
    /// Searches, at any depth. A nested list is searched once for all its parents.
    searches: u64,
    /// Total counts directly in the set, each of which repeats the search.
    totals: u64,
    /// Bytes of text in arguments, at any depth.
    text_bytes: u64,
    /// Nested fields.
    depth: u64,
    /// Nested selection sets including this one: the recursion depth of the library.
    nesting: u64,
    /// Nested lists of the introspection schema.
    lists: u64,
    /// Whether the set directly selects `edges` or `nodes`, which indicates a connection.
    connection: bool,
    /// Whether `__schema` or `__type` is selected, at any depth.
    introspection: bool,
    load: Workload,
    /// The load if the set is under `__schema` or `__type`.
    introspection_load: Workload,
}

/// The work of execution, assuming full pages.
#[derive(Clone, Copy, Debug, Default)]
struct Workload {
    nodes: u64,
    values: u64,
}

impl SelectionSize {
    /// The sum of two measures: the selections of both in one set.
    fn merge(self, other: Self) -> Self {
        Self {
            selections: self.selections.saturating_add(other.selections),
            fields: self.fields.saturating_add(other.fields),
            aliases: self.aliases.saturating_add(other.aliases),
            exports: self.exports.saturating_add(other.exports),
            searches: self.searches.saturating_add(other.searches),
            totals: self.totals.saturating_add(other.totals),
            text_bytes: self.text_bytes.saturating_add(other.text_bytes),
            depth: self.depth.max(other.depth),
            nesting: self.nesting.max(other.nesting),
            lists: self.lists.max(other.lists),
            connection: self.connection || other.connection,
            introspection: self.introspection || other.introspection,
            load: self.load.merge(other.load),
            introspection_load: self.introspection_load.merge(other.introspection_load),
        }
    }

    /// The measure of a spread or inline fragment with this set: one selection more.
    fn as_fragment(self) -> Self {
        Self {
            selections: self.selections.saturating_add(1),
            load: self.load.nested(None),
            introspection_load: self.introspection_load.nested(None),
            ..self
        }
    }
}

impl Workload {
    fn merge(self, other: Self) -> Self {
        Self {
            nodes: self.nodes.saturating_add(other.nodes),
            values: self.values.saturating_add(other.values),
        }
    }

    /// The load of one selection above this load, which is repeated for each node of the page.
    fn nested(self, page: Option<u64>) -> Self {
        let (times, nodes) = page.map_or((1, 0), |page| (page, 1));
        Self {
            nodes: self.nodes.saturating_add(nodes).saturating_mul(times),
            values: self.values.saturating_mul(times).saturating_add(1),
        }
    }
}

struct ComplexityVisitor<'a> {
    limits: &'a DocumentLimits,
    pages: PageSizes<'a>,
    texts: TextSizes<'a>,
    /// The fragments measured so far.
    fragments: HashMap<&'a str, SelectionSize>,
    /// The number of directives so far.
    directives: usize,
}

impl<'a> ComplexityVisitor<'a> {
    /// Measures every fragment, including unused ones, because validation visits them, too.
    fn measure_fragments(
        &mut self,
        document: &'a ExecutableDocument,
    ) -> Result<(), AdmissionError> {
        let mut waiting: Vec<_> = document
            .fragments
            .iter()
            .map(PendingFragment::new)
            .collect();
        waiting.sort_by_key(|fragment| fragment.definition.pos);
        while !waiting.is_empty() {
            let names: HashSet<_> = waiting.iter().map(|fragment| fragment.name).collect();
            let (blocked, ready): (Vec<_>, Vec<_>) = waiting
                .into_iter()
                .partition(|fragment| fragment.find_spread(&names).is_some());
            if ready.is_empty() {
                return Err(cycle_error(&blocked, &names));
            }
            for PendingFragment {
                name, definition, ..
            } in ready
            {
                self.count_directives(&definition.node.directives, definition.pos)?;
                let measure = self.measure_selection_set(&definition.node.selection_set)?;
                self.check_expanded(&measure, definition.pos)?;
                self.fragments.insert(name, measure);
            }
            waiting = blocked;
        }
        Ok(())
    }

    fn measure_operation(
        &mut self,
        operation: &'a Positioned<OperationDefinition>,
    ) -> Result<SelectionSize, AdmissionError> {
        let limits = self.limits;
        let pos = Some(operation.pos);
        let definition = &operation.node;
        let variables = &definition.variable_definitions;
        check_limit(limits.variables, variables.len(), "variables", pos)?;
        for variable in variables {
            self.count_directives(&variable.node.directives, variable.pos)?;
        }
        self.count_directives(&definition.directives, operation.pos)?;
        let measure = self.measure_selection_set(&definition.selection_set)?;
        self.check_expanded(&measure, operation.pos)?;
        let root_fields = match definition.ty {
            OperationType::Mutation => limits.mutation_root_fields,
            OperationType::Query | OperationType::Subscription => limits.root_fields,
        };
        check_limit(root_fields, measure.fields, "root fields", pos)?;
        check_limit(limits.aliases, measure.aliases, "aliases", pos)?;
        check_limit(1, measure.exports, "exports", pos)?;
        check_limit(limits.depth, measure.depth, "nested fields", pos)?;
        Ok(measure)
    }

    /// Checks the limits common to operations and fragments. Depth and aliases of a fragment count
    /// where it is spread.
    fn check_expanded(&self, measure: &SelectionSize, pos: Pos) -> Result<(), AdmissionError> {
        let DocumentLimits {
            selections,
            nesting,
            ..
        } = *self.limits;
        let levels = usize::try_from(measure.nesting).unwrap_or(usize::MAX);
        check_limit(selections, measure.selections, "selections", Some(pos))?;
        check_limit(nesting, levels, "nested selection sets", Some(pos))
    }

    fn measure_selection_set(
        &mut self,
        set: &'a Positioned<SelectionSet>,
    ) -> Result<SelectionSize, AdmissionError> {
        let mut measure = SelectionSize::default();
        for selection in &set.node.items {
            self.count_directives(selection.node.directives(), selection.pos)?;
            measure = measure.merge(match &selection.node {
                Selection::Field(field) => self.measure_field(field)?,
                Selection::InlineFragment(inline) => self
                    .measure_selection_set(&inline.node.selection_set)?
                    .as_fragment(),
                Selection::FragmentSpread(spread) => self
                    .fragments
                    .get(spread.node.fragment_name.node.as_str())
                    .copied()
                    .unwrap_or_default()
                    .as_fragment(),
            });
        }
        if !set.node.items.is_empty() {
            measure.nesting = measure.nesting.saturating_add(1);
        }
        Ok(measure)
    }

    fn measure_field(
        &mut self,
        field: &'a Positioned<Field>,
    ) -> Result<SelectionSize, AdmissionError> {
        let limits = self.limits;
        let pos = Some(field.pos);
        let field = &field.node;
        let name = field.name.node.as_str();
        check_limit(limits.arguments, field.arguments.len(), "arguments", pos)?;
        let below = self.measure_selection_set(&field.selection_set)?;

        let page = self
            .pages
            .page_size(field, below.connection)
            .or(UNPAGED_LISTS.contains(&name).then_some(ASSUMED_LIST_LENGTH));
        let searches = if self.pages.is_searched(field) || self.pages.is_filtered_log(field) {
            below.totals.saturating_add(1)
        } else {
            0
        };
        let list = INTROSPECTION_LISTS.contains(&name);
        let mut measure = SelectionSize {
            selections: below.selections.saturating_add(1),
            fields: 1,
            aliases: below
                .aliases
                .saturating_add(u64::from(field.alias.is_some())),
            exports: below
                .exports
                .saturating_add(u64::from(name == EXPORT_FIELD)),
            searches: below.searches.saturating_add(searches),
            totals: u64::from(name == "totalCount"),
            text_bytes: below
                .text_bytes
                .saturating_add(self.texts.argument_bytes(field)),
            depth: below.depth.saturating_add(1),
            nesting: below.nesting,
            lists: below.lists.saturating_add(u64::from(list)),
            connection: matches!(name, "edges" | "nodes"),
            introspection: below.introspection,
            load: below.load.nested(page),
            introspection_load: below
                .introspection_load
                .nested(list.then_some(ASSUMED_LIST_LENGTH)),
        };
        if matches!(name, "__schema" | "__type") {
            let (depth, lists) = (limits.introspection_depth, limits.introspection_lists);
            check_limit(depth, below.depth, "nested introspection fields", pos)?;
            check_limit(lists, below.lists, "nested introspection lists", pos)?;
            // To the levels above, introspection is one field, with the load of its lists.
            measure.depth = 1;
            measure.introspection = true;
            measure.load = measure.introspection_load;
        }
        Ok(measure)
    }

    fn count_directives(
        &mut self,
        directives: &[Positioned<Directive>],
        pos: Pos,
    ) -> Result<(), AdmissionError> {
        let pos = Some(pos);
        self.directives = self.directives.saturating_add(directives.len());
        check_limit(self.limits.directives, self.directives, "directives", pos)?;
        check_limit(
            self.limits.directives_per_location,
            directives.len(),
            "directives in one location",
            pos,
        )?;
        for directive in directives {
            let arguments = directive.node.arguments.len();
            check_limit(
                self.limits.arguments,
                arguments,
                "arguments",
                Some(directive.pos),
            )?;
        }
        Ok(())
    }
}

/// A fragment not measured yet.
struct PendingFragment<'a> {
    name: &'a str,
    definition: &'a Positioned<FragmentDefinition>,
    spreads: Vec<(&'a str, Pos)>,
}

impl<'a> PendingFragment<'a> {
    fn new((name, definition): (&'a Name, &'a Positioned<FragmentDefinition>)) -> Self {
        let mut spreads = Vec::new();
        collect_spreads(&definition.node.selection_set.node, &mut spreads);
        Self {
            name: name.as_str(),
            definition,
            spreads,
        }
    }

    /// The first of the named fragments that this one spreads.
    fn find_spread(&self, names: &HashSet<&str>) -> Option<(&'a str, Pos)> {
        let mut spreads = self.spreads.iter().copied();
        spreads.find(|(name, _)| names.contains(name))
    }
}

fn collect_spreads<'a>(set: &'a SelectionSet, spreads: &mut Vec<(&'a str, Pos)>) {
    for selection in &set.items {
        match &selection.node {
            Selection::Field(field) => {
                collect_spreads(&field.node.selection_set.node, spreads);
            }
            Selection::InlineFragment(inline) => {
                collect_spreads(&inline.node.selection_set.node, spreads);
            }
            Selection::FragmentSpread(spread) => {
                spreads.push((spread.node.fragment_name.node.as_str(), spread.pos));
            }
        }
    }
}

/// The error for a fragment cycle. Each of `blocked` spreads another one of them, so following the
/// spreads for as many steps as there are fragments ends on a cycle.
fn cycle_error(blocked: &[PendingFragment<'_>], names: &HashSet<&str>) -> AdmissionError {
    let mut last = None;
    let mut fragment = blocked.first();
    for _ in blocked {
        last = fragment.and_then(|fragment| fragment.find_spread(names));
        fragment = last.and_then(|(name, _)| blocked.iter().find(|it| it.name == name));
    }
    let (name, pos) = last.unwrap_or_default();
    let message = format!("The fragment \"{name}\" spreads itself");
    AdmissionError::new(Code::ValidationFailed, message).at((pos.line, pos.column))
}

/// Computes the page sizes that the chosen operation requests.
struct PageSizes<'a> {
    operation: &'a OperationDefinition,
    variables: &'a Map<String, Value>,
    limits: &'a DocumentLimits,
}

impl PageSizes<'_> {
    /// The page size of a field that looks like a connection, by its arguments or its selections,
    /// or that loads objects by ids. The schema is not consulted: a field that only looks like a
    /// connection is overestimated, never underestimated.
    fn page_size(&self, field: &Field, connection: bool) -> Option<u64> {
        let asked = field
            .arguments
            .iter()
            .filter_map(|(name, value)| match name.node.as_str() {
                "first" | "last" => Some(match value.node.clone().into_const_with(Err) {
                    Ok(literal) => self.literal_size(&literal),
                    Err(variable) => self.variable_size(&variable),
                }),
                "ids" => Some(self.list_length(&value.node)),
                _ => None,
            });
        asked
            .max()
            .or_else(|| connection.then_some(self.limits.default_page_size))
    }

    /// Whether a query reads the event log with a filter: no index serves all filters, so that
    /// matching events may be far apart. Subscriptions match each event when it is delivered.
    fn is_filtered_log(&self, field: &Field) -> bool {
        let is_filter = match field.get_argument("filter").map(|filter| &filter.node) {
            Some(Input::Variable(name)) => match self.variables.get(name.as_str()) {
                Some(value) => !value.is_null(),
                None => self
                    .default_value(name)
                    .is_some_and(|default| *default != Literal::Null),
            },
            Some(filter) => *filter != Input::Null,
            None => false,
        };
        is_filter && field.name.node == "events" && self.operation.ty == OperationType::Query
    }

    /// Whether a field may search. A blank or missing search matches everything without reading.
    fn is_searched(&self, field: &Field) -> bool {
        let is_text = |value: &Value| {
            value.as_str().is_none_or(|text| !text.trim().is_empty()) && !value.is_null()
        };
        let variable = |name: &Name| match self.variables.get(name.as_str()) {
            Some(value) => Some(value.clone()),
            None => self
                .default_value(name)
                .and_then(|default| default.clone().into_json().ok()),
        };
        match field.get_argument("filter").map(|filter| &filter.node) {
            Some(Input::Object(filter)) => match filter.get("search") {
                Some(Input::Variable(name)) => {
                    variable(name).is_some_and(|search| is_text(&search))
                }
                Some(search) => search
                    .clone()
                    .into_json()
                    .ok()
                    .is_none_or(|search| is_text(&search)),
                None => false,
            },
            Some(Input::Variable(name)) => {
                variable(name).is_some_and(|filter| filter.get("search").is_some_and(is_text))
            }
            _ => false,
        }
    }

    /// The length of a list. Any other value counts as the maximum.
    fn list_length(&self, value: &Input) -> u64 {
        let length = match value {
            Input::List(items) => Some(items.len()),
            Input::Variable(name) => {
                match (self.variables.get(name.as_str()), self.default_value(name)) {
                    (Some(Value::Array(items)), _) => Some(items.len()),
                    (None, Some(Literal::List(items))) => Some(items.len()),
                    _ => None,
                }
            }
            _ => None,
        };
        let length = length
            .and_then(|length| u64::try_from(length).ok())
            .unwrap_or(u64::MAX);
        length.min(self.limits.max_page_size)
    }

    fn literal_size(&self, literal: &Literal) -> u64 {
        match literal {
            Literal::Null => self.limits.default_page_size,
            Literal::Number(number) => self.clamp(number),
            _ => self.limits.max_page_size,
        }
    }

    fn variable_size(&self, name: &Name) -> u64 {
        match self.variables.get(name.as_str()) {
            Some(Value::Null) => self.limits.default_page_size,
            Some(Value::Number(number)) => self.clamp(number),
            Some(_) => self.limits.max_page_size,
            None => self
                .default_value(name)
                .map_or(self.limits.default_page_size, |default| {
                    self.literal_size(default)
                }),
        }
    }

    /// The default value of a variable.
    fn default_value(&self, name: &Name) -> Option<&Literal> {
        let mut definitions = self.operation.variable_definitions.iter();
        let definition = definitions.find(|definition| definition.node.name.node == *name)?;
        definition
            .node
            .default_value
            .as_ref()
            .map(|default| &default.node)
    }

    /// Clamps a page size to the allowed range. The field itself reports a size that is out of
    /// range or not an integer.
    fn clamp(&self, number: &Number) -> u64 {
        let largest = self.limits.max_page_size;
        match number.as_i64() {
            Some(size) => u64::try_from(size).unwrap_or(0).clamp(1, largest.max(1)),
            None => largest,
        }
    }
}

/// How much text the arguments of the chosen operation carry, in bytes of UTF-8.
struct TextSizes<'a> {
    /// Measured once per variable: a document may use one variable many times.
    variables: HashMap<&'a str, u64>,
}

impl<'a> TextSizes<'a> {
    fn new(operation: &'a OperationDefinition, variables: &'a Map<String, Value>) -> Self {
        let defaults = operation
            .variable_definitions
            .iter()
            .filter_map(|definition| {
                let default = &definition.node.default_value.as_ref()?.node;
                Some((definition.node.name.node.as_str(), literal_bytes(default)))
            });
        let given = variables
            .iter()
            .map(|(name, value)| (name.as_str(), json_bytes(value)));
        // A given value takes the place of the default.
        Self {
            variables: defaults.chain(given).collect(),
        }
    }

    fn argument_bytes(&self, field: &Field) -> u64 {
        sum(field
            .arguments
            .iter()
            .map(|(_, value)| self.value_bytes(&value.node)))
    }

    /// Recurses no deeper than the scan allows brackets to nest.
    fn value_bytes(&self, value: &Input) -> u64 {
        match value {
            Input::String(text) => length(text),
            Input::Variable(name) => self
                .variables
                .get(name.as_str())
                .copied()
                .unwrap_or_default(),
            Input::List(items) => sum(items.iter().map(|item| self.value_bytes(item))),
            Input::Object(fields) => sum(fields.values().map(|field| self.value_bytes(field))),
            _ => 0,
        }
    }
}

/// As [`TextSizes::value_bytes`], of a default value.
fn literal_bytes(value: &Literal) -> u64 {
    match value {
        Literal::String(text) => length(text),
        Literal::List(items) => sum(items.iter().map(literal_bytes)),
        Literal::Object(fields) => sum(fields.values().map(literal_bytes)),
        _ => 0,
    }
}

/// As [`TextSizes::value_bytes`], of the value of a variable, whose nesting is bounded by
/// [`DocumentLimits::variable_nesting`].
fn json_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => length(text),
        Value::Array(items) => sum(items.iter().map(json_bytes)),
        Value::Object(fields) => sum(fields.values().map(json_bytes)),
        _ => 0,
    }
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

fn check_limit<N: PartialOrd + fmt::Display>(
    limit: N,
    found: N,
    what: &str,
    pos: Option<Pos>,
) -> Result<(), AdmissionError> {
    if found <= limit {
        return Ok(());
    }
    let message = format!("Too many {what}: at most {limit} are allowed");
    let refusal = AdmissionError::new(Code::DocumentTooComplex, message);
    Err(match pos {
        Some(pos) => refusal.at((pos.line, pos.column)),
        None => refusal,
    })
}
