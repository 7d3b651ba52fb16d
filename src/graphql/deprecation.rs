//! Deprecated elements of the schema that an operation uses, reported in `extensions.deprecations`
//! of the response. If nothing in the schema is deprecated, documents are not searched.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_graphql::parser::Positioned;
use async_graphql::parser::types::{
    ConstDirective, ExecutableDocument, Field, InputValueDefinition, Selection, SelectionSet,
    TypeKind, TypeSystemDefinition,
};
use async_graphql::{Name, Value, Variables};
use async_graphql_value::Value as Literal;
use serde::Serialize;

use super::null_propagation::{base_name, operation_named, root_type};

/// Largest number of deprecations in a response.
const MAX_REPORTED: usize = 20;

/// A deprecated element that an operation uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deprecation {
    /// The schema coordinate: `Type.field`, `Type.field(argument:)`, `Input.field` or `Enum.VALUE`.
    pub coordinate: String,
    /// The reason, and what to use instead.
    pub reason: String,
}

/// The deprecated elements of a schema, and the types that lead to them.
#[derive(Default)]
pub struct Deprecations {
    /// The reason, by schema coordinate.
    reasons: HashMap<String, String>,
    types: HashMap<Name, TypeMembers>,
}

enum TypeMembers {
    /// Of an object or interface: the type of each field, and its arguments.
    Fields(HashMap<Name, (Name, InputTypes)>),
    /// Of an input object.
    Inputs(InputTypes),
    /// Of an enum: found by their coordinates alone.
    Values,
}

/// The type of each argument or input field.
type InputTypes = HashMap<Name, Name>;

impl Deprecations {
    /// Reads the SDL of a schema.
    pub fn of(sdl: &str) -> Self {
        let document = async_graphql::parser::parse_schema(sdl)
            .map(|it| it.definitions)
            .unwrap_or_default();
        let mut all = Self::default();
        for definition in document {
            let TypeSystemDefinition::Type(definition) = definition else {
                continue;
            };
            let name = definition.node.name.node;
            let members = match definition.node.kind {
                TypeKind::Object(object) => all.fields(&name, object.fields),
                TypeKind::Interface(interface) => all.fields(&name, interface.fields),
                TypeKind::InputObject(input) => TypeMembers::Inputs(
                    all.inputs(&input.fields, |field| format!("{name}.{field}")),
                ),
                TypeKind::Enum(kind) => {
                    for value in kind.values {
                        all.record(&value.node.directives, || {
                            format!("{name}.{}", value.node.value.node)
                        });
                    }
                    TypeMembers::Values
                }
                TypeKind::Scalar | TypeKind::Union(_) => continue,
            };
            all.types.insert(name, members);
        }
        if all.reasons.is_empty() {
            Self::default()
        } else {
            all
        }
    }

    fn fields(
        &mut self,
        parent: &Name,
        fields: Vec<Positioned<async_graphql::parser::types::FieldDefinition>>,
    ) -> TypeMembers {
        let fields = fields.into_iter().map(|field| {
            let (field, name) = (field.node.clone(), field.node.name.node);
            self.record(&field.directives, || format!("{parent}.{name}"));
            let inputs = self.inputs(&field.arguments, |argument| {
                format!("{parent}.{name}({argument}:)")
            });
            (name, (Name::new(base_name(&field.ty.node.base)), inputs))
        });
        TypeMembers::Fields(fields.collect())
    }

    fn inputs(
        &mut self,
        inputs: &[Positioned<InputValueDefinition>],
        at: impl Fn(&Name) -> String,
    ) -> InputTypes {
        let inputs = inputs.iter().map(|input| {
            let name = &input.node.name.node;
            self.record(&input.node.directives, || at(name));
            (name.clone(), Name::new(base_name(&input.node.ty.node.base)))
        });
        inputs.collect()
    }

    fn record(
        &mut self,
        directives: &[Positioned<ConstDirective>],
        coordinate: impl Fn() -> String,
    ) {
        let Some(deprecated) = directives
            .iter()
            .find(|directive| directive.node.name.node == "deprecated")
        else {
            return;
        };
        let reason = match deprecated
            .node
            .get_argument("reason")
            .map(|reason| &reason.node)
        {
            Some(Value::String(reason)) => reason.clone(),
            _ => "No longer supported".to_owned(),
        };
        self.reasons.insert(coordinate(), reason);
    }

    /// The deprecated elements that an operation uses, each once, in the order of the document, up
    /// to `MAX_REPORTED`.
    pub fn find_used(
        &self,
        document: &ExecutableDocument,
        operation: Option<&str>,
        variables: &Variables,
    ) -> Arc<[Deprecation]> {
        let operation = if self.reasons.is_empty() {
            None
        } else {
            operation_named(document, operation)
        };
        let Some(operation) = operation else {
            return Arc::default();
        };
        let defaults = operation
            .variable_definitions
            .iter()
            .filter_map(|definition| {
                let (name, default) = (
                    &definition.node.name.node,
                    definition.node.default_value.as_ref()?,
                );
                Some((name, &default.node))
            });
        let mut walk = DeprecationVisitor {
            deprecations: self,
            document,
            variables: defaults.chain(variables.iter()).collect(),
            visited: HashSet::new(),
            found: Vec::new(),
        };
        walk.selection_set(root_type(operation.ty), &operation.selection_set.node);
        walk.found.into()
    }
}

struct DeprecationVisitor<'a> {
    deprecations: &'a Deprecations,
    document: &'a ExecutableDocument,
    variables: HashMap<&'a Name, &'a Value>,
    /// Fragments that were visited; a second visit would find nothing new.
    visited: HashSet<&'a Name>,
    found: Vec<Deprecation>,
}

impl<'a> DeprecationVisitor<'a> {
    fn selection_set(&mut self, parent: &'a str, set: &'a SelectionSet) {
        for selection in &set.items {
            match &selection.node {
                Selection::Field(field) => self.field(parent, &field.node),
                Selection::InlineFragment(fragment) => {
                    let condition = fragment.node.type_condition.as_ref();
                    let parent =
                        condition.map_or(parent, |condition| condition.node.on.node.as_str());
                    self.selection_set(parent, &fragment.node.selection_set.node);
                }
                Selection::FragmentSpread(spread) => {
                    let fragment = self
                        .document
                        .fragments
                        .get_key_value(&spread.node.fragment_name.node);
                    if let Some((name, fragment)) = fragment
                        && self.visited.insert(name)
                    {
                        let parent = fragment.node.type_condition.node.on.node.as_str();
                        self.selection_set(parent, &fragment.node.selection_set.node);
                    }
                }
            }
        }
    }

    fn field(&mut self, parent: &'a str, field: &'a Field) {
        let name = &field.name.node;
        let Some(TypeMembers::Fields(fields)) = self.deprecations.types.get(parent) else {
            return;
        };
        let Some((ty, inputs)) = fields.get(name) else {
            return;
        };
        self.report(format!("{parent}.{name}"));
        for (argument, value) in &field.arguments {
            self.report(format!("{parent}.{name}({}:)", argument.node));
            if let Some(ty) = inputs.get(&argument.node) {
                self.literal(ty, &value.node);
            }
        }
        self.selection_set(ty, &field.selection_set.node);
    }

    /// A literal in the document, which can contain variables.
    fn literal(&mut self, ty: &Name, value: &'a Literal) {
        match value {
            Literal::Variable(name) => {
                if let Some(value) = self.variables.get(name).copied() {
                    self.value(ty, value);
                }
            }
            Literal::List(items) => items.iter().for_each(|item| self.literal(ty, item)),
            Literal::Object(fields) => self.members(ty, fields.iter(), Self::literal),
            Literal::Enum(name) => self.report(format!("{ty}.{name}")),
            _ => {}
        }
    }

    /// The value of a variable, in which enum values are strings.
    fn value(&mut self, ty: &Name, value: &'a Value) {
        match value {
            Value::List(items) => items.iter().for_each(|item| self.value(ty, item)),
            Value::Object(fields) => self.members(ty, fields.iter(), Self::value),
            Value::Enum(name) => self.report(format!("{ty}.{name}")),
            Value::String(name)
                if matches!(self.deprecations.types.get(ty), Some(TypeMembers::Values)) =>
            {
                self.report(format!("{ty}.{name}"));
            }
            _ => {}
        }
    }

    fn members<V: 'a>(
        &mut self,
        ty: &Name,
        fields: impl Iterator<Item = (&'a Name, &'a V)>,
        go_on: fn(&mut Self, &Name, &'a V),
    ) {
        let Some(TypeMembers::Inputs(inputs)) = self.deprecations.types.get(ty) else {
            return;
        };
        for (name, value) in fields {
            self.report(format!("{ty}.{name}"));
            if let Some(ty) = inputs.get(name) {
                go_on(self, ty, value);
            }
        }
    }

    fn report(&mut self, coordinate: String) {
        let Some(reason) = self.deprecations.reasons.get(&coordinate) else {
            return;
        };
        if self.found.len() < MAX_REPORTED
            && self
                .found
                .iter()
                .all(|found| found.coordinate != coordinate)
        {
            self.found.push(Deprecation {
                coordinate,
                reason: reason.clone(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;
    use serde_json::json;

    use super::*;

    const SDL: &str = r#"
        type Query { tasks(first: Int, limit: Int @deprecated(reason: "Use `first`."), filter: Filter): [Task!]! }
        type Mutation { move(input: [MoveInput!]!): Task }
        type Subscription { moved: Task @deprecated(reason: "Use `events`.") }
        interface Named { name: String @deprecated(reason: "Use `title`.") }
        type Task implements Named { name: String @deprecated(reason: "Use `title`.") title: String parent: Task }
        input Filter { state: State @deprecated status: [State!] inner: Filter text: String }
        input MoveInput { id: ID! to: State }
        enum State { OPEN STUCK @deprecated(reason: "Use OPEN.") }
    "#;

    fn used(document: &str, variables: serde_json::Value) -> Vec<String> {
        let variables = Variables::from_json(variables);
        let document = parse_query(document).expect("a document");
        let found = Deprecations::of(SDL);
        found
            .find_used(&document, Some("Op"), &variables)
            .iter()
            .map(|found| found.coordinate.clone())
            .collect()
    }

    #[test]
    fn fields_are_found_by_every_way_that_leads_to_them() {
        assert_eq!(used("query Op { tasks { title } }", json!({})), [""; 0]);
        assert_eq!(
            used(
                "query Op { tasks { name a: name parent { name } } }",
                json!({})
            ),
            ["Task.name"]
        );
        assert_eq!(
            used("query Op { tasks { ... on Named { name } } }", json!({})),
            ["Named.name"]
        );
        let fragments = "query Op { tasks { ...F ...F } } fragment F on Task { parent { ...G } } \
                         fragment G on Task { name } fragment H on Named { name }";
        assert_eq!(used(fragments, json!({})), ["Task.name"]);
        assert_eq!(
            used("subscription Op { moved { title } }", json!({})),
            ["Subscription.moved"]
        );
        let two = "query Other { tasks { name } } query Op { tasks { title } }";
        assert_eq!(
            used(two, json!({})),
            [""; 0],
            "only the executed operation counts"
        );
    }

    #[test]
    fn arguments_input_fields_and_enum_values_are_found_written_out_and_in_variables() {
        assert_eq!(
            used("query Op { tasks(limit: 1) { title } }", json!({})),
            ["Query.tasks(limit:)"]
        );
        let written =
            "query Op { tasks(filter: { inner: { state: STUCK, text: \"STUCK\" } }) { title } }";
        assert_eq!(used(written, json!({})), ["Filter.state", "State.STUCK"]);
        let filter = "query Op($f: Filter) { tasks(filter: $f) { title } }";
        assert_eq!(
            used(
                filter,
                json!({ "f": { "status": ["OPEN", "STUCK"], "text": "STUCK" } })
            ),
            ["State.STUCK"]
        );
        assert_eq!(
            used(filter, json!({ "f": { "inner": { "state": null } } })),
            ["Filter.state"]
        );
        assert_eq!(used(filter, json!({})), [""; 0]);
        let inside = "query Op($s: [State!] = [STUCK]) { tasks(filter: { status: $s }) { title } }";
        assert_eq!(used(inside, json!({})), ["State.STUCK"]);
        assert_eq!(used(inside, json!({ "s": ["OPEN"] })), [""; 0]);
        let list = "mutation Op($to: State) { move(input: [{ id: 1, to: OPEN }, { id: 2, to: $to }]) { title } }";
        assert_eq!(used(list, json!({ "to": "STUCK" })), ["State.STUCK"]);
    }

    #[test]
    fn each_has_its_reason_and_there_are_not_too_many() {
        let document = parse_query("query Op { tasks(filter: { state: STUCK }) { name } }")
            .expect("a document");
        let found = Deprecations::of(SDL).find_used(&document, Some("Op"), &Variables::default());
        let reasons: Vec<&str> = found.iter().map(|found| found.reason.as_str()).collect();
        assert_eq!(
            reasons,
            ["No longer supported", "Use OPEN.", "Use `title`."]
        );

        let fields: String = (0..30)
            .map(|number| format!(" f{number}: Int @deprecated"))
            .collect();
        let asked: String = (0..30).map(|number| format!(" f{number}")).collect();
        let document = parse_query(format!("{{{asked} }}")).expect("a document");
        let all = Deprecations::of(&format!("type Query {{{fields} }}"));
        assert_eq!(
            all.find_used(&document, None, &Variables::default()).len(),
            MAX_REPORTED
        );
    }

    #[test]
    fn the_library_writes_into_the_sdl_what_resolvers_say() {
        struct Query;
        #[async_graphql::Object]
        impl Query {
            #[graphql(deprecation = "Use `all`.")]
            async fn some(
                &self,
                #[graphql(deprecation = "Say nothing.")] first: Option<i32>,
            ) -> i32 {
                first.unwrap_or_default()
            }
        }
        let schema = async_graphql::Schema::new(
            Query,
            async_graphql::EmptyMutation,
            async_graphql::EmptySubscription,
        );
        let document = parse_query("{ some(first: 1) }").expect("a document");
        let found =
            Deprecations::of(&schema.sdl()).find_used(&document, None, &Variables::default());
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.coordinate.as_str(), it.reason.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("Query.some", "Use `all`."),
                ("Query.some(first:)", "Say nothing.")
            ]
        );
    }

    #[test]
    fn what_no_type_has_is_left_to_validation() {
        let unknown = "query Op { tasks(more: STUCK, filter: { more: STUCK }) { more { name } } none { name } }";
        assert_eq!(used(unknown, json!({})), [""; 0]);
        let nothing = Deprecations::of("type Query { a: Int }");
        assert!(
            nothing.types.is_empty(),
            "nothing is kept and nothing searched"
        );
    }
}
