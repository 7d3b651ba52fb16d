//! Field merging (GraphQL specification, section 5.3.2): finds fields with the same response key
//! that cannot be merged into one.
//!
//! async-graphql compares fields only within one selection set and under one type condition. Here
//! all fields that meet in a response are compared. Unlike in the specification, fields of
//! different types may differ in nullability: the `task` of events does, and clients select it on
//! several event types at once. The merged field is nullable if any of them is.
//!
//! Admission has limited the fields of the document with its fragments expanded; each is visited at
//! most once for each type on which it can meet others.

use std::collections::HashMap;

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::Positioned;
use async_graphql::parser::types::{
    BaseType, ExecutableDocument, Field, FragmentDefinition, Selection, SelectionSet, Type,
};
use async_graphql::{Name, Pos};

use super::null_propagation::{SchemaIndex, TypedSet, operation_named, root_type};

/// Two fields that cannot be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldConflict {
    pub message: String,
    /// Position of the second field.
    pub position: Pos,
}

/// Checks that the fields of an operation can be merged.
pub fn check(
    shape: &SchemaIndex,
    document: &ExecutableDocument,
    name: Option<&str>,
) -> Result<(), FieldConflict> {
    let Some(operation) = operation_named(document, name) else {
        return Ok(());
    };
    let sets = vec![(root_type(operation.ty), &operation.selection_set.node)];
    MergeChecker {
        shape,
        fragments: &document.fragments,
    }
    .check_sets(sets, true)
}

struct MergeChecker<'a> {
    shape: &'a SchemaIndex,
    fragments: &'a HashMap<Name, Positioned<FragmentDefinition>>,
}

/// A field, with the type that declares it.
#[derive(Clone, Copy)]
struct ScopedField<'a> {
    parent: &'a str,
    field: &'a Positioned<Field>,
}

impl<'a> MergeChecker<'a> {
    /// Checks selection sets that meet in one place of the response, on one object or on one of
    /// several.
    fn check_sets(&self, sets: Vec<TypedSet<'a>>, is_one: bool) -> Result<(), FieldConflict> {
        let mut groups = IndexMap::new();
        sets.into_iter()
            .for_each(|(parent, set)| self.group_by_key(parent, set, &mut groups));
        for members in groups.into_values() {
            self.check_all(
                &members,
                |one, other| self.same_response_shape(one, other),
                "they return conflicting types",
            )?;
            if !is_one {
                self.check_sets(self.subselections(&members), false)?;
                continue;
            }
            let meeting = self.overlapping(&members);
            for members in &meeting {
                self.check_all(
                    members,
                    same_field,
                    "they are different fields or have different arguments",
                )?;
                self.check_sets(self.subselections(members), true)?;
            }
            if meeting.len() > 1 {
                self.check_sets(self.subselections(&members), false)?;
            }
        }
        Ok(())
    }

    fn group_by_key(
        &self,
        parent: &'a str,
        set: &'a SelectionSet,
        groups: &mut IndexMap<&'a str, Vec<ScopedField<'a>>>,
    ) {
        for selection in &set.items {
            match &selection.node {
                Selection::Field(field) => {
                    let members = groups
                        .entry(field.node.response_key().node.as_str())
                        .or_default();
                    members.push(ScopedField { parent, field });
                }
                Selection::InlineFragment(fragment) => {
                    let condition = fragment.node.type_condition.as_ref();
                    let parent =
                        condition.map_or(parent, |condition| condition.node.on.node.as_str());
                    self.group_by_key(parent, &fragment.node.selection_set.node, groups);
                }
                Selection::FragmentSpread(spread) => {
                    if let Some(fragment) = self.fragments.get(&spread.node.fragment_name.node) {
                        let parent = fragment.node.type_condition.node.on.node.as_str();
                        self.group_by_key(parent, &fragment.node.selection_set.node, groups);
                    }
                }
            }
        }
    }

    /// Groups fields of one key by object type. Fields of interfaces belong to every group.
    fn overlapping(&self, members: &[ScopedField<'a>]) -> Vec<Vec<ScopedField<'a>>> {
        let mut types: Vec<&str> = members.iter().map(|member| member.parent).collect();
        types.retain(|parent| self.shape.is_object(parent));
        types.sort_unstable();
        types.dedup();
        if types.len() < 2 {
            return vec![members.to_vec()];
        }
        let of = |name: &str| {
            let meet = |member: &&ScopedField| {
                member.parent == name || !self.shape.is_object(member.parent)
            };
            members.iter().filter(meet).copied().collect()
        };
        types.into_iter().map(of).collect()
    }

    /// Checks an equivalence relation between the first field and each other one, and so between
    /// any two.
    fn check_all(
        &self,
        members: &[ScopedField<'a>],
        holds: impl Fn(ScopedField<'a>, ScopedField<'a>) -> bool,
        why: &str,
    ) -> Result<(), FieldConflict> {
        let Some((first, rest)) = members.split_first() else {
            return Ok(());
        };
        match rest.iter().find(|other| !holds(*first, **other)) {
            None => Ok(()),
            Some(other) => {
                let key = &other.field.node.response_key().node;
                let message =
                    format!("Fields \"{key}\" conflict because {why}. Use different aliases.");
                Err(FieldConflict {
                    message,
                    position: other.field.pos,
                })
            }
        }
    }

    fn subselections(&self, members: &[ScopedField<'a>]) -> Vec<TypedSet<'a>> {
        let inner = members.iter().map(|ScopedField { parent, field }| {
            let Field {
                name,
                selection_set,
                ..
            } = &field.node;
            (
                self.shape.field_type(parent, &name.node),
                &selection_set.node,
            )
        });
        inner.filter(|(_, set)| !set.items.is_empty()).collect()
    }

    /// Whether two fields return compatible types, apart from what is selected on them.
    fn same_response_shape(&self, one: ScopedField<'a>, other: ScopedField<'a>) -> bool {
        let is_leaf =
            |member: ScopedField<'a>| member.field.node.selection_set.node.items.is_empty();
        let ty = |member: ScopedField<'a>| {
            self.shape
                .field(member.parent, &member.field.node.name.node)
        };
        is_leaf(one) == is_leaf(other)
            && ty(one)
                .zip(ty(other))
                .is_none_or(|(ty, other)| same_type_shape(ty, other, is_leaf(one)))
    }
}

fn same_type_shape(one: &Type, other: &Type, is_leaf: bool) -> bool {
    match (&one.base, &other.base) {
        (BaseType::List(one), BaseType::List(other)) => {
            one.nullable == other.nullable && same_type_shape(one, other, is_leaf)
        }
        (BaseType::Named(one), BaseType::Named(other)) => one == other || !is_leaf,
        _ => false,
    }
}

fn same_field(one: ScopedField<'_>, other: ScopedField<'_>) -> bool {
    let (one, other) = (&one.field.node, &other.field.node);
    let has = |(name, value): &(Positioned<Name>, _)| other.get_argument(&name.node) == Some(value);
    std::ptr::eq(one, other)
        || (one.name.node == other.name.node
            && one.arguments.len() == other.arguments.len()
            && one.arguments.iter().all(has))
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;

    use super::*;

    const SDL: &str = "type Query { pet(id: Int, of: In): Pet dog(id: Int): Dog cats: [Cat!]! }
        interface Pet { name: String! friend: Pet }
        type Dog implements Pet { name: String! friend: Pet age: Int owner: Dog! size: Int toys: [Dog!]! }
        type Cat implements Pet { name: String! friend: Pet age: Int! owner: Cat size: String toys: [Cat] lives: Int }";

    fn conflict(document: &str) -> Option<String> {
        let document = parse_query(document).expect("a document");
        check(&SchemaIndex::of(SDL), &document, None)
            .err()
            .map(|conflict| conflict.message)
    }

    #[test]
    fn fields_that_may_be_of_one_object_are_one_field() {
        for document in [
            "{ pet { name name ... on Dog { name } ... { name } ...F } } fragment F on Pet { name }",
            "{ dog(id: 1) { name } ...F } fragment F on Query { dog(id: 1) { age } }",
            "{ pet(of: { a: 1, b: [$v] }, id: 2) { name } ... { pet(id: 2, of: { b: [$v], a: 1 }) { name } } }",
            "{ pet { ... on Dog { a: age } ... on Cat { a: lives } } }",
            "{ pet { ... on Dog { a: friend { a: name } } ... on Cat { a: owner { a: name } } } }",
            "{ __schema { types { ...F name } } } fragment F on __Type { name fields { name } }",
        ] {
            assert_eq!(conflict(document), None, "{document}");
        }
        for document in [
            "{ dog { a: age a: size } }",
            "{ dog(id: 1) { name } ... on Query { dog(id: 2) { name } } }",
            "{ dog(id: 1) { name } ... on Query { dog { name } } }",
            "{ dog(id: $a) { name } ... on Query { dog(id: $b) { name } } }",
            "{ dog { owner { a: age } } ...F } fragment F on Query { dog { owner { a: size } } }",
            "{ pet { a: name ... on Dog { friend { name } a: nick } } }",
            "{ pet { friend { a: name } ... on Dog { friend { ... on Cat { a: size } } } } }",
            "{ pet { ... on Dog { friend { name } } friend { ... on Dog { a: age } }
                ... on Cat { friend { ... on Dog { a: size } } } } }",
        ] {
            let message = conflict(document).unwrap_or_else(|| panic!("{document}"));
            assert!(
                message.contains("different fields"),
                "{document}: {message}"
            );
        }
    }

    #[test]
    fn fields_of_different_objects_have_one_shape() {
        for document in [
            "{ pet { ... on Dog { age owner { name } } ... on Cat { age owner { name } } } }",
            "{ pet { ... on Dog { a: size } ... on Cat { a: lives } } }",
        ] {
            assert_eq!(
                conflict(document),
                None,
                "nullability may differ: {document}"
            );
        }
        for document in [
            "{ pet { ... on Dog { size } ... on Cat { size } } }",
            "{ pet { ... on Dog { a: owner { name } } ... on Cat { a: name } } }",
            "{ pet { ... on Dog { a: owner { name } } ... on Cat { a: toys { name } } } }",
            "{ pet { ... on Dog { toys { name } } ... on Cat { toys { name } } } }",
            "{ pet { ... on Dog { owner { a: size } } ... on Cat { owner { a: size } } } }",
        ] {
            let message = conflict(document).unwrap_or_else(|| panic!("{document}"));
            assert!(
                message.contains("conflicting types"),
                "{document}: {message}"
            );
        }
    }
}
