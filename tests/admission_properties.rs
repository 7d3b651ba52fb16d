//! Property tests with random documents: admission never panics, and it agrees with a naive
//! implementation that expands every fragment each time and multiplies list sizes from the top
//! down.

use async_graphql::{
    Name, Value as Literal,
    parser::{
        Positioned, parse_query,
        types::{
            BaseType, Directive, ExecutableDocument, Field, OperationDefinition, OperationType,
            Selection, SelectionSet, Type,
        },
    },
};
use async_graphql_value::Value as Input;
use fasttrack::admission::{self, AdmissionError, AdmittedOperation, DocumentLimits, parse};
use fasttrack::error::Code;
use proptest::{prelude::*, sample::select};
use serde_json::{Map, Value, json};

/// Replaces the variables of a value. A macro, because the type of such values has no public name.
macro_rules! constant {
    ($value:expr) => {
        $value
            .clone()
            .into_const_with(|_| Ok::<_, std::convert::Infallible>(Literal::Null))
            .expect("infallible")
    };
}
/// Limits that a document of a few lines can reach.
fn tight() -> DocumentLimits {
    DocumentLimits {
        nesting: 9,
        fragments: 4,
        variables: 3,
        arguments: 2,
        directives_per_location: 2,
        directives: 8,
        selections: 30,
        depth: 5,
        aliases: 4,
        root_fields: 6,
        mutation_root_fields: 3,
        introspection_depth: 4,
        introspection_lists: 2,
        nodes: 1_000,
        values: 2_000,
        ..DocumentLimits::default()
    }
}

/// Totals of expanding an operation or a fragment.
#[derive(Debug, Default)]
struct Naive {
    selections: u64,
    root_fields: u64,
    aliases: u64,
    depth: u64,
    levels: u64,
    nodes: u128,
    values: u128,
    introspection: bool,
    introspection_depth: u64,
    introspection_lists: u64,
    /// A fragment spreads itself, directly or indirectly.
    cyclic: bool,
    endless: bool,
}

/// Position of a selection set in the expansion.
#[derive(Clone)]
struct Place<'a> {
    level: u64,
    root: bool,
    depth: u64,
    times: u128,
    /// Under `__schema` or `__type`: the depth below the innermost and the number of lists below
    /// the outermost.
    introspection: Option<(u64, u64)>,
    spread: Vec<&'a str>,
}

struct Reader<'a> {
    document: &'a ExecutableDocument,
    chosen: &'a OperationDefinition,
    variables: &'a Map<String, Value>,
}

impl<'a> Reader<'a> {
    fn expand(&self, set: &'a SelectionSet) -> Naive {
        let mut naive = Naive::default();
        let place = Place {
            level: 1,
            root: true,
            depth: 0,
            times: 1,
            introspection: None,
            spread: Vec::new(),
        };
        self.visit(set, &place, &mut naive);
        naive
    }

    fn visit(&self, set: &'a SelectionSet, place: &Place<'a>, naive: &mut Naive) {
        if naive.selections > 5_000 || place.level > 200 {
            naive.endless = true;
            return;
        }
        if !set.items.is_empty() {
            naive.levels = naive.levels.max(place.level);
        }
        let inner = Place {
            level: place.level + 1,
            ..place.clone()
        };
        for selection in &set.items {
            naive.selections += 1;
            naive.values = naive.values.saturating_add(place.times);
            match &selection.node {
                Selection::Field(field) => self.field(&field.node, inner.clone(), naive),
                Selection::InlineFragment(fragment) => {
                    self.visit(&fragment.node.selection_set.node, &inner, naive);
                }
                Selection::FragmentSpread(spread) => {
                    let name = spread.node.fragment_name.node.as_str();
                    if place.spread.contains(&name) {
                        naive.cyclic = true;
                    } else if let Some(fragment) = self.document.fragments.get(name) {
                        let mut inner = inner.clone();
                        inner.spread.push(name);
                        self.visit(&fragment.node.selection_set.node, &inner, naive);
                    }
                }
            }
        }
    }

    fn field(&self, field: &'a Field, mut place: Place<'a>, naive: &mut Naive) {
        let name = field.name.node.as_str();
        naive.root_fields += u64::from(place.root);
        naive.aliases += u64::from(field.alias.is_some());
        place.root = false;
        let list = [
            "types",
            "fields",
            "args",
            "directives",
            "interfaces",
            "possibleTypes",
            "enumValues",
            "inputFields",
        ]
        .contains(&name);
        if let Some((depth, lists)) = &mut place.introspection {
            *depth += 1;
            *lists += u64::from(list);
            naive.introspection_depth = naive.introspection_depth.max(*depth);
            naive.introspection_lists = naive.introspection_lists.max(*lists);
        } else {
            place.depth += 1;
            naive.depth = naive.depth.max(place.depth);
        }
        let page = if place.introspection.is_some() {
            list.then_some(10)
        } else {
            self.page(field)
        };
        if matches!(name, "__schema" | "__type") {
            naive.introspection = true;
            let (_, lists) = place.introspection.unwrap_or_default();
            place.introspection = Some((0, lists));
        } else if let Some(page) = page {
            place.times = place.times.saturating_mul(u128::from(page));
            naive.nodes = naive.nodes.saturating_add(place.times);
        }
        self.visit(&field.selection_set.node, &place, naive);
    }

    fn page(&self, field: &'a Field) -> Option<u64> {
        let number = |number: &serde_json::Number| match number.as_i64() {
            Some(..=0) => 1,
            Some(n @ 1..=100) => n.unsigned_abs(),
            _ => 100,
        };
        let literal = |literal: &Literal| match literal {
            Literal::Null => 20,
            Literal::Number(it) => number(it),
            _ => 100,
        };
        let default = |name: &Name| {
            let mut variables = self.chosen.variable_definitions.iter();
            variables
                .find(|variable| variable.node.name.node == *name)?
                .node
                .default_value
                .as_ref()
                .map(|it| &it.node)
        };
        let length = |length: usize| u64::try_from(length).expect("fits").min(100);
        let mut pages = Vec::new();
        for (name, value) in &field.arguments {
            if name.node == "ids" {
                pages.push(match &value.node {
                    Input::List(items) => length(items.len()),
                    Input::Variable(name) => match self.variables.get(name.as_str()) {
                        Some(Value::Array(items)) => length(items.len()),
                        Some(_) => 100,
                        None => match default(name) {
                            Some(Literal::List(items)) => length(items.len()),
                            _ => 100,
                        },
                    },
                    _ => 100,
                });
                continue;
            }
            if name.node != "first" && name.node != "last" {
                continue;
            }
            pages.push(match value.node.clone().into_const_with(Err) {
                Ok(value) => literal(&value),
                Err(name) => match self.variables.get(name.as_str()) {
                    Some(Value::Number(it)) => number(it),
                    Some(Value::Null) => 20,
                    Some(_) => 100,
                    None => default(&name).map_or(20, literal),
                },
            });
        }
        let edges = || {
            self.has_edges(&field.selection_set.node, &mut Vec::new())
                .then_some(20)
        };
        let is_list =
            ["changes", "labels", "sessions", "userErrors"].contains(&field.name.node.as_str());
        pages
            .into_iter()
            .max()
            .or_else(edges)
            .or(is_list.then_some(10))
    }

    fn has_edges(&self, set: &'a SelectionSet, seen: &mut Vec<&'a str>) -> bool {
        set.items.iter().any(|selection| match &selection.node {
            Selection::Field(field) => ["edges", "nodes"].contains(&field.node.name.node.as_str()),
            Selection::InlineFragment(it) => self.has_edges(&it.node.selection_set.node, seen),
            Selection::FragmentSpread(spread) => {
                let name = spread.node.fragment_name.node.as_str();
                let fragment = self.document.fragments.get(name);
                let new = !seen.contains(&name);
                seen.push(name);
                new && fragment.is_some_and(|it| self.has_edges(&it.node.selection_set.node, seen))
            }
        })
    }
}

/// Counted on the document as written, before expansion: deepest bracket nesting, most arguments
/// and directives in one place, and directives in total.
#[derive(Debug, Default)]
struct Written {
    nesting: usize,
    arguments: usize,
    directives_in_one_place: usize,
    directives: usize,
}

impl Written {
    fn new(document: &ExecutableDocument) -> Self {
        let mut written = Self::default();
        for (_, operation) in document.operations.iter() {
            for variable in &operation.node.variable_definitions {
                written.nest(1 + type_nesting(&variable.node.var_type.node));
                if let Some(default) = &variable.node.default_value {
                    written.nest(1 + literal_nesting(&default.node));
                }
                written.directives(&variable.node.directives, 1);
            }
            written.directives(&operation.node.directives, 0);
            written.set(&operation.node.selection_set.node, 1);
        }
        for fragment in document.fragments.values() {
            written.directives(&fragment.node.directives, 0);
            written.set(&fragment.node.selection_set.node, 1);
        }
        written
    }

    fn nest(&mut self, nesting: usize) {
        self.nesting = self.nesting.max(nesting);
    }

    fn set(&mut self, set: &SelectionSet, outside: usize) {
        if set.items.is_empty() {
            return;
        }
        self.nest(outside);
        for selection in &set.items {
            self.directives(selection.node.directives(), outside);
            match &selection.node {
                Selection::Field(field) => {
                    let values = field.node.arguments.iter();
                    self.arguments(values.map(|(_, it)| constant!(it.node)).collect(), outside);
                    self.set(&field.node.selection_set.node, outside + 1);
                }
                Selection::InlineFragment(it) => self.set(&it.node.selection_set.node, outside + 1),
                Selection::FragmentSpread(_) => {}
            }
        }
    }

    fn directives(&mut self, directives: &[Positioned<Directive>], outside: usize) {
        self.directives += directives.len();
        self.directives_in_one_place = self.directives_in_one_place.max(directives.len());
        for directive in directives {
            let values = directive.node.arguments.iter();
            self.arguments(values.map(|(_, it)| constant!(it.node)).collect(), outside);
        }
    }

    fn arguments(&mut self, values: Vec<Literal>, outside: usize) {
        self.arguments = self.arguments.max(values.len());
        for value in values {
            self.nest(outside + 1 + literal_nesting(&value));
        }
    }
}

fn type_nesting(of: &Type) -> usize {
    match &of.base {
        BaseType::Named(_) => 0,
        BaseType::List(of) => 1 + type_nesting(of),
    }
}

fn literal_nesting(literal: &Literal) -> usize {
    match literal {
        Literal::List(items) => 1 + items.iter().map(literal_nesting).max().unwrap_or(0),
        Literal::Object(fields) => 1 + fields.values().map(literal_nesting).max().unwrap_or(0),
        _ => 0,
    }
}

/// Parses a document and admits its operation.
fn admit(
    source: &str,
    name: Option<&str>,
    variables: &Map<String, Value>,
    limits: &DocumentLimits,
) -> Result<AdmittedOperation, AdmissionError> {
    admission::admit(&parse(source, limits)?, name, variables, limits)
}

/// Compares [`admit`] with the naive implementation.
fn check(
    source: &str,
    name: Option<&str>,
    variables: &Map<String, Value>,
    limits: &DocumentLimits,
) -> Result<(), TestCaseError> {
    let answer = admit(source, name, variables, limits);
    let code = match &answer {
        Ok(_) => None,
        Err(refusal) => {
            prop_assert!(refusal.message.chars().count() <= 200);
            prop_assert!(matches!(refusal.code.status(), 400 | 422));
            Some(refusal.code)
        }
    };
    // The parser must not run on these, or cannot read them.
    if matches!(
        code,
        Some(Code::DocumentTooLarge | Code::ParseFailed | Code::VariablesTooLarge)
    ) {
        return Ok(());
    }
    let document = parse_query(source).expect("a document that parses");
    let mut operations = document.operations.iter();
    let chosen = match name {
        None => operations.next().filter(|_| operations.next().is_none()),
        Some(wanted) => operations.find(|(name, _)| name.is_some_and(|name| name == wanted)),
    };
    let Some((_, chosen)) = chosen else {
        let expected = match name {
            None => Code::OperationNameRequired,
            Some(_) => Code::OperationNotFound,
        };
        prop_assert_eq!(code, Some(expected));
        return Ok(());
    };

    let reader = Reader {
        document: &document,
        chosen: &chosen.node,
        variables,
    };
    let written = Written::new(&document);
    prop_assert!(written.nesting <= limits.nesting, "{written:?}");
    let nesting = u64::try_from(limits.nesting).expect("fits");
    let mut within = written.arguments <= limits.arguments
        && written.directives_in_one_place <= limits.directives_per_location
        && written.directives <= limits.directives
        && document.operations.iter().len() <= limits.operations
        && document.fragments.len() <= limits.fragments;
    let mut cyclic = false;
    for fragment in document.fragments.values() {
        let naive = reader.expand(&fragment.node.selection_set.node);
        cyclic |= naive.cyclic;
        within &= !naive.endless
            && naive.selections <= limits.selections
            && naive.levels <= nesting
            && naive.introspection_depth <= limits.introspection_depth
            && naive.introspection_lists <= limits.introspection_lists;
    }
    let mut selections = 0;
    for (_, operation) in document.operations.iter() {
        let naive = reader.expand(&operation.node.selection_set.node);
        selections += naive.selections;
        let root_fields = match operation.node.ty {
            OperationType::Mutation => limits.mutation_root_fields,
            _ => limits.root_fields,
        };
        within &= !naive.endless
            && operation.node.variable_definitions.len() <= limits.variables
            && selections <= limits.selections
            && naive.levels <= nesting
            && naive.depth <= limits.depth
            && naive.aliases <= limits.aliases
            && naive.root_fields <= root_fields
            && naive.introspection_depth <= limits.introspection_depth
            && naive.introspection_lists <= limits.introspection_lists;
    }
    let naive = reader.expand(&chosen.node.selection_set.node);
    let (nodes, values) = match chosen.node.ty {
        OperationType::Subscription => (limits.subscription_nodes, limits.subscription_values),
        OperationType::Query | OperationType::Mutation => (limits.nodes, limits.values),
    };
    within &= naive.nodes <= u128::from(nodes) && naive.values <= u128::from(values);

    match answer {
        Ok(admitted) => {
            prop_assert!(
                within && !cyclic,
                "admitted: {source} {naive:?} {written:?}"
            );
            prop_assert_eq!(u128::from(admitted.nodes), naive.nodes);
            prop_assert_eq!(u128::from(admitted.values), naive.values);
            prop_assert_eq!(admitted.introspection, naive.introspection);
            prop_assert_eq!(admitted.operation, chosen.node.ty);
            prop_assert!(admitted.cost >= 1);
        }
        Err(refusal) if refusal.code == Code::ValidationFailed => {
            prop_assert!(cyclic, "{refusal}: {source}");
        }
        Err(refusal) => {
            prop_assert_eq!(refusal.code, Code::DocumentTooComplex);
            prop_assert!(!within, "{refusal}: {source} {naive:?} {written:?}");
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
enum Shape {
    Field {
        head: String,
        set: Vec<Shape>,
    },
    Inline {
        head: String,
        set: Vec<Shape>,
    },
    Spread {
        fragment: usize,
        directive: &'static str,
    },
}

/// Writes selections. Fragments up to `from` are spread only when cycles are wanted.
fn write(set: &[Shape], from: usize, cycles: bool, text: &mut String) {
    text.push('{');
    for shape in set {
        match shape {
            Shape::Field { head, set } | Shape::Inline { head, set } => {
                text.push_str(head);
                if !set.is_empty() {
                    write(set, from, cycles, text);
                }
            }
            Shape::Spread {
                fragment,
                directive,
            } => {
                let fragment = if cycles { *fragment } else { from + fragment };
                text.push_str(&format!(" ...F{fragment} {directive}"));
            }
        }
    }
    text.push('}');
}

fn directives() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        6 => Just(""),
        1 => Just("@d "),
        1 => Just("@d @e(a: [[1]], b: 2) "),
        1 => Just("@include(if: $n) "),
    ]
}

fn selection() -> impl Strategy<Value = Shape> {
    let name = select(vec![
        "a",
        "b",
        "edges",
        "nodes",
        "node",
        "fields",
        "types",
        "type",
        "labels",
        "args",
        "__schema",
        "__type",
        "__typename",
    ]);
    let arguments = prop_oneof![
        6 => Just(String::new()),
        1 => (-2_i32..130).prop_map(|n| format!("(first: {n})")),
        1 => (1_i32..9).prop_map(|n| format!("(last: {n}, first: $n)")),
        1 => select(vec![
            "(first: null)", "(last: $m)", "(first: \"x\")", "(first: [$m])", "(x: [{y: [1.5]}])",
            "(ids: [])", "(ids: [1, $m, 3])", "(ids: $m)", "(ids: $n, first: 2)", "(ids: null)",
            "(x: {y: \"}\"}, z: \"\"\"]\"\"\", first: 1e9)",
        ]).prop_map(str::to_owned),
    ];
    let alias = prop_oneof![5 => Just(" "), 1 => Just(" x: "), 1 => Just(" # } \" \n y:")];
    let head = (alias, name, arguments, directives())
        .prop_map(|(alias, name, arguments, directives)| {
            format!("{alias}{name}{arguments} {directives}")
        })
        .boxed();
    let inline_head = (select(vec!["", "on T "]), directives())
        .prop_map(|(on, directives)| format!(" ... {on}{directives}"))
        .boxed();
    let leaf = prop_oneof![
        3 => head.clone().prop_map(|head| Shape::Field { head, set: Vec::new() }),
        2 => (0_usize..3, directives())
            .prop_map(|(fragment, directive)| Shape::Spread { fragment, directive }),
    ];
    leaf.prop_recursive(5, 24, 4, move |inner| {
        let set = prop::collection::vec(inner, 1..4);
        prop_oneof![
            3 => (head.clone(), set.clone()).prop_map(|(head, set)| Shape::Field { head, set }),
            1 => (inline_head.clone(), set).prop_map(|(head, set)| Shape::Inline { head, set }),
        ]
    })
}

fn document() -> impl Strategy<Value = String> {
    let set = || prop::collection::vec(selection(), 1..4);
    let operation = (
        select(vec!["query", "mutation", "subscription"]),
        select(vec![
            "",
            "($n: Int = 3)",
            "($n: Int @d = null, $m: [[Int!]!])",
            "($n: X = {a: [1]})",
            "($m: [Int!] = [1, 2])",
        ]),
        directives(),
        set(),
    );
    (
        prop::collection::vec(operation, 1..3),
        prop::collection::vec((directives(), set()), 0..5),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(operations, fragments, cycles)| {
            let mut text = String::new();
            for (index, (kind, variables, directives, set)) in operations.iter().enumerate() {
                text.push_str(&format!("{kind} Q{index}{variables} {directives}"));
                write(set, 0, cycles, &mut text);
            }
            for (index, (directives, set)) in fragments.iter().enumerate() {
                text.push_str(&format!(" fragment F{index} on T {directives}"));
                write(set, index + 1, cycles, &mut text);
            }
            text
        })
}

fn variables() -> impl Strategy<Value = Map<String, Value>> {
    let value = prop_oneof![
        Just(None),
        (-3_i64..150).prop_map(|n| Some(json!(n))),
        select(vec![json!(null), json!("x"), json!([1]), json!(1.5)]).prop_map(Some),
    ];
    (value.clone(), value).prop_map(|(n, m)| {
        let given = [("n", n), ("m", m)].into_iter();
        given
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    })
}

fn name() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![2 => Just(None), 5 => Just(Some("Q0")), 1 => Just(Some("Q1"))]
}

/// Concatenated fragments of text that could confuse a lexer.
fn soup() -> impl Strategy<Value = String> {
    let pieces = vec![
        "{", "}", "[", "]", "(", ")", "\"", "\"\"\"", "\\\"", "\\", "#", "\n", "\r", "\u{feff}",
        "...", ".", "on", " ", ",", "a", "query", "fragment", "F", "$", ":", "=", "@", "!", "-",
        "0", "1", "e", "+", "|", "&", "true", "null", "é", "\u{0}", "{a", "a}", "{a(b:", ")}",
        "{a}",
    ];
    prop::collection::vec(select(pieces), 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>(), soup in soup()) {
        for source in [text, soup] {
            check(&source, None, &Map::new(), &tight())?;
            check(&format!("{{ a {source} }}"), None, &Map::new(), &tight())?;
            check(&format!("{{ a(b: [{source}]) }}"), None, &Map::new(), &tight())?;
        }
    }

    #[test]
    fn admission_agrees_with_naive_expansion(
        source in document(), name in name(), variables in variables(),
    ) {
        check(&source, name, &variables, &DocumentLimits::default())?;
        check(&source, name, &variables, &tight())?;
    }

    /// Cuts a piece out of a document and inserts it elsewhere, a few times.
    #[test]
    fn damaged_documents_never_panic(
        source in document(),
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        length in 0_usize..12,
        times in 0_usize..4,
    ) {
        let mut text: Vec<char> = source.chars().collect();
        let start = from.index(text.len());
        let end = (start + length).min(text.len());
        let piece: Vec<char> = text.drain(start..end).collect();
        let at = to.index(text.len() + 1);
        text.splice(at..at, piece.repeat(times));
        let source: String = text.into_iter().collect();
        check(&source, Some("Q0"), &Map::new(), &DocumentLimits::default())?;
        check(&source, Some("Q0"), &Map::new(), &tight())?;
    }
}

/// The generator covers every outcome: an admission that refused everything would pass the other
/// properties too.
#[test]
fn generator_covers_every_outcome() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    let mut runner = TestRunner::deterministic();
    let (mut admitted, mut complex, mut cyclic) = (0, 0, 0);
    for _ in 0..300 {
        let source = document()
            .new_tree(&mut runner)
            .expect("a document")
            .current();
        match admit(&source, Some("Q0"), &Map::new(), &tight()).map_err(|refusal| refusal.code) {
            Ok(_) => admitted += 1,
            Err(Code::DocumentTooComplex) => complex += 1,
            Err(Code::ValidationFailed) => cyclic += 1,
            Err(_) => {}
        }
    }
    assert!(
        admitted > 30 && complex > 30 && cyclic > 10,
        "{admitted} {complex} {cyclic}"
    );
}
