//! The OpenAPI document of the `/auth` routes, and the built-in pages. [`crate::harness::contract`]
//! checks every `/auth` answer of all tests against the document.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use fasttrack::auth::unsubscribe;
use fasttrack::error::Error;
use fasttrack::store::user;
use flate2::read::GzDecoder;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::contract::{DOCUMENT, validator};
use crate::harness::{Mailbox, PASSWORD, Reply, Server, text};
use crate::recovery;

/// Every operation: its path and the schema of its request body, if any.
fn operations() -> Vec<(String, Option<Value>)> {
    let paths = DOCUMENT["paths"].as_object().expect("paths").iter();
    let all = paths.map(|(path, item)| {
        let methods: Vec<&String> = item.as_object().expect("methods").keys().collect();
        assert_eq!(methods, ["post"], "{path}");
        (
            path.clone(),
            item["post"]["requestBody"]["content"]
                .get("application/json")
                .map(|body| body["schema"].clone()),
        )
    });
    all.collect()
}

/// The alternatives (`oneOf`) of a schema.
fn variants(schema: &Value) -> Vec<Value> {
    if let Some(reference) = schema["$ref"].as_str() {
        return variants(DOCUMENT.pointer(&reference[1..]).expect("a component"));
    }
    match schema["oneOf"].as_array() {
        Some(variants) => variants.clone(),
        None => vec![schema.clone()],
    }
}

/// A valid body built from the examples in the document.
fn example(schema: &Value) -> Value {
    let properties = schema["properties"].as_object().expect("members").iter();
    properties
        .map(|(name, property)| {
            (
                name.clone(),
                property.get("example").cloned().unwrap_or(json!("x")),
            )
        })
        .collect()
}

async fn send(server: &Server, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> Reply {
    Reply::to(
        server
            .request(Method::POST, path)
            .header("content-type", kind)
            .body(body),
    )
    .await
}

#[test]
fn every_route_under_auth_is_in_the_document() {
    let mut routes = BTreeSet::new();
    for file in ["src/http/auth.rs", "src/http/account_email.rs"] {
        let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
            .expect("a source");
        let quoted = source.split('"').filter(|word| word.starts_with("/auth/"));
        routes.extend(
            quoted
                .map(ToOwned::to_owned)
                .filter(|route| route != "/auth/page.js"),
        );
    }
    let known: BTreeSet<String> = operations().into_iter().map(|(path, _)| path).collect();
    assert_eq!(routes, known);
}

#[tokio::test]
async fn other_methods_are_rejected() {
    let server = Server::start().await;
    for (path, _) in operations() {
        for method in [Method::GET, Method::PUT, Method::PATCH, Method::DELETE] {
            let reply = Reply::to(server.request(method.clone(), &path)).await;
            // Two paths also serve an HTML page.
            let page = method == Method::GET
                && reply.headers["content-type"] == "text/html; charset=utf-8";
            let refused = reply.status == 405 && reply.body["code"] == "METHOD_NOT_ALLOWED";
            assert!(
                page || (refused
                    && reply.headers["allow"]
                        .to_str()
                        .expect("text")
                        .contains("POST")),
                "{method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn invalid_bodies_are_client_errors() {
    let server = Server::start().await;
    let odd = [
        json!(null),
        json!(0),
        json!([]),
        json!({}),
        json!(""),
        json!("\0"),
        json!("ü".repeat(300)),
        json!("' --"),
    ];
    let mut sent = 0;
    for (path, schema) in operations() {
        let Some(schema) = schema else { continue };
        let valid = validator(&schema, false);
        for variant in variants(&schema) {
            let good = example(&variant);
            assert!(valid.is_valid(&good), "{path} {good}");
            for name in good.as_object().expect("an object").keys() {
                let mut bodies: Vec<Value> = odd
                    .iter()
                    .map(|value| {
                        let mut body = good.clone();
                        body[name] = value.clone();
                        body
                    })
                    .collect();
                let mut without = good.clone();
                without.as_object_mut().expect("an object").remove(name);
                bodies.push(without);
                for body in bodies {
                    let status = send(&server, &path, "application/json", body.to_string())
                        .await
                        .status;
                    assert!(!status.is_server_error(), "{path} {body}: {status}");
                    assert!(
                        valid.is_valid(&body) || status.is_client_error(),
                        "{path} {body}: {status}"
                    );
                    sent += 1;
                }
            }
        }
    }
    assert!(sent > 100, "{sent}");
}

/// Identifies an answer: path, status, code.
fn known(path: &str, reply: &Reply) -> (String, String, String) {
    let code = reply.body.get("code").map(text);
    (
        path.to_owned(),
        reply.status.as_str().to_owned(),
        code.unwrap_or_default(),
    )
}

/// Every documented answer, except server errors.
fn documented() -> BTreeSet<(String, String, String)> {
    let mut all = BTreeSet::new();
    for (path, _) in operations() {
        let responses = DOCUMENT["paths"][&path]["post"]["responses"]
            .as_object()
            .expect("responses");
        for (status, response) in responses
            .iter()
            .filter(|(status, _)| !status.starts_with('5'))
        {
            let codes = response
                .pointer("/content/application~1problem+json/schema/allOf/1/properties/code/enum");
            match codes.and_then(Value::as_array) {
                Some(codes) => all.extend(
                    codes
                        .iter()
                        .map(|code| (path.clone(), status.clone(), text(code))),
                ),
                None => assert!(all.insert((path.clone(), status.clone(), String::new()))),
            }
        }
    }
    all
}

#[tokio::test]
async fn every_documented_answer_occurs() {
    let mut seen = BTreeSet::new();
    // Errors common to all operations.
    let limits = [
        ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", "1"),
        ("RATE_LIMIT_AUTH_PER_MINUTE", "1"),
    ];
    let strict = Server::with(&[
        limits[0],
        limits[1],
        ("RATE_LIMIT_ENABLED", "true"),
        ("ALLOWED_HOSTS", "tasks.example.org"),
    ])
    .await;
    for (path, schema) in operations() {
        let Some(schema) = schema else {
            seen.insert(known(
                &path,
                &Reply::to(strict.request(Method::POST, &path)).await,
            ));
            for _ in 0..2 {
                let request = strict
                    .request(Method::POST, &path)
                    .header("host", "tasks.example.org");
                seen.insert(known(&path, &Reply::to(request).await));
            }
            continue;
        };
        let body = example(&variants(&schema)[0]).to_string();
        for (kind, body) in [
            ("application/json", body.clone()),
            ("application/json", "{".to_owned()),
            ("application/json", "{}".to_owned()),
            ("application/json", "x".repeat(9_000)),
            ("text/plain", body.clone()),
        ] {
            for host in ["tasks.example.org", "elsewhere.example.org"] {
                for _ in 0..2 {
                    let request = strict
                        .request(Method::POST, &path)
                        .header("content-type", kind)
                        .header("host", host);
                    seen.insert(known(&path, &Reply::to(request.body(body.clone())).await));
                }
            }
        }
    }
    // Errors specific to each operation.
    let (server, mut mailbox): (Server, Mailbox) =
        recovery::start(&[("REQUIRE_VERIFIED_EMAIL", "true")]).await;
    let mut ask = async |path: &str, body: Value| {
        let reply = server.post(path, body).await;
        seen.insert(known(path, &reply));
        reply.body
    };
    let account = |change: Value| {
        let mut body =
            json!({ "email": "alice@example.org", "username": "alice", "password": PASSWORD });
        body.as_object_mut()
            .expect("an object")
            .extend(change.as_object().expect("an object").clone());
        body
    };
    for change in [
        json!({}),
        json!({ "username": "bob" }),
        json!({ "email": "no address" }),
        json!({ "username": "x" }),
        json!({ "password": "weak" }),
        json!({ "password": "x".repeat(257) }),
        json!({ "display_name": " " }),
    ] {
        ask("/auth/register", account(change)).await;
    }
    let link = mailbox.next().await.token();
    ask(
        "/auth/login",
        json!({ "username": "alice", "password": PASSWORD }),
    )
    .await;
    ask(
        "/auth/verify-email/resend",
        json!({ "email": "nobody@example.org" }),
    )
    .await;
    for wrong in ["no address", " ", &"x".repeat(255)] {
        ask("/auth/verify-email/resend", json!({ "email": wrong })).await;
        ask("/auth/password-reset", json!({ "email": wrong })).await;
    }
    ask("/auth/verify-email", json!({ "token": link })).await;
    ask("/auth/verify-email", json!({ "token": link })).await;
    let tokens = ask(
        "/auth/login",
        json!({ "email": "alice@example.org", "password": PASSWORD }),
    )
    .await;
    let tokens = ask(
        "/auth/refresh",
        json!({ "refresh_token": tokens["refresh_token"] }),
    )
    .await;
    ask("/auth/refresh", json!({ "refresh_token": "x" })).await;
    // Two users want the same address; the second to verify it loses.
    let alice = server.nobody().with_tokens(&tokens);
    alice
        .mutate(
            "updateViewer",
            json!({ "email": "carol@example.org", "currentPassword": PASSWORD }),
        )
        .await
        .ok();
    let undo = mailbox.next().await.token();
    let late = mailbox.next().await.token();
    ask(
        "/auth/register",
        json!({ "email": "carol@example.org", "username": "carol", "password": PASSWORD }),
    )
    .await;
    ask("/auth/verify-email", json!({ "token": late })).await;
    mailbox.next().await;
    ask("/auth/email-change/cancel", json!({ "token": undo })).await;
    ask("/auth/email-change/cancel", json!({ "token": undo })).await;
    mailbox.next().await;
    ask(
        "/auth/password-reset",
        json!({ "email": "alice@example.org" }),
    )
    .await;
    let link = mailbox.next().await.token();
    for password in ["weak", &"x".repeat(257), PASSWORD, PASSWORD] {
        ask(
            "/auth/password-reset/confirm",
            json!({ "token": link, "new_password": password }),
        )
        .await;
    }
    assert_eq!(mailbox.next().await.subject(), "Your password was changed");
    ask(
        "/auth/password-reset",
        json!({ "email": "alice@example.org" }),
    )
    .await;
    let again = json!({ "token": mailbox.next().await.token(), "new_password": PASSWORD, "issue_device_token": true });
    ask("/auth/password-reset/confirm", again).await;
    for _ in 0..6 {
        ask(
            "/auth/login",
            json!({ "username": "nobody", "password": "x" }),
        )
        .await;
    }
    let again = ask(
        "/auth/login",
        json!({ "email": "alice@example.org", "password": PASSWORD }),
    )
    .await;
    let again = server.nobody().with_tokens(&again);
    let list = "/auth/unsubscribe";
    let of_alice = server.run(async |app| {
        let alice = user::find_by_username(&mut app.db.conn().await?, "alice")
            .await?
            .expect("an account");
        Result::<String, Error>::Ok(unsubscribe::token(&app.config.secret_key, alice.id))
    });
    for token in [of_alice.await.expect("a token"), "x".to_owned()] {
        seen.insert(known(
            list,
            &Reply::to(server.request(Method::POST, &format!("{list}?token={token}"))).await,
        ));
    }
    for _ in 0..2 {
        seen.insert(known(
            "/auth/logout",
            &Reply::to(again.post("/auth/logout")).await,
        ));
    }
    assert_eq!(seen, documented());
}

#[tokio::test]
async fn docs_are_served_unless_disabled() {
    let server = Server::start().await;
    let get = |path: &str| Reply::to(server.request(Method::GET, path));
    assert_eq!(get("/docs/openapi.json").await.body, *DOCUMENT);
    assert!(
        DOCUMENT["openapi"]
            .as_str()
            .expect("a version")
            .starts_with("3.1.")
    );
    let page = get("/docs").await;
    let (page, policy) = (
        text(&page.body),
        page.headers["content-security-policy"].clone(),
    );
    assert!(
        policy
            .to_str()
            .expect("text")
            .contains("script-src 'self';"),
        "{policy:?}"
    );
    for (_, rest) in page
        .match_indices("src=\"")
        .map(|(at, found)| page.split_at(at + found.len()))
    {
        let file = rest.split('"').next().expect("an address");
        assert!(
            file.starts_with('/') && get(file).await.status == 200,
            "{file}"
        );
    }
    assert!(
        !page.contains("http"),
        "nothing is loaded from other origins"
    );
    let server = server.again(&[("DOCS_ENABLED", "false")]).await;
    for path in ["/docs", "/docs/openapi.json"] {
        assert_eq!(
            Reply::to(server.request(Method::GET, path)).await.status,
            404
        );
    }
}

#[tokio::test]
async fn graphiql_negotiates_gzip() {
    let server = Server::start().await;
    let get = async |encoding: &str| {
        let request = server
            .request(Method::GET, "/graphiql")
            .header("accept-encoding", encoding);
        let answer = request.send().await.expect("an answer");
        let packed = answer
            .headers()
            .get("content-encoding")
            .is_some_and(|encoding| encoding == "gzip");
        (packed, answer.bytes().await.expect("a body"))
    };
    let (packed, small) = get("gzip").await;
    let (unpacked, page) = get("identity").await;
    assert!(!unpacked && page.starts_with(b"<!doctype html>"));
    let mut same = Vec::new();
    if packed {
        GzDecoder::new(&*small)
            .read_to_end(&mut same)
            .expect("gzip");
    } else {
        // The fallback page of a build without GraphiQL.
        same.extend_from_slice(&small);
    }
    assert_eq!(same, page);
}
