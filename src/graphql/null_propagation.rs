//! Completes a response as the GraphQL specification requires: a failed field is null, a null that
//! its type does not allow propagates to the parent (section 6.4.4), and fields are in the order of
//! the query (section 7.2.2).
//!
//! async-graphql since 7.1 omits a failed field from its object, whatever its type, and writes
//! fields in the order in which they were resolved. Its errors carry their paths, which suffices to
//! correct both here.

use std::collections::HashMap;

use async_graphql::indexmap::IndexMap;
use async_graphql::indexmap::map::Entry;
use async_graphql::parser::types::{
    BaseType, DocumentOperations, ExecutableDocument, OperationDefinition, OperationType,
    Selection, SelectionSet, Type, TypeKind, TypeSystemDefinition,
};
use async_graphql::{Name, PathSegment, Response, Value};

use super::ExecutionHints;

/// The object and interface types of the schema.
pub struct SchemaIndex(HashMap<Name, TypeInfo>);

struct TypeInfo {
    fields: HashMap<Name, Type>,
    /// The implemented interfaces; `None` for an interface.
    interfaces: Option<Vec<Name>>,
}

impl SchemaIndex {
    /// Reads the types from the SDL.
    pub fn of(sdl: &str) -> Self {
        let document = async_graphql::parser::parse_schema(sdl)
            .map(|document| document.definitions)
            .unwrap_or_default();
        let types = document.into_iter().filter_map(|definition| {
            let TypeSystemDefinition::Type(definition) = definition else {
                return None;
            };
            let definition = definition.node;
            let (fields, interfaces) = match definition.kind {
                TypeKind::Object(object) => (object.fields, Some(object.implements)),
                TypeKind::Interface(interface) => (interface.fields, None),
                _ => return None,
            };
            let fields = fields
                .into_iter()
                .map(|field| (field.node.name.node, field.node.ty.node))
                .collect();
            let interfaces =
                interfaces.map(|names| names.into_iter().map(|name| name.node).collect());
            Some((definition.name.node, TypeInfo { fields, interfaces }))
        });
        Self(types.collect())
    }

    pub(super) fn field(&self, parent: &str, name: &str) -> Option<&Type> {
        self.0.get(parent)?.fields.get(name)
    }

    /// The named type of a field, inside any lists; empty for introspection, which the SDL does not
    /// contain.
    pub(super) fn field_type(&self, parent: &str, name: &str) -> &str {
        self.field(parent, name)
            .map_or("", |ty| base_name(&ty.base))
    }

    /// Whether this is an object type, as all types of introspection are.
    pub(super) fn is_object(&self, name: &str) -> bool {
        self.0
            .get(name)
            .is_none_or(|kind| kind.interfaces.is_some())
    }

    /// Whether every object of type `name` is also of type `other`.
    pub(super) fn is_subtype(&self, name: &str, other: &str) -> bool {
        let implements = |kind: &TypeInfo| {
            kind.interfaces
                .iter()
                .flatten()
                .any(|interface| interface == other)
        };
        name == other || self.0.get(name).is_none_or(implements)
    }

    /// The plan of the response to an operation.
    pub fn plan<'a>(
        &'a self,
        document: &'a ExecutableDocument,
        operation: Option<&str>,
    ) -> CompletionPlan<'a> {
        let set = operation_named(document, operation)
            .map(|operation| (root_type(operation.ty), &operation.selection_set.node));
        CompletionPlanner {
            shape: self,
            document,
        }
        .plan(set.as_slice())
    }
}

/// The operation with this name, or the only one.
pub fn operation_named<'a>(
    document: &'a ExecutableDocument,
    name: Option<&str>,
) -> Option<&'a OperationDefinition> {
    match &document.operations {
        DocumentOperations::Single(operation) => Some(&operation.node),
        DocumentOperations::Multiple(operations) => Some(&operations.get(name?)?.node),
    }
}

/// The root type of an operation.
pub const fn root_type(operation: OperationType) -> &'static str {
    match operation {
        OperationType::Query => "Query",
        OperationType::Mutation => "Mutation",
        OperationType::Subscription => "Subscription",
    }
}

/// Marks a failed value until the plan is applied. No enum has a value of this name.
const FAILURE_MARKER: &str = "\0";

/// Marks the value at the path of an error as failed. An object of which every field failed is null
/// as a whole; it is restored.
fn mark_failure(data: &mut Value, path: &[PathSegment]) {
    let mut value = data;
    for segment in path {
        value = match segment {
            PathSegment::Field(key) => {
                if *value == Value::Null {
                    *value = Value::Object(IndexMap::new());
                }
                let Value::Object(fields) = value else { return };
                fields.entry(Name::new(key)).or_insert(Value::Null)
            }
            PathSegment::Index(index) => {
                let Value::List(items) = value else { return };
                let Some(item) = items.get_mut(*index) else {
                    return;
                };
                item
            }
        };
    }
    if !path.is_empty() && *value == Value::Null {
        *value = Value::Enum(Name::new(FAILURE_MARKER));
    }
}

/// A selection set, with the type that declares its fields.
pub(super) type TypedSet<'a> = (&'a str, &'a SelectionSet);

/// Everything that is selected on one object, in all places.
#[derive(Default)]
struct ObjectSelection<'a> {
    /// By response key: the type of the field and its selection sets from all places.
    fields: IndexMap<&'a str, (Option<&'a Type>, Vec<TypedSet<'a>>)>,
    /// At least one field is selected regardless of types and directives.
    is_unconditional: bool,
    /// At least one field is selected in several places.
    is_repeated: bool,
}

struct CompletionPlanner<'a> {
    shape: &'a SchemaIndex,
    document: &'a ExecutableDocument,
}

impl<'a> CompletionPlanner<'a> {
    fn plan(&self, sets: &[TypedSet<'a>]) -> CompletionPlan<'a> {
        let mut collected = ObjectSelection::default();
        for (parent, set) in sets {
            self.collect(parent, set, true, &mut collected);
        }
        let ObjectSelection {
            fields,
            is_unconditional: is_sure,
            is_repeated,
        } = collected;
        let fields = fields.into_iter().map(|(key, (ty, sets))| {
            let plan = self.plan(&sets);
            PlannedField {
                key,
                ty,
                is_merged: sets.len() > 1 || plan.is_merged(),
                plan,
            }
        });
        let fields: Vec<PlannedField> = fields.collect();
        let inside = || fields.iter().all(|field| field.plan.as_written);
        let as_written = sets.is_empty() || (is_sure && !is_repeated && inside());
        CompletionPlan { fields, as_written }
    }

    fn collect(
        &self,
        parent: &'a str,
        set: &'a SelectionSet,
        is_sure: bool,
        collected: &mut ObjectSelection<'a>,
    ) {
        for selection in &set.items {
            let is_sure = is_sure && selection.node.directives().is_empty();
            let (condition, set) = match &selection.node {
                Selection::Field(field) => {
                    let (key, name) = (
                        field.node.response_key().node.as_str(),
                        field.node.name.node.as_str(),
                    );
                    let ty = self.shape.field(parent, name);
                    let place = collected.fields.entry(key);
                    collected.is_repeated |= matches!(place, Entry::Occupied(_));
                    let (stored, sets) = place.or_insert_with(|| (ty, Vec::new()));
                    // The types of an interface may differ in nullability: nullable if any of them
                    // is.
                    if ty.is_some_and(|ty| ty.nullable) {
                        *stored = ty;
                    }
                    if !field.node.selection_set.node.items.is_empty() {
                        sets.push((
                            self.shape.field_type(parent, name),
                            &field.node.selection_set.node,
                        ));
                    }
                    collected.is_unconditional |= is_sure;
                    continue;
                }
                Selection::InlineFragment(fragment) => (
                    fragment.node.type_condition.as_ref(),
                    &fragment.node.selection_set.node,
                ),
                Selection::FragmentSpread(spread) => {
                    match self.document.fragments.get(&spread.node.fragment_name.node) {
                        Some(fragment) => (
                            Some(&fragment.node.type_condition),
                            &fragment.node.selection_set.node,
                        ),
                        None => continue,
                    }
                }
            };
            let narrower = condition.map_or(parent, |condition| condition.node.on.node.as_str());
            self.collect(
                narrower,
                set,
                is_sure && self.shape.is_subtype(parent, narrower),
                collected,
            );
        }
    }
}

/// The fields selected on an object, in the order of the query; none for a scalar.
pub struct CompletionPlan<'a> {
    fields: Vec<PlannedField<'a>>,
    /// Each field is selected in one place, and each object has at least one field regardless of
    /// types and directives.
    as_written: bool,
}

struct PlannedField<'a> {
    key: &'a str,
    ty: Option<&'a Type>,
    is_merged: bool,
    plan: CompletionPlan<'a>,
}

impl CompletionPlan<'_> {
    /// How the operation can be executed.
    pub fn hints(&self) -> ExecutionHints {
        ExecutionHints {
            can_batch: !self.is_merged(),
            has_single_root: self.fields.len() == 1,
            as_written: self.as_written,
        }
    }

    /// Whether fields of an object are selected in several places.
    fn is_merged(&self) -> bool {
        self.fields.iter().any(|field| field.is_merged)
    }

    /// Completes the response.
    pub fn complete(&self, response: &mut Response) {
        for error in &response.errors {
            mark_failure(&mut response.data, &error.path);
        }
        if let Value::Object(fields) = std::mem::take(&mut response.data) {
            response.data = self.object(fields).map_or(Value::Null, Value::Object);
        }
    }

    /// The object with its fields in order; `None` if a null propagates beyond it.
    fn object(&self, mut values: IndexMap<Name, Value>) -> Option<IndexMap<Name, Value>> {
        // Fields that resolve without waiting are in order already.
        let is_in_order = values.len() == self.fields.len()
            && values
                .keys()
                .zip(&self.fields)
                .all(|(key, field)| key.as_str() == field.key);
        if is_in_order {
            for (value, field) in values.values_mut().zip(&self.fields) {
                if !matches!(
                    value,
                    Value::String(_) | Value::Number(_) | Value::Boolean(_)
                ) {
                    *value = field.plan.value(field.ty, std::mem::take(value))?;
                }
            }
            return Some(values);
        }
        let mut completed = IndexMap::with_capacity(values.len());
        for field in &self.fields {
            // An absent field was skipped by a directive or is in a fragment on another type. A
            // field outside the plan is the placeholder that shows that the object exists.
            if let Some((key, value)) = values.swap_remove_entry(field.key) {
                completed.insert(key, field.plan.value(field.ty, value)?);
            }
        }
        Some(completed)
    }

    /// The value of a field; `None` if it is a null that the type does not allow.
    fn value(&self, ty: Option<&Type>, value: Value) -> Option<Value> {
        let completed = match value {
            Value::Null => None,
            Value::Enum(name) if name == FAILURE_MARKER => None,
            // A JSON scalar: its members are not selected fields.
            Value::Object(fields) if self.fields.is_empty() => Some(Value::Object(fields)),
            Value::Object(fields) => self.object(fields).map(Value::Object),
            Value::List(items) => {
                let item = ty.and_then(|ty| match &ty.base {
                    BaseType::List(item) => Some(&**item),
                    BaseType::Named(_) => None,
                });
                items
                    .into_iter()
                    .map(|value| self.value(item, value))
                    .collect::<Option<_>>()
                    .map(Value::List)
            }
            other => Some(other),
        };
        match completed {
            None if ty.is_none_or(|ty| ty.nullable) => Some(Value::Null),
            other => other,
        }
    }
}

/// The named type inside any lists.
pub(super) fn base_name(base: &BaseType) -> &str {
    match base {
        BaseType::Named(name) => name,
        BaseType::List(item) => base_name(&item.base),
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;
    use async_graphql::{ServerError, value};

    use super::super::collect::PLACEHOLDER_KEY;
    use super::*;

    const SDL: &str = "type Query { named: Named user: User users: [User!]! maybe: [User] must: User! any: JSON! }
        scalar JSON
        interface Named { name: String! }
        type User implements Named { name: String! email: String boss: User }
        type Guest implements Named { name: String! boss: User! }";

    fn completed(document: &str, data: Value, errors: &[&str]) -> String {
        let mut response = Response::new(data);
        response.errors = errors
            .iter()
            .map(|path| ServerError {
                path: path
                    .split('.')
                    .map(|part| {
                        part.parse().map_or_else(
                            |_| PathSegment::Field(part.to_owned()),
                            PathSegment::Index,
                        )
                    })
                    .collect(),
                ..ServerError::new("no", None)
            })
            .collect();
        let document = parse_query(document).expect("a document");
        SchemaIndex::of(SDL)
            .plan(&document, None)
            .complete(&mut response);
        serde_json::to_string(&response.data).expect("JSON")
    }

    #[test]
    fn fields_stand_in_the_order_of_the_query() {
        let document =
            "{ b: users { name } a: user { ...F email } } fragment F on Named { x: name }";
        let data = value!({ "a": { "email": "e", "x": "n" }, "b": [{ "name": "n" }] });
        assert_eq!(
            completed(document, data, &[]),
            r#"{"b":[{"name":"n"}],"a":{"x":"n","email":"e"}}"#
        );
    }

    #[test]
    fn what_is_selected_in_several_places_is_known() {
        let shape = SchemaIndex::of(SDL);
        let is_merged = |text| {
            let document = parse_query(text).expect("a document");
            shape.plan(&document, None).is_merged()
        };
        assert!(!is_merged(
            "{ user { name name ...F } users { name } } fragment F on User { email }"
        ));
        assert!(is_merged(
            "{ user { name } ...F } fragment F on Query { user { email } }"
        ));
        assert!(is_merged("{ user { boss { name } boss { email } } }"));
    }

    #[test]
    fn an_object_that_is_a_scalar_stays_as_it_is() {
        let data = value!({ "any": { "b": [{ "c": null }], "a": 1 } });
        assert_eq!(
            completed("{ any }", data, &[]),
            r#"{"any":{"b":[{"c":null}],"a":1}}"#
        );
    }

    #[test]
    fn a_nullable_field_that_failed_is_null() {
        let document = "{ user { name email } }";
        assert_eq!(
            completed(
                document,
                value!({ "user": { "name": "n" } }),
                &["user.email"]
            ),
            r#"{"user":{"name":"n","email":null}}"#
        );
        assert_eq!(
            completed(
                "{ user { email } }",
                value!({ "user": null }),
                &["user.email"]
            ),
            r#"{"user":{"email":null}}"#
        );
    }

    #[test]
    fn an_object_of_which_nothing_is_selected_is_empty() {
        let document = "{ users { ... on Other { name } } maybe { ... on Other { name } } }";
        let there = || {
            Value::Object(IndexMap::from([(
                Name::new(PLACEHOLDER_KEY),
                Value::from("User"),
            )]))
        };
        let data = value!({ "users": [(there()), (there())], "maybe": [null, (there())] });
        assert_eq!(
            completed(document, data, &[]),
            r#"{"users":[{},{}],"maybe":[null,{}]}"#
        );
    }

    #[test]
    fn what_may_be_nothing_is_not_executed_as_it_is_written() {
        let shape = SchemaIndex::of(SDL);
        let as_written = |text| {
            let document = parse_query(text).expect("a document");
            shape.plan(&document, None).hints().as_written
        };
        assert!(as_written(
            "{ user { name email @include(if: true) ...F } } fragment F on Named { x: name }"
        ));
        assert!(as_written(
            "{ __schema { types { ...F } } } fragment F on __Type { name }"
        ));
        assert!(!as_written("{ user { name @include(if: true) } }"));
        assert!(!as_written(
            "{ must { boss { ... on Named @skip(if: true) { name } } } }"
        ));
        assert!(!as_written("{ named { ... on User { name } } }"));
        assert!(!as_written("{ user @skip(if: true) { name } }"));
        assert!(!as_written("{ user { name } user { email } }"));
        assert!(!as_written("{ user { name ... { name } } }"));
    }

    #[test]
    fn a_null_that_one_type_allows_is_returned_as_null() {
        let data = || value!({ "named": { "boss": null } });
        let places = [
            "... on User { boss { name } }",
            "... on Guest { boss { name } }",
        ];
        for (one, other) in [(places[0], places[1]), (places[1], places[0])] {
            let document = format!("{{ named {{ {one} {other} }} }}");
            assert_eq!(
                completed(&document, data(), &[]),
                r#"{"named":{"boss":null}}"#
            );
        }
    }

    #[test]
    fn a_null_propagates_to_the_nearest_nullable_parent() {
        let user = value!({ "user": { "boss": { "email": "e" } } });
        assert_eq!(
            completed(
                "{ user { boss { name email } } }",
                user,
                &["user.boss.name"]
            ),
            r#"{"user":{"boss":null}}"#
        );
        let users = value!({ "users": [{ "name": "n" }, {}], "maybe": [{ "name": "n" }, {}] });
        let document = "{ maybe { name } users { name } }";
        assert_eq!(
            completed(document, users.clone(), &["maybe.1.name"]),
            r#"{"maybe":[{"name":"n"},null],"users":[{"name":"n"},{}]}"#
        );
        assert_eq!(completed(document, users, &["users.1.name"]), "null");
        assert_eq!(
            completed("{ must { name } }", value!({}), &["must"]),
            "null"
        );
    }
}
