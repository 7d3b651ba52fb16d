//! Batch resolution: resolves a selection for many objects at once, level by level, straight into
//! JSON.
//!
//! async-graphql creates a future for each field of each object and a tree of their values, which
//! is most of the work for a page of fifty. Here a selection is planned once for all objects of a
//! level: inline fields are written from the object itself, batch fields (`assignee`, `comments`)
//! are loaded for all objects together.
//!
//! This is a fast path beside async-graphql's executor, not a second executor. It takes a selection
//! as a whole or not at all, supports only fields without guards, and responds only if nothing
//! fails. Everything else is left to async-graphql, which responds as the schema requires. The
//! exceptions are errors that the slow path would repeat: an unavailable database and a response
//! that is too large.
//!
//! An object that many others refer to is loaded once but written for each of them, so the output
//! can be far larger than the input: all bytes are counted before they are copied.

use std::borrow::Cow;
use std::future::ready;
use std::ops::Range;

use async_graphql::parser::types::{
    ExecutableDocument, Field, InlineFragment, OperationDefinition, Selection, SelectionSet,
};
use async_graphql::registry::Registry;
use async_graphql::{
    Context, ContextBase, ContextSelectionSet, InputType, OutputType, Pos, Positioned,
    ServerResult, Value, Variables,
};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join_all};

use super::RequestContext;
use super::collect::{OperationEnv, PLACEHOLDER_KEY};
use super::json::{self, WriteJson};
use super::loader::Load;
use crate::error::{Error, Result};
use crate::id::Id;

/// An object type that supports batch resolution.
pub trait BatchObject: OutputType + Clone + 'static {
    /// Whether the type implements `Node`.
    const IS_NODE: bool;

    /// How to resolve a field; `None` leaves it to async-graphql.
    fn resolver<'a>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, Self>>;
}

/// How to resolve a field.
pub enum FieldResolver<'a, T> {
    /// Inline field: written from the object itself.
    Inline(fn(&T, &RequestContext, &mut Vec<u8>) -> Result<()>),
    /// Batch field: loaded for all objects together.
    Batch(Box<dyn BatchField<T> + 'a>),
}

/// A batch field.
pub trait BatchField<T>: Send + Sync {
    /// The JSON of the field for each of the objects.
    fn resolve<'r>(
        &'r self,
        objects: &'r [T],
        caller: &'r RequestContext,
    ) -> BoxFuture<'r, Result<JsonFragments>>;
}

/// An inline field: an expression of the object and, where needed, the request context.
#[macro_export]
#[doc(hidden)]
macro_rules! inline {
    (|$object:ident| $value:expr) => {
        $crate::inline!(|$object, _caller| $value)
    };
    (|$object:ident, $caller:ident| $value:expr) => {
        $crate::graphql::batch::FieldResolver::Inline(|$object, $caller, out| {
            $crate::graphql::json::WriteJson::write(&$value, out);
            Ok(())
        })
    };
}

/// Bytes that count towards the response until this is dropped.
#[derive(Default)]
struct CountedBytes {
    caller: Option<RequestContext>,
    bytes: usize,
}

impl CountedBytes {
    /// Raises the count to this many bytes.
    fn grow_to(&mut self, caller: &RequestContext, bytes: usize) -> Result<()> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        self.bytes = bytes;
        self.caller
            .get_or_insert_with(|| caller.clone())
            .count_bytes(more)
    }

    /// Takes over the count of another.
    fn absorb(&mut self, other: &mut Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.caller = self.caller.take().or_else(|| other.caller.take());
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        if let Some(caller) = &self.caller {
            caller.uncount_bytes(self.bytes);
        }
    }
}

/// Fragments of JSON, one for each object of a level.
#[derive(Default)]
pub struct JsonFragments {
    buffer: Vec<u8>,
    ends: Vec<usize>,
    counted: CountedBytes,
}

impl JsonFragments {
    /// The values of a field, in the order of the objects.
    pub fn from_values(values: impl IntoIterator<Item = impl WriteJson>) -> Self {
        let mut texts = Self::default();
        for value in values {
            value.write(&mut texts.buffer);
            texts.end();
        }
        texts
    }

    fn end(&mut self) {
        self.ends.push(self.buffer.len());
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    fn get(&self, index: usize) -> &[u8] {
        &self.buffer[self.start(index)..self.ends[index]]
    }

    /// The whole buffer, which becomes part of the response: its bytes stay counted.
    fn into_response(mut self) -> Vec<u8> {
        self.counted.bytes = 0;
        self.buffer
    }
}

fn operation_env<'a, T>(ctx: &ContextBase<'a, T>) -> OperationEnv<'a> {
    OperationEnv {
        fragments: &ctx.query_env.fragments,
        variables: &ctx.query_env.variables,
    }
}

/// A selected field.
#[derive(Clone, Copy)]
pub struct SelectedField<'a> {
    names: OperationEnv<'a>,
    field: &'a Positioned<Field>,
}

impl<'a> SelectedField<'a> {
    /// The field that is being resolved.
    pub fn of(ctx: &Context<'a>) -> Self {
        Self {
            names: operation_env(ctx),
            field: ctx.item,
        }
    }

    /// The root field of an operation, if there is only one.
    pub fn root(
        document: &'a ExecutableDocument,
        operation: &'a OperationDefinition,
        variables: &'a Variables,
    ) -> Option<Self> {
        let names = OperationEnv {
            fragments: &document.fragments,
            variables,
        };
        match operation.selection_set.node.items.as_slice() {
            [
                Positioned {
                    node: Selection::Field(field),
                    ..
                },
            ] => names
                .is_skipped(&field.node.directives)
                .then_some(Self { names, field }),
            _ => None,
        }
    }

    fn set(&self) -> &'a SelectionSet {
        &self.field.node.selection_set.node
    }

    pub fn name(&self) -> &'a str {
        &self.field.node.name.node
    }

    /// The response key.
    pub fn key(&self) -> &'a str {
        &self.field.node.response_key().node
    }

    pub fn position(&self) -> Pos {
        self.field.pos
    }

    /// The value of an argument; `None` if it is invalid, which async-graphql reports.
    pub fn argument<T: InputType>(&self, name: &str) -> Option<T> {
        let argument = self.field.node.get_argument(name);
        T::parse(argument.and_then(|argument| self.names.resolve_value(&argument.node))).ok()
    }

    /// Whether the predicate holds for every field that may be selected on the result, in fragments
    /// of any type.
    pub fn all_fields(&self, mut holds: impl FnMut(Self) -> bool) -> bool {
        fn every<'a>(
            names: OperationEnv<'a>,
            set: &'a SelectionSet,
            holds: &mut dyn FnMut(SelectedField<'a>) -> bool,
        ) -> bool {
            set.items.iter().all(|selection| match &selection.node {
                Selection::Field(field) => holds(SelectedField { names, field }),
                Selection::InlineFragment(fragment) => {
                    every(names, &fragment.node.selection_set.node, holds)
                }
                Selection::FragmentSpread(spread) => {
                    let fragment = names.fragments.get(&spread.node.fragment_name.node);
                    fragment.is_some_and(|fragment| {
                        every(names, &fragment.node.selection_set.node, holds)
                    })
                }
            })
        }
        every(self.names, self.set(), &mut holds)
    }

    /// The maximum of `needs` over all fields that may be selected on the result, at least `least`.
    /// The result is of one of `types`; fragments of other types are skipped.
    pub fn max_over_fields<C: Copy + Ord>(
        &self,
        types: &[&str],
        least: C,
        mut needs: impl FnMut(Self) -> C,
    ) -> C {
        fn visit<'a>(
            names: OperationEnv<'a>,
            set: &'a SelectionSet,
            types: &[&str],
            visitor: &mut dyn FnMut(SelectedField<'a>),
        ) {
            for selection in &set.items {
                let (condition, set) = match &selection.node {
                    Selection::Field(field) => {
                        visitor(SelectedField { names, field });
                        continue;
                    }
                    Selection::InlineFragment(fragment) => (
                        fragment.node.type_condition.as_ref(),
                        &fragment.node.selection_set,
                    ),
                    Selection::FragmentSpread(spread) => {
                        let Some(fragment) = names.fragments.get(&spread.node.fragment_name.node)
                        else {
                            continue;
                        };
                        (
                            Some(&fragment.node.type_condition),
                            &fragment.node.selection_set,
                        )
                    }
                };
                if condition
                    .is_none_or(|condition| types.contains(&condition.node.on.node.as_str()))
                {
                    visit(names, &set.node, types, visitor);
                }
            }
        }
        let mut greatest = least;
        visit(self.names, self.set(), types, &mut |field| {
            greatest = greatest.max(needs(field))
        });
        greatest
    }

    /// Whether a field of this name may be selected on the result.
    pub fn may_select(&self, name: &str) -> bool {
        !self.all_fields(|field| field.name() != name)
    }

    /// The JSON of the result, an object or null; `None` leaves the field to async-graphql.
    pub async fn resolve_json<T: BatchObject>(
        &self,
        caller: &RequestContext,
        found: impl Future<Output = Result<Option<T>>>,
    ) -> Option<Result<Vec<u8>>> {
        let plan = self.plan::<T>()?;
        let resolved = async {
            match found.await? {
                Some(object) => plan
                    .resolve(std::slice::from_ref(&object), caller)
                    .await
                    .map(JsonFragments::into_response),
                None => Ok(b"null".to_vec()),
            }
        };
        match resolved.await {
            Err(error) if !error.is_permanent() => None,
            answered => Some(answered),
        }
    }

    fn plan<U: BatchObject>(&self) -> Option<BatchPlan<'a, U>> {
        BatchPlan::of(self.names, self.set())
    }

    /// A field whose value is one object, already in memory.
    pub fn object<T: BatchObject, U: BatchObject>(
        &self,
        inner: fn(&T) -> U,
    ) -> Option<FieldResolver<'a, T>> {
        self.batch(move |objects, _| {
            ready(ChildObjects::one_per_parent(
                objects.iter().map(|object| Some(inner(object))),
            ))
            .boxed()
        })
    }

    /// A field whose value is a list of objects, already in memory.
    pub fn lists<T: BatchObject, U: BatchObject>(
        &self,
        list: fn(&T) -> Vec<U>,
    ) -> Option<FieldResolver<'a, T>> {
        self.batch(move |objects, _| {
            ready(Ok(ChildObjects::lists(objects.iter().map(list)))).boxed()
        })
    }

    /// A field whose value is a list, loaded by the id of the parent.
    pub fn list_by_id<
        T: BatchObject,
        U: BatchObject,
        L: Load<Key = Id, Value = Vec<V>>,
        V: Clone + Send + Sync + 'static,
    >(
        &self,
        id: fn(&T) -> Id,
        _: L,
        wrap: fn(V) -> U,
    ) -> Option<FieldResolver<'a, T>> {
        self.batch(move |objects, caller| {
            async move {
                let loaded = caller.loaders()?.all::<L>(objects.iter().map(id)).await?;
                let list = |object| {
                    loaded
                        .get(&id(object))
                        .into_iter()
                        .flatten()
                        .cloned()
                        .map(wrap)
                        .collect()
                };
                Ok(ChildObjects::lists(objects.iter().map(list)))
            }
            .boxed()
        })
    }

    /// A field whose value is one object or null, loaded by a key. Null is an error if the object
    /// is `required`.
    pub fn object_by_id<T: BatchObject, U: BatchObject, L: Load>(
        &self,
        id: fn(&T) -> Option<Id>,
        _: L,
        key: impl Fn(Id) -> L::Key + Copy + Send + Sync + 'static,
        wrap: fn(L::Value) -> U,
        required: bool,
    ) -> Option<FieldResolver<'a, T>> {
        self.batch(move |objects, caller| {
            async move {
                let mut ids: Vec<Id> = objects.iter().filter_map(id).collect();
                ids.sort_unstable();
                ids.dedup();
                if ids.is_empty() {
                    return Ok(ChildObjects::new(
                        Vec::new(),
                        objects.iter().map(|_| ChildIndex::Null).collect(),
                    ));
                }
                let loaded = caller
                    .loaders()?
                    .all::<L>(ids.iter().copied().map(key))
                    .await?;
                ids.retain(|id| loaded.get(&key(*id)).is_some());
                let places = objects.iter().map(|object| {
                    let place = id(object).and_then(|id| ids.binary_search(&id).ok());
                    place.map_or(ChildIndex::Null, ChildIndex::One)
                });
                let places: Vec<ChildIndex> = places.collect();
                if required && places.iter().any(|place| matches!(place, ChildIndex::Null)) {
                    return Err(Error::internal("required object missing"));
                }
                let found = ids.iter().filter_map(|id| loaded.get(&key(*id)));
                Ok(ChildObjects::new(
                    found.cloned().map(wrap).collect(),
                    places,
                ))
            }
            .boxed()
        })
    }

    /// A field whose objects `find` returns for all parents at once.
    pub fn batch<T: BatchObject, U: BatchObject>(
        &self,
        find: impl for<'r> Fn(&'r [T], &'r RequestContext) -> BoxFuture<'r, Result<ChildObjects<U>>>
        + Send
        + Sync
        + 'a,
    ) -> Option<FieldResolver<'a, T>> {
        Some(FieldResolver::Batch(Box::new(ChildField {
            find,
            plan: self.plan()?,
        })))
    }
}

/// The result of a batch field: each distinct object once, and the places where it appears.
pub struct ChildObjects<U> {
    objects: Vec<U>,
    places: Vec<ChildIndex>,
}

enum ChildIndex {
    Null,
    One(usize),
    List(Range<usize>),
}

impl ChildIndex {
    /// Upper bound of the bytes written in this place.
    fn length(&self, inner: &JsonFragments) -> usize {
        match self {
            Self::Null => 4,
            Self::One(index) => inner.get(*index).len(),
            // Including brackets and commas.
            Self::List(range) => {
                inner.start(range.end) - inner.start(range.start) + range.len() + 2
            }
        }
    }
}

impl<U> ChildObjects<U> {
    fn new(objects: Vec<U>, places: Vec<ChildIndex>) -> Self {
        Self { objects, places }
    }

    /// One object per parent; a missing one is an error.
    pub fn one_per_parent(objects: impl IntoIterator<Item = Option<U>>) -> Result<Self> {
        let objects = objects.into_iter().collect::<Option<Vec<U>>>();
        let objects = objects.ok_or_else(|| Error::internal("related object missing"))?;
        let places = (0..objects.len()).map(ChildIndex::One).collect();
        Ok(Self::new(objects, places))
    }

    /// A list of objects per parent.
    pub fn lists(lists: impl IntoIterator<Item = Vec<U>>) -> Self {
        let mut objects = Vec::new();
        let places = lists.into_iter().map(|list| {
            let start = objects.len();
            objects.extend(list);
            ChildIndex::List(start..objects.len())
        });
        let places = places.collect();
        Self::new(objects, places)
    }
}

struct ChildField<'a, U, F> {
    find: F,
    plan: BatchPlan<'a, U>,
}

impl<T, U, F> BatchField<T> for ChildField<'_, U, F>
where
    T: BatchObject,
    U: BatchObject,
    F: for<'r> Fn(&'r [T], &'r RequestContext) -> BoxFuture<'r, Result<ChildObjects<U>>>
        + Send
        + Sync,
{
    fn resolve<'r>(
        &'r self,
        objects: &'r [T],
        caller: &'r RequestContext,
    ) -> BoxFuture<'r, Result<JsonFragments>> {
        async move {
            let found = (self.find)(objects, caller).await?;
            let mut inner = self.plan.resolve(&found.objects, caller).await?;
            let mut texts = JsonFragments::default();
            texts.counted.absorb(&mut inner.counted);
            let length = found.places.iter().map(|place| place.length(&inner)).sum();
            texts.counted.grow_to(caller, length)?;
            texts.buffer.reserve_exact(length);
            for place in found.places {
                match place {
                    ChildIndex::Null => None::<bool>.write(&mut texts.buffer),
                    ChildIndex::One(index) => texts.buffer.extend_from_slice(inner.get(index)),
                    ChildIndex::List(range) => {
                        json::write_list(&mut texts.buffer, range, |index, out| {
                            out.extend_from_slice(inner.get(index))
                        });
                    }
                }
                texts.end();
            }
            Ok(texts)
        }
        .boxed()
    }
}

/// The plan of a selection on one type.
struct BatchPlan<'a, T> {
    members: Vec<BatchMember<'a, T>>,
}

/// A member of the JSON of each object.
struct BatchMember<'a, T> {
    key: &'a str,
    /// The encoded key with its colon.
    name: Vec<u8>,
    resolver: FieldResolver<'a, T>,
}

impl<'a, T: BatchObject> BatchPlan<'a, T> {
    /// `None` if any part is left to async-graphql.
    fn of(names: OperationEnv<'a>, set: &'a SelectionSet) -> Option<Self> {
        let mut plan = Self {
            members: Vec::new(),
        };
        plan.add(names, set)?;
        Some(plan)
    }

    fn add(&mut self, names: OperationEnv<'a>, set: &'a SelectionSet) -> Option<()> {
        for selection in &set.items {
            let (directives, condition, set) = match &selection.node {
                Selection::Field(field) => {
                    if names.is_skipped(&field.node.directives)
                        && field.node.response_key().node != PLACEHOLDER_KEY
                    {
                        self.add_field(SelectedField { names, field })?;
                    }
                    continue;
                }
                Selection::InlineFragment(fragment) => {
                    let InlineFragment {
                        directives,
                        type_condition,
                        selection_set,
                    } = &fragment.node;
                    (directives, type_condition.as_ref(), selection_set)
                }
                Selection::FragmentSpread(spread) => {
                    let fragment = &names.fragments.get(&spread.node.fragment_name.node)?.node;
                    (
                        &spread.node.directives,
                        Some(&fragment.type_condition),
                        &fragment.selection_set,
                    )
                }
            };
            let applies = condition.is_none_or(|condition| {
                let wanted = condition.node.on.node.as_str();
                wanted == T::type_name() || (T::IS_NODE && wanted == "Node")
            });
            if applies && names.is_skipped(directives) {
                self.add(names, &set.node)?;
            }
        }
        Some(())
    }

    fn add_field(&mut self, field: SelectedField<'a>) -> Option<()> {
        let key = field.key();
        if self.members.iter().any(|member| member.key == key) {
            // A repeated key is valid only for the same field. Merging two selection sets is left
            // to async-graphql.
            return field.set().items.is_empty().then_some(());
        }
        let mut name = Vec::with_capacity(key.len() + 3);
        json::write_name(&mut name, key);
        self.members.push(BatchMember {
            key,
            name,
            resolver: resolver(&field)?,
        });
        Some(())
    }

    fn resolve<'r>(
        &'r self,
        objects: &'r [T],
        caller: &'r RequestContext,
    ) -> BoxFuture<'r, Result<JsonFragments>> {
        async move {
            if objects.is_empty() {
                return Ok(JsonFragments::default());
            }
            let batches = self
                .members
                .iter()
                .filter_map(|member| match &member.resolver {
                    FieldResolver::Inline(_) => None,
                    FieldResolver::Batch(field) => Some(field.resolve(objects, caller)),
                });
            let mut batches = try_join_all(batches).await?;
            let mut texts = JsonFragments::default();
            batches
                .iter_mut()
                .for_each(|fragments| texts.counted.absorb(&mut fragments.counted));
            let mut failed = Ok(());
            for (index, object) in objects.iter().enumerate() {
                let mut fragments = batches.iter();
                json::write_object(
                    &mut texts.buffer,
                    &self.members,
                    |BatchMember {
                         name,
                         resolver: step,
                         ..
                     },
                     out| {
                        out.extend_from_slice(name);
                        match step {
                            FieldResolver::Inline(write) => {
                                if let Err(error) = write(object, caller, out) {
                                    failed = Err(error);
                                }
                            }
                            FieldResolver::Batch(_) => out.extend_from_slice(
                                fragments.next().map_or(b"", |texts| texts.get(index)),
                            ),
                        }
                    },
                );
                texts.end();
                texts.counted.grow_to(caller, texts.buffer.len())?;
            }
            failed.map(|()| texts)
        }
        .boxed()
    }
}

fn resolver<'a, T: BatchObject>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, T>> {
    if field.name() == "__typename" {
        return Some(inline!(|_object| *T::type_name()));
    }
    T::resolver(field)
}

/// An object whose selection is resolved in batches where that is possible.
pub struct Batched<T>(pub T);

impl<T: BatchObject> OutputType for Batched<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        T::create_type_info(registry)
    }

    async fn resolve(
        &self,
        ctx: &ContextSelectionSet<'_>,
        field: &Positioned<Field>,
    ) -> ServerResult<Value> {
        let caller: &RequestContext = ctx.data_unchecked();
        if caller.hints().can_batch
            && let Some(plan) = BatchPlan::<T>::of(operation_env(ctx), &ctx.item.node)
        {
            match plan.resolve(std::slice::from_ref(&self.0), caller).await {
                Ok(texts) => return Ok(Value::Binary(texts.into_response().into())),
                // The slow path would fail the same way.
                Err(error) if error.is_permanent() => {
                    let error = async_graphql::Error::from(error).into_server_error(field.pos);
                    return Err(ctx.set_error_path(error));
                }
                Err(_) => {}
            }
        }
        self.0.resolve(ctx, field).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::comment::Comment;
    use super::super::connection::{Connection, Edge, PageInfo};
    use super::super::label::Label;
    use super::super::project::Project;
    use super::super::task::Task;
    use super::super::user::User;
    use super::*;

    #[test]
    fn what_is_a_node_here_is_one_in_the_schema() {
        fn same<T: BatchObject>(sdl: &str) {
            let name = T::type_name();
            assert!(sdl.contains(&format!("\ntype {name} ")), "{name} is a type");
            assert_eq!(
                T::IS_NODE,
                sdl.contains(&format!("\ntype {name} implements Node ")),
                "{name}"
            );
        }
        let sdl = super::super::sdl();
        same::<Task>(&sdl);
        same::<Project>(&sdl);
        same::<Comment>(&sdl);
        same::<Label>(&sdl);
        same::<User>(&sdl);
        same::<Connection<Task>>(&sdl);
        same::<Edge<Task>>(&sdl);
        same::<PageInfo>(&sdl);
    }
}
