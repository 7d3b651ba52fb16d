//! Unit tests of admission: results, codes and messages. Hostile and random documents are tested in
//! `tests/`.

use std::collections::BTreeSet;

use async_graphql::parser::types::{BaseType, Type, TypeKind, TypeSystemDefinition};
use serde_json::json;

use super::*;

fn admit(
    document: &str,
    name: Option<&str>,
    variables: &Map<String, Value>,
    limits: &DocumentLimits,
) -> Result<AdmittedOperation, AdmissionError> {
    super::admit(&parse(document, limits)?, name, variables, limits)
}

fn try_admit(document: &str) -> Result<AdmittedOperation, AdmissionError> {
    admit(document, None, &Map::new(), &DocumentLimits::default())
}

fn admitted(document: &str) -> AdmittedOperation {
    try_admit(document).unwrap_or_else(|refusal| panic!("{refusal}: {document}"))
}

fn refused(document: &str) -> AdmissionError {
    match try_admit(document) {
        Ok(_) => panic!("admitted: {document}"),
        Err(refusal) => refusal,
    }
}

fn with_variables(document: &str, variables: Value) -> Result<AdmittedOperation, AdmissionError> {
    let Value::Object(variables) = variables else {
        panic!("variables are an object");
    };
    admit(document, None, &variables, &DocumentLimits::default())
}

fn nodes(document: &str, variables: Value) -> u64 {
    match with_variables(document, variables) {
        Ok(admitted) => admitted.nodes,
        Err(refusal) => panic!("{refusal}: {document}"),
    }
}

mod operations {
    use super::*;

    const TWO: &str = "query A { a } mutation B { b }";

    fn choose(document: &str, name: Option<&str>) -> Result<AdmittedOperation, Code> {
        admit(document, name, &Map::new(), &DocumentLimits::default())
            .map_err(|refusal| refusal.code)
    }

    #[test]
    fn the_only_one_needs_no_name() {
        let only = admitted("subscription S { a }");
        assert_eq!(only.operation, OperationType::Subscription);
        assert_eq!(only.name.as_deref(), Some("S"));
        let anonymous = admitted("{ a }");
        assert_eq!(anonymous.operation, OperationType::Query);
        assert_eq!(anonymous.name, None);
    }

    #[test]
    fn a_name_chooses() {
        let chosen = choose(TWO, Some("B")).expect("B exists");
        assert_eq!(chosen.operation, OperationType::Mutation);
        assert_eq!(chosen.name.as_deref(), Some("B"));
    }

    #[test]
    fn a_name_must_exist() {
        assert_eq!(choose(TWO, Some("C")).err(), Some(Code::OperationNotFound));
        assert_eq!(
            choose("{ a }", Some("C")).err(),
            Some(Code::OperationNotFound)
        );
    }

    #[test]
    fn several_need_a_name() {
        assert_eq!(choose(TWO, None).err(), Some(Code::OperationNameRequired));
        assert_eq!(
            choose(TWO, Some("")).err(),
            Some(Code::OperationNameRequired)
        );
    }
}

mod lexical {
    use super::*;

    /// The code, message and location of a refusal by the scan.
    fn scanned(document: &str) -> (Code, String, Option<(usize, usize)>) {
        match lexer::scan(document, &DocumentLimits::default()) {
            Ok(()) => panic!("passes the scan: {document}"),
            Err(refusal) => (refusal.code, refusal.message, refusal.location),
        }
    }

    #[test]
    fn everything_the_grammar_has() {
        admitted(concat!(
            "\u{feff}# comment with } and \" in it\r\n",
            "query Q($a: [Int!]! @x = [1, -2.5e+3, 0, 1E9], $b: T = {a: {b: null}, c: \"}\"}) @d {\r",
            "  alias: field(a: $a, s: \"\\\"\\\\\\u00e9\\n}\", b: \"\"\"block \" \\\"\"\" } \\\\ \n é\"\"\", e: RED, t: true) {\n",
            "    ... on User @include(if: $b) { id, , }\n",
            "    ... @skip(if: false) { id }\n",
            "    ...F @x\n",
            "  }\n",
            "}\n",
            "fragment F on User @x { id }\u{feff}# end",
        ));
    }

    #[test]
    fn brackets_match() {
        let parse = Code::ParseFailed;
        assert_eq!(
            scanned("{ a "),
            (parse, "Expected \"}\"".into(), Some((1, 5)))
        );
        assert_eq!(
            scanned("{ a(b: [1) }"),
            (parse, "Unexpected \")\"".into(), Some((1, 10)))
        );
        assert_eq!(
            scanned("{ a }\n }"),
            (parse, "Unexpected \"}\"".into(), Some((2, 2)))
        );
    }

    #[test]
    fn brackets_nest_to_the_limit() {
        let lists = |n: usize| format!("{{ a(b: {}{}) }}", "[".repeat(n - 2), "]".repeat(n - 2));
        admitted(&lists(32));
        let refusal = refused(&lists(33));
        assert_eq!(refusal.code, Code::DocumentTooLarge);
        assert_eq!(refusal.code.status(), 400);
        assert_eq!(refusal.location, Some((1, 38)));
    }

    #[test]
    fn comments_end_with_their_line() {
        for end in ["\n", "\r", "\r\n"] {
            let document = format!("{{ a(b: # {end} {}) }}", "[".repeat(100));
            assert_eq!(scanned(&document).0, Code::DocumentTooLarge);
        }
    }

    #[test]
    fn brackets_in_strings_and_comments_do_not_count() {
        let open = "[".repeat(200);
        admitted(&format!(
            "{{ a(b: \"{open}\", c: \"\"\"{open}\"\"\") # {open}\n }}"
        ));
    }

    #[test]
    fn strings_end() {
        for document in [
            "{ a(b: \"x) }",
            "{ a(b: \"x\n\") }",
            "{ a(b: \"x\\\") }",
            "{ a(b: \"\\",
            "{ a(b: \"\"\"x\"\") }",
            "{ a(b: \"\"\"x\\\"\"\") }",
        ] {
            let expected = (
                Code::ParseFailed,
                "Unterminated string".into(),
                Some((1, 8)),
            );
            assert_eq!(scanned(document), expected);
        }
    }

    #[test]
    fn numbers_are_numbers() {
        for number in ["0", "-0", "10", "0.5", "-1.5e-3", "1e+5", "1E5"] {
            admitted(&format!("{{ a(b: {number}) }}"));
        }
        for number in [
            "01", "-", "1.", ".5", "1e", "1e+", "0x1F", "1_000", "1.2.3", "+1", "00",
        ] {
            assert_eq!(
                refused(&format!("{{ a(b: {number}) }}")).code,
                Code::ParseFailed
            );
        }
    }

    #[test]
    fn numbers_and_names_are_not_endless() {
        admitted(&format!("{{ a(b: {}) }}", "9".repeat(300)));
        admitted(&format!("{{ {} }}", "a".repeat(128)));
        let number = scanned(&format!("{{ a(b: {}) }}", "9".repeat(401)));
        assert_eq!((number.0, number.2), (Code::DocumentTooLarge, Some((1, 8))));
        let name = scanned(&format!("{{ {} }}", "a".repeat(129)));
        assert_eq!((name.0, name.2), (Code::DocumentTooLarge, Some((1, 3))));
        // The parser checks the rest: these are not doubles.
        for number in [
            "9".repeat(310),
            "1e309".to_owned(),
            "-1e999999999999999".to_owned(),
        ] {
            let refusal = refused(&format!("{{ a(b: {number}) }}"));
            assert!(
                refusal.message.starts_with("Syntax error: invalid number"),
                "{refusal}"
            );
            assert!(!refusal.message.contains("column"), "{refusal}");
        }
    }

    #[test]
    fn characters_outside_the_grammar_are_named() {
        let parse = Code::ParseFailed;
        assert_eq!(
            scanned("{ a % }"),
            (parse, "Unexpected \"%\"".into(), Some((1, 5)))
        );
        assert_eq!(
            scanned("{ é }"),
            (parse, "Unexpected character U+00E9".into(), Some((1, 3)))
        );
        assert_eq!(
            scanned("#é\r\n\0"),
            (parse, "Unexpected character U+0000".into(), Some((2, 1)))
        );
        assert_eq!(
            scanned("{ .. }"),
            (parse, "Unexpected \".\"".into(), Some((1, 3)))
        );
    }

    #[test]
    fn tokens_are_counted_and_white_space_is_free() {
        let fields = |n: usize| format!("{{ {} }}", "a(b:1)".repeat(n));
        assert_eq!(fields(333).len(), 333 * 6 + 4);
        admitted(&format!("{{ a }}{}", " ,\n".repeat(5_000)));
        assert!(lexer::scan(&fields(333), &DocumentLimits::default()).is_ok());
        assert_eq!(scanned(&fields(334)).0, Code::DocumentTooLarge);
    }

    #[test]
    fn bytes_are_counted() {
        let padded = |n: usize| format!("{{ a }}{}", " ".repeat(n - 5));
        admitted(&padded(16 * 1024));
        assert_eq!(refused(&padded(16 * 1024 + 1)).code, Code::DocumentTooLarge);
    }

    #[test]
    fn the_configured_nesting_has_a_ceiling() {
        let limits = DocumentLimits {
            nesting: usize::MAX,
            ..DocumentLimits::default()
        };
        let document = format!("{{ a(b: {}{}) }}", "[".repeat(63), "]".repeat(63));
        let refusal = admit(&document, None, &Map::new(), &limits).expect_err("65 brackets");
        assert_eq!(refusal.code, Code::DocumentTooLarge);
    }
}

mod syntax {
    use super::*;

    #[test]
    fn messages_say_what_was_expected_and_quote_nothing() {
        let refusal = refused("{ a(secret) }");
        assert_eq!(refusal.code.as_str(), "GRAPHQL_PARSE_FAILED");
        assert_eq!(refusal.location, Some((1, 5)));
        assert!(
            refusal.message.starts_with("Syntax error: expected"),
            "{refusal}"
        );
        assert!(!refusal.message.contains("secret"), "{refusal}");
    }

    #[test]
    fn nothing_is_no_document() {
        for document in ["", " ,\n", "# only a comment"] {
            assert_eq!(refused(document).message, "The document is empty");
        }
        assert_eq!(
            refused("fragment F on T { a }").message,
            "document does not contain an operation"
        );
    }

    #[test]
    fn names_are_unique() {
        for document in [
            "query A { a } query A { b }",
            "{ a } { b }",
            "{ a } query A { b }",
            "{ a } fragment F on T { a } fragment F on T { a }",
        ] {
            assert_eq!(refused(document).code, Code::ParseFailed);
        }
    }

    #[test]
    fn messages_are_short() {
        let long = "é".repeat(300);
        let refusal = AdmissionError::new(Code::ParseFailed, long);
        assert_eq!(refusal.message.chars().count(), 200);
    }
}

mod limits {
    use super::*;

    /// Asserts that `document(most)` is admitted and `document(most + 1)` refused with `message`.
    fn limited(limit: usize, message: &str, document: impl Fn(usize) -> String) {
        admitted(&document(limit));
        let refusal = refused(&document(limit + 1));
        assert_eq!(refusal.message, message);
        assert_eq!(refusal.code, Code::DocumentTooComplex);
        assert_eq!(refusal.code.status(), 422);
    }

    fn numbered(n: usize, item: impl Fn(usize) -> String) -> String {
        (0..n).map(item).collect()
    }

    #[test]
    fn operations() {
        let document = |n| numbered(n, |i| format!("query Q{i} {{ a }}"));
        let choose = |n| {
            admit(
                &document(n),
                Some("Q0"),
                &Map::new(),
                &DocumentLimits::default(),
            )
        };
        assert!(choose(10).is_ok());
        let refusal = choose(11).expect_err("eleven operations");
        assert_eq!(
            refusal.message,
            "Too many operations: at most 10 are allowed"
        );
    }

    #[test]
    fn fragments() {
        limited(50, "Too many fragments: at most 50 are allowed", |n| {
            format!(
                "{{ a }} {}",
                numbered(n, |i| format!("fragment F{i} on T {{ a }}"))
            )
        });
    }

    #[test]
    fn variables() {
        limited(50, "Too many variables: at most 50 are allowed", |n| {
            format!("query({}) {{ a }}", numbered(n, |i| format!("$v{i}: Int ")))
        });
    }

    #[test]
    fn arguments() {
        limited(30, "Too many arguments: at most 30 are allowed", |n| {
            format!("{{ a({}) }}", numbered(n, |i| format!("v{i}: 1 ")))
        });
        limited(30, "Too many arguments: at most 30 are allowed", |n| {
            format!("{{ a @d({}) }}", numbered(n, |i| format!("v{i}: 1 ")))
        });
    }

    #[test]
    fn directives() {
        for place in [
            "query @d { a }",
            "query($v: Int @d) { a }",
            "{ a @d }",
            "{ ... @d { a } }",
            "{ ...F @d } fragment F on T { a }",
            "{ ...F } fragment F on T @d { a }",
            "{ a } fragment Unused on T { a @d }",
        ] {
            limited(
                5,
                "Too many directives in one location: at most 5 are allowed",
                |n| place.replace("@d", &"@d ".repeat(n)),
            );
        }
        limited(50, "Too many directives: at most 50 are allowed", |n| {
            format!("{{ z {{ {} }} }}", "a @d ".repeat(n))
        });
    }

    #[test]
    fn selections_are_expanded() {
        let message = "Too many selections: at most 1000 are allowed";
        // 1 + 9 spreads of 110 fields each, and 1 to 11 fields more.
        limited(0, message, |n| {
            format!(
                "{{ z {{ {} {} }} }} fragment F on T {{ {} }}",
                "...F ".repeat(9),
                "a ".repeat(n),
                "a ".repeat(110)
            )
        });
        // Both operations count, whichever is chosen.
        let document = format!(
            "query A {{ z {{ {} }} }} query B {{ z {{ {} }} }}",
            "a ".repeat(499),
            "a ".repeat(500),
        );
        let refusal = admit(
            &document,
            Some("A"),
            &Map::new(),
            &DocumentLimits::default(),
        );
        assert_eq!(refusal.expect_err("1001 selections").message, message);
    }

    #[test]
    fn depth_counts_fields_through_fragments() {
        let nested = |n: usize| format!("{}a{}", "a { ".repeat(n - 1), " }".repeat(n - 1));
        let message = "Too many nested fields: at most 12 are allowed";
        limited(12, message, |n| format!("{{ {} }}", nested(n)));
        limited(12, message, |n| {
            format!(
                "{{ a {{ ... {{ ...F }} }} }} fragment F on T {{ {} }}",
                nested(n - 1)
            )
        });
        limited(12, message, |n| format!("{{ a {} b {{ c }} }}", nested(n)));
        // An operation that is not chosen is validated like the others.
        let document = format!("query A {{ a }} query B {{ {} }}", nested(13));
        let refusal = admit(
            &document,
            Some("A"),
            &Map::new(),
            &DocumentLimits::default(),
        );
        assert_eq!(refusal.expect_err("thirteen deep").message, message);
    }

    #[test]
    fn introspection_has_its_own_depth() {
        let nested = |n: usize| format!("{}a{}", "a { ".repeat(n - 1), " }".repeat(n - 1));
        limited(
            20,
            "Too many nested introspection fields: at most 20 are allowed",
            |n| format!("{{ __schema {{ {} b }} c }}", nested(n)),
        );
        limited(
            3,
            "Too many nested introspection lists: at most 3 are allowed",
            |n| {
                let lists = format!("{}a{}", "fields { ".repeat(n), " }".repeat(n));
                format!("{{ ...F }} fragment F on Q {{ __type {{ {lists} b }} }}")
            },
        );
        assert!(admitted("{ ...F b } fragment F on Q { c __type { a } b }").introspection);
        assert!(!admitted("{ a { __typename } }").introspection);
    }

    #[test]
    fn fragments_within_fragments_are_levels_too() {
        // 2 fragments, each 15 inline fragments deep: no nested field, but as deep for the library.
        let message = "Too many nested selection sets: at most 32 are allowed";
        let nested = |n: usize, it: &str| format!("{}{it}{}", "... {".repeat(n), "}".repeat(n));
        limited(15, message, |n| {
            format!(
                "{{ ...F }} fragment F on T {{ {} }} fragment G on T {{ {} }}",
                nested(14, "...G"),
                nested(n, "a")
            )
        });
    }

    #[test]
    fn aliases_are_expanded() {
        limited(30, "Too many aliases: at most 30 are allowed", |n| {
            let aliases = numbered(n / 2, |i| format!("x{i}: a "));
            let one_more = if n % 2 == 1 { "y: a" } else { "" };
            format!("{{ ...F z {{ ...F {one_more} }} }} fragment F on T {{ {aliases} }}")
        });
    }

    #[test]
    fn root_fields_are_expanded() {
        limited(10, "Too many root fields: at most 10 are allowed", |n| {
            let fields = "a ".repeat(n - 6);
            format!("mutation {{ ...F ... {{ ...F }} {fields} }} fragment F on T {{ a a a }}")
        });
        limited(50, "Too many root fields: at most 50 are allowed", |n| {
            format!("{{ {} }}", "a ".repeat(n))
        });
    }

    #[test]
    fn values_are_weighted_selections() {
        // 1 + 100 × (1 + 99 × (1 + n))
        limited(9, "Too many values: at most 100000 are allowed", |n| {
            let fields = "a ".repeat(n);
            format!("{{ l(first: 100) {{ m(first: 99) {{ nodes {{ {fields} }} }} }} }}")
        });
    }

    #[test]
    fn variables_json() {
        let refused = |variables| {
            let refusal = with_variables("{ a }", variables).expect_err("variables too large");
            assert_eq!(
                (refusal.code, refusal.code.status()),
                (Code::VariablesTooLarge, 400)
            );
        };
        let nested = |n: usize| (0..n).fold(json!(1), |value, _| json!([value]));
        assert!(with_variables("{ a }", json!({ "v": nested(31) })).is_ok());
        refused(json!({ "v": nested(32) }));
        assert!(with_variables("{ a }", json!({ "v": vec![0; 1_999] })).is_ok());
        refused(json!({ "v": vec![0; 2_000] }));
        refused(json!({ "v": vec![vec![0; 100]; 20] }));
        let many: Map<_, _> = (0..2_001).map(|i| (format!("v{i}"), json!(1))).collect();
        refused(Value::Object(many));
    }
}

mod cycles {
    use super::*;

    fn cyclic(document: &str, name: &str, location: (usize, usize)) {
        let refusal = refused(document);
        assert_eq!(
            refusal.message,
            format!("The fragment \"{name}\" spreads itself")
        );
        assert_eq!(refusal.code.as_str(), "GRAPHQL_VALIDATION_FAILED");
        assert_eq!(refusal.location, Some(location));
    }

    #[test]
    fn are_refused_and_named() {
        cyclic("{ ...F }\nfragment F on T { ...F }", "F", (2, 19));
        cyclic(
            "{ ...F }\nfragment F on T { a { ...G } }\nfragment G on T { ... { ...F } }",
            "F",
            (3, 25),
        );
    }

    #[test]
    fn are_refused_where_nothing_reaches_them() {
        cyclic("{ a }\nfragment F on T { ...F }", "F", (2, 19));
    }

    #[test]
    fn are_distinguished_from_the_fragments_that_lead_to_them() {
        let document = "{ a }\nfragment A on T { ...B }\nfragment B on T { ...C }\n\
                        fragment C on T { ...C ...D }\nfragment D on T { a }";
        cyclic(document, "C", (4, 19));
    }

    #[test]
    fn unknown_fragments_are_left_to_validation() {
        admitted("{ ...Nobody } fragment F on T { ...NobodyElse }");
    }
}

mod pages {
    use super::*;

    #[test]
    fn multiply_along_a_path_and_add_up_beside_it() {
        let document = "{ a(first: 10) { edges { node { b(last: 5) { nodes { id } } } } } c(first: 3) { id } }";
        assert_eq!(nodes(document, json!({})), 10 * (1 + 5) + 3);
    }

    #[test]
    fn have_a_default_size() {
        assert_eq!(nodes("{ a { edges { node { id } } } }", json!({})), 20);
        assert_eq!(
            nodes(
                "{ a { ... on C { ...F } } } fragment F on C { nodes { id } }",
                json!({})
            ),
            20
        );
        assert_eq!(nodes("{ a { totalCount } }", json!({})), 0);
        assert_eq!(nodes("{ a(first: null) { totalCount } }", json!({})), 20);
    }

    #[test]
    fn come_from_variables() {
        let document = "query($n: Int = 7) { a(first: $n) { nodes { id } } }";
        assert_eq!(nodes(document, json!({ "n": 3 })), 3);
        assert_eq!(nodes(document, json!({ "n": null })), 20);
        assert_eq!(nodes(document, json!({})), 7);
        assert_eq!(
            nodes("query($n: Int) { a(first: $n) { id } }", json!({})),
            20
        );
        assert_eq!(
            nodes("query($n: Int = null) { a(first: $n) { id } }", json!({})),
            20
        );
        assert_eq!(nodes("{ a(first: $n) { id } }", json!({})), 20);
    }

    #[test]
    fn are_those_of_the_chosen_operation() {
        let document = "query A($n: Int = 2) { ...F } query B($n: Int = 100) { ...F ...F }
                        fragment F on Q { a(first: $n) { nodes { b(first: $n) { nodes { id } } } } }";
        let limits = DocumentLimits {
            nodes: 6,
            ..DocumentLimits::default()
        };
        let chosen = |name| admit(document, Some(name), &Map::new(), &limits);
        assert_eq!(chosen("A").expect("few nodes").nodes, 6);
        assert_eq!(
            chosen("B").expect_err("many nodes").code,
            Code::DocumentTooComplex
        );
    }

    #[test]
    fn out_of_range_count_as_the_nearest_in_range() {
        for (size, expected) in [
            ("0", 1),
            ("-5", 1),
            ("101", 100),
            ("99999999999999999999", 100),
            ("1.5", 100),
            ("\"5\"", 100),
            ("[$n]", 20),
        ] {
            assert_eq!(
                nodes(&format!("{{ a(first: {size}) {{ id }} }}"), json!({})),
                expected
            );
        }
        assert_eq!(nodes("{ a(first: 2, last: 9) { id } }", json!({})), 9);
        assert_eq!(nodes("{ a(first: $n) { id } }", json!({ "n": [1] })), 100);
    }

    #[test]
    fn of_lists_that_take_none_are_taken_to_be_short() {
        assert_eq!(
            nodes(
                "{ a(first: 5) { nodes { labels { id a { labels { id } } } } } }",
                json!({})
            ),
            5 * (1 + 10 * 11)
        );
        assert_eq!(admitted("{ a { labels { id } } }").values, 1 + 1 + 10);
        // Every list of objects in the schema is in `UNPAGED_LISTS`, in a connection, or loaded by
        // ids.
        let sdl = crate::graphql::sdl();
        let document = async_graphql::parser::parse_schema(&sdl).expect("SDL");
        let mut lists = BTreeSet::new();
        for definition in document.definitions {
            let TypeSystemDefinition::Type(definition) = definition else {
                continue;
            };
            let TypeKind::Object(object) = definition.node.kind else {
                continue;
            };
            for field in object.fields {
                let is_of_objects = |of: &Type| match &of.base {
                    BaseType::Named(name) => {
                        sdl.contains(&format!("\ntype {name} "))
                            || sdl.contains(&format!("\ninterface {name} "))
                    }
                    BaseType::List(_) => true,
                };
                if matches!(&field.node.ty.node.base, BaseType::List(of) if is_of_objects(of)) {
                    lists.insert(field.node.name.node.to_string());
                }
            }
        }
        let known = complexity::UNPAGED_LISTS
            .into_iter()
            .chain(["edges", "nodes"])
            .map(ToOwned::to_owned)
            .collect();
        assert_eq!(lists, known);
    }

    #[test]
    fn of_ids_are_as_long_as_their_list() {
        assert_eq!(nodes(r#"{ a(ids: ["x", $y, "z"]) { id } }"#, json!({})), 3);
        assert_eq!(nodes(r#"{ a(ids: "x") { id } }"#, json!({})), 100);
        let document =
            r#"query($ids: [ID!] = ["x", "y"]) { a(ids: $ids) { b(first: 10) { id } } }"#;
        assert_eq!(nodes(document, json!({ "ids": ["x", "y", "z"] })), 3 * 11);
        assert_eq!(nodes(document, json!({})), 2 * 11);
        assert_eq!(
            nodes(
                "query($ids: [ID!]) { a(ids: $ids) { id } }",
                json!({ "ids": vec!["x"; 500] })
            ),
            100
        );
        for unknown in [json!({ "ids": "x" }), json!({ "ids": null }), json!({})] {
            assert_eq!(
                nodes("query($ids: [ID!]) { a(ids: $ids) { id } }", unknown),
                100
            );
        }
    }

    #[test]
    fn are_at_most_ten_thousand_nodes() {
        let document = |n: u64| {
            format!(
                "{{ a(first: 99) {{ nodes {{ b(first: 100) {{ nodes {{ id }} }} }} }} c(first: {n}) {{ id }} }}"
            )
        };
        assert_eq!(nodes(&document(1), json!({})), 99 * 101 + 1);
        assert_eq!(
            refused(&document(2)).message,
            "Too many nodes: at most 10000 are allowed"
        );
    }
}

mod costs {
    use super::*;

    #[test]
    fn are_points() {
        assert_eq!(admitted("{ me { id name } }").cost, 1);
        assert_eq!(admitted("mutation { a b: a }").cost, 21);
        let page = admitted("{ a(first: 100) { nodes { b(first: 10) { nodes { id } } } } }");
        assert_eq!(page.nodes, 100 * 11);
        assert_eq!(page.values, 1 + 100 * (1 + 1 + 10 * 2));
        assert_eq!(page.cost, 1 + 2);
        assert_eq!(admitted("subscription { a { id } }").cost, 1);
        let searches = |document: &str| {
            let found = admitted(document);
            assert_eq!(u64::from(found.cost), 1 + 20 * found.searches, "{document}");
            found.searches
        };
        assert_eq!(
            searches("{ a(filter: { search: \"x\" }) { nodes { id } } }"),
            1
        );
        assert_eq!(
            searches("{ a(filter: { search: \"x\" }) { totalCount n: totalCount } }"),
            3
        );
        assert_eq!(
            searches("{ a(filter: { search: \"x\" }) { ...F } } fragment F on C { totalCount }"),
            2
        );
        assert_eq!(
            searches(
                "{ a(filter: { search: \"x\" }) { id } b: a(filter: { search: \"y\" }) { id } }"
            ),
            2
        );
        assert_eq!(
            searches("{ a(filter: { search: \" \" }) { id } b(filter: { search: null }) { id } }"),
            0
        );
        assert_eq!(
            searches("query ($s: String = \"x\") { a(filter: { search: $s }) { id } }"),
            1
        );
        assert_eq!(
            searches("query ($f: F = { search: \"x\" }) { a(filter: $f) { id } }"),
            1
        );
        assert_eq!(
            searches("query ($f: F) { a(filter: $f) { totalCount } }"),
            0
        );
        let many: String = (0..11)
            .map(|n| format!("a{n}: a(filter: {{ search: \"x\" }}) {{ id }} "))
            .collect();
        assert_eq!(
            refused(&format!("{{ {many} }}")).message,
            "Too many searches: at most 10 are allowed"
        );
        let export = admitted("{ ...F } fragment F on Query { exportViewerData }");
        assert_eq!((export.cost, export.export), (1_001, true));
        let twice =
            refused("{ exportViewerData ...F } fragment F on Query { b: exportViewerData }");
        assert_eq!(twice.message, "Too many exports: at most 1 are allowed");
    }
    #[test]
    fn of_a_mutation_grow_with_the_text_that_it_writes() {
        let text = "ä".repeat(5_000);
        let cost = |document: &str, variables: Value| {
            with_variables(document, variables)
                .expect("an admitted document")
                .cost
        };
        let create = "mutation ($t: String!) { a(input: { t: $t }) { id } }";
        assert_eq!(cost(create, json!({ "t": "x".repeat(1_023) })), 11);
        assert_eq!(cost(create, json!({ "t": "x".repeat(1_024) })), 12);
        assert_eq!(
            cost(create, json!({ "t": text })),
            11 + 9,
            "bytes, not characters"
        );
        // However the text gets there.
        let whole = "mutation ($in: In!) { a(input: $in) { id } }";
        assert_eq!(
            cost(whole, json!({ "in": { "b": [{ "c": text }], "d": 7 } })),
            11 + 9
        );
        assert_eq!(
            cost(
                &format!("mutation {{ a(input: {{ b: [\"{text}\"] }}) {{ id }} }}"),
                json!({})
            ),
            11 + 9
        );
        assert_eq!(
            cost(
                &format!("mutation ($t: String = \"{text}\") {{ a(t: $t) {{ id }} }}"),
                json!({})
            ),
            11 + 9
        );
        let fragment = "mutation ($t: String!) { ...F b(t: $t) } fragment F on Mutation { a(t: $t) c: a(t: $t) }";
        assert_eq!(
            cost(fragment, json!({ "t": text })),
            31 + 29,
            "each use counts"
        );
        // Reading writes nothing, and a variable that is not used is not written.
        assert_eq!(
            cost(
                "query ($t: String!) { a(t: $t) { id } }",
                json!({ "t": text })
            ),
            1
        );
        assert_eq!(
            cost("mutation ($t: String) { a { id } }", json!({ "t": text })),
            11
        );
    }
}
