//! Field collection as the GraphQL specification requires, before async-graphql executes an
//! operation: skipped selections are dropped, the fields of one response key are merged into one
//! (section 6.3.2), and an argument or input field whose variable has no value is omitted (sections
//! 6.4.1 and 3.10).
//!
//! async-graphql executes a field as often as it is written, also in a mutation, and merges the
//! results; it treats a variable without a value as null, which in an update clears a field; and it
//! returns null for an object without selected fields. Most operations have none of this and are
//! executed as written.
//!
//! A field that is selected both on an interface and on one of its types stays in both places, and
//! async-graphql merges the results. Merging it here would take a selection set for each type, and
//! no interface has a field with a list.

use std::collections::HashMap;

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::Positioned;
use async_graphql::parser::types::{
    Directive, DocumentOperations, ExecutableDocument, Field, FragmentDefinition, InlineFragment,
    OperationDefinition, OperationType, Selection, SelectionSet, TypeCondition,
};
use async_graphql::{Name, Pos, Value, Variables};
use async_graphql_value::Value as Input;

use super::null_propagation::{SchemaIndex, operation_named, root_type};

/// The response key of the placeholder in a selection set that may otherwise be empty. No document
/// can contain this name.
pub(super) const PLACEHOLDER_KEY: &str = "\0";

/// Resolves the names in an operation: fragments and variables.
#[derive(Clone, Copy)]
pub(super) struct OperationEnv<'a> {
    pub(super) fragments: &'a HashMap<Name, Positioned<FragmentDefinition>>,
    /// Including the defaults of variables that were not sent.
    pub(super) variables: &'a Variables,
}

impl OperationEnv<'_> {
    /// Removes variables without a value from an argument: the argument itself becomes `None`, an
    /// input field is omitted, an item of a list becomes null.
    fn without_undefined(self, argument: &Input) -> Option<Input> {
        Some(match argument {
            Input::Variable(name) if !self.variables.contains_key(name) => return None,
            Input::List(items) => Input::List(
                items
                    .iter()
                    .map(|item| self.without_undefined(item).unwrap_or_default())
                    .collect(),
            ),
            Input::Object(fields) => {
                let fields = fields.iter().filter_map(|(name, value)| {
                    Some((name.clone(), self.without_undefined(value)?))
                });
                Input::Object(fields.collect())
            }
            other => other.clone(),
        })
    }

    /// The value of an argument with its variables substituted.
    pub(super) fn resolve_value(self, argument: &Input) -> Option<Value> {
        self.without_undefined(argument)?
            .into_const_with(|name| self.variables.get(&name).cloned().ok_or(()))
            .ok()
    }

    /// Whether `@skip` and `@include` keep the selection.
    pub(super) fn is_skipped(self, directives: &[Positioned<Directive>]) -> bool {
        directives.iter().all(|directive| {
            let without = match directive.node.name.node.as_str() {
                "skip" => true,
                "include" => false,
                _ => return true,
            };
            let condition = directive
                .node
                .get_argument("if")
                .and_then(|condition| self.resolve_value(&condition.node));
            condition != Some(Value::Boolean(without))
        })
    }
}

/// Adds the defaults of variables that were not sent.
pub fn apply_defaults(variables: &mut Variables, operation: &OperationDefinition) {
    for definition in &operation.variable_definitions {
        if let Some(default) = &definition.node.default_value {
            let name = &definition.node.name.node;
            if !variables.contains_key(name) {
                variables.insert(name.clone(), default.node.clone());
            }
        }
    }
}

/// Whether every variable of an operation has a value.
pub fn has_all_values(
    document: &ExecutableDocument,
    name: Option<&str>,
    variables: &Variables,
) -> bool {
    let mut definitions = operation_named(document, name)
        .into_iter()
        .flat_map(|operation| &operation.variable_definitions);
    definitions.all(|definition| variables.contains_key(&definition.node.name.node))
}

/// Rewrites a valid operation to the document that is to be executed.
pub fn collect_fields(
    shape: &SchemaIndex,
    document: &ExecutableDocument,
    name: Option<&str>,
    variables: &Variables,
) -> ExecutableDocument {
    let Some(operation) = operation_named(document, name) else {
        return document.clone();
    };
    let names = OperationEnv {
        fragments: &document.fragments,
        variables,
    };
    let set = &operation.selection_set;
    let selected = FieldCollector { shape, names }.set(root_type(operation.ty), &[&set.node]);
    let operation = OperationDefinition {
        ty: operation.ty,
        variable_definitions: operation.variable_definitions.clone(),
        directives: Vec::new(),
        selection_set: set.position_node(selected),
    };
    let operation = set.position_node(operation);
    let operations = match name {
        Some(name) => DocumentOperations::Multiple(HashMap::from([(Name::new(name), operation)])),
        None => DocumentOperations::Single(operation),
    };
    ExecutableDocument {
        operations,
        fragments: HashMap::new(),
    }
}

struct FieldCollector<'a> {
    shape: &'a SchemaIndex,
    names: OperationEnv<'a>,
}

/// The selections on objects of one type.
#[derive(Default)]
struct CollectedFields<'a> {
    /// By response key: the first field and the selection sets of all.
    fields: IndexMap<&'a str, (&'a Positioned<Field>, Vec<&'a SelectionSet>)>,
    /// By type: the selections on those of the objects that are also of that type.
    narrower: IndexMap<&'a str, (&'a Positioned<TypeCondition>, Vec<&'a SelectionSet>)>,
}

impl<'a> FieldCollector<'a> {
    /// Merges selection sets on objects of this type.
    fn set(&self, parent: &str, sets: &[&'a SelectionSet]) -> SelectionSet {
        let mut collected = CollectedFields::default();
        sets.iter()
            .for_each(|set| self.collect(parent, set, &mut collected));
        let CollectedFields { fields, narrower } = collected;
        let mut items = Vec::with_capacity(fields.len().max(1) + narrower.len());
        // A subscription root of async-graphql has no `__typename`.
        if fields.is_empty() && parent != root_type(OperationType::Subscription) {
            items.push(placeholder());
        }
        items.extend(fields.into_values().map(|(field, sets)| {
            let selected = self.field(parent, &field.node, &sets);
            field.position_node(Selection::Field(field.position_node(selected)))
        }));
        items.extend(narrower.into_values().map(|(condition, sets)| {
            let selected = InlineFragment {
                type_condition: Some(condition.clone()),
                directives: Vec::new(),
                selection_set: condition.position_node(self.set(&condition.node.on.node, &sets)),
            };
            condition.position_node(Selection::InlineFragment(condition.position_node(selected)))
        }));
        SelectionSet { items }
    }

    fn collect(&self, parent: &str, set: &'a SelectionSet, collected: &mut CollectedFields<'a>) {
        for selection in &set.items {
            if !self.names.is_skipped(selection.node.directives()) {
                continue;
            }
            let (condition, set) = match &selection.node {
                Selection::Field(field) => {
                    let key = field.node.response_key().node.as_str();
                    let (_, sets) = collected
                        .fields
                        .entry(key)
                        .or_insert_with(|| (field, Vec::new()));
                    sets.push(&field.node.selection_set.node);
                    continue;
                }
                Selection::InlineFragment(fragment) => (
                    fragment.node.type_condition.as_ref(),
                    &fragment.node.selection_set.node,
                ),
                Selection::FragmentSpread(spread) => {
                    match self.names.fragments.get(&spread.node.fragment_name.node) {
                        Some(fragment) => (
                            Some(&fragment.node.type_condition),
                            &fragment.node.selection_set.node,
                        ),
                        None => continue,
                    }
                }
            };
            match condition {
                Some(condition) if !self.shape.is_subtype(parent, &condition.node.on.node) => {
                    let place = collected.narrower.entry(&condition.node.on.node);
                    place.or_insert_with(|| (condition, Vec::new())).1.push(set);
                }
                _ => self.collect(parent, set, collected),
            }
        }
    }

    fn field(&self, parent: &str, field: &Field, sets: &[&'a SelectionSet]) -> Field {
        let arguments = field.arguments.iter().filter_map(|(name, value)| {
            Some((
                name.clone(),
                value.position_node(self.names.without_undefined(&value.node)?),
            ))
        });
        let set = &field.selection_set;
        let selected = if set.node.items.is_empty() {
            SelectionSet::default()
        } else {
            self.set(self.shape.field_type(parent, &field.name.node), sets)
        };
        Field {
            alias: field.alias.clone(),
            name: field.name.clone(),
            arguments: arguments.collect(),
            directives: Vec::new(),
            selection_set: set.position_node(selected),
        }
    }
}

/// A placeholder field, so that an object without selected fields is not taken for null. It is not
/// part of the response.
fn placeholder() -> Positioned<Selection> {
    let here = |name| Positioned::new(Name::new(name), Pos::default());
    let field = Field {
        alias: Some(here(PLACEHOLDER_KEY)),
        name: here("__typename"),
        arguments: Vec::new(),
        directives: Vec::new(),
        selection_set: Positioned::new(SelectionSet::default(), Pos::default()),
    };
    Positioned::new(
        Selection::Field(Positioned::new(field, Pos::default())),
        Pos::default(),
    )
}
