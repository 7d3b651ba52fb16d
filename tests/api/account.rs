//! Accounts over REST: sign-up, login, refresh and logout.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::harness::{PASSWORD, Person, Reply, Server, text};

const MINUTE: Duration = Duration::from_secs(60);

async fn register(server: &Server, change: Value) -> Reply {
    let mut body =
        json!({ "email": "alice@example.org", "username": "alice", "password": PASSWORD });
    for (field, value) in change.as_object().expect("an object") {
        body[field] = value.clone();
    }
    server.post("/auth/register", body).await
}

/// Status and code of a problem document, which must agree with the HTTP status and content type.
fn problem(reply: &Reply) -> (u16, String) {
    assert_eq!(
        reply.headers[CONTENT_TYPE], "application/problem+json",
        "{}",
        reply.body
    );
    assert_eq!(reply.body["status"], reply.status.as_u16());
    assert!(!text(&reply.body["detail"]).is_empty() && !text(&reply.body["title"]).is_empty());
    (reply.status.as_u16(), text(&reply.body["code"]))
}

async fn signed_in(person: &Person) -> bool {
    let answer = person.ask("{ viewer { id } }", json!({})).await;
    if answer.codes().is_empty() {
        return true;
    }
    assert_eq!(answer.code(), "UNAUTHENTICATED");
    false
}

async fn refresh(server: &Server, token: &str) -> Reply {
    server
        .post("/auth/refresh", json!({ "refresh_token": token }))
        .await
}

async fn logout(person: &Person) -> Reply {
    Reply::to(person.post("/auth/logout")).await
}

#[tokio::test]
async fn sign_up_returns_the_account_without_the_password() {
    let server = Server::start().await;
    let reply = register(
        &server,
        json!({ "email": "Alice@Example.org", "display_name": "  Alice Moreau " }),
    )
    .await;
    assert_eq!(reply.status, 201);
    let mut account = reply.body;
    assert!(account["id"].take().is_string());
    assert_eq!(
        account,
        json!({
            "id": null, "email": "Alice@Example.org", "username": "alice", "display_name": "Alice Moreau",
            "role": "USER", "is_active": true, "email_verified": false, "created_at": server.moment(Duration::ZERO),
        })
    );
}

#[tokio::test]
async fn the_display_name_defaults_to_the_username() {
    let server = Server::start().await;
    assert_eq!(
        register(&server, json!({})).await.body["display_name"],
        "alice"
    );
}

#[tokio::test]
async fn sign_up_errors_are_reported_field_by_field() {
    let server = Server::start().await;
    let long = |length| "a".repeat(length);
    for (field, value, code) in [
        ("email", json!("nobody"), "INVALID"),
        ("email", json!(""), "BLANK"),
        ("email", json!("a b@example.org"), "INVALID"),
        ("email", json!("a\u{0}@example.org"), "INVALID"),
        (
            "email",
            json!(format!("{}@example.org", long(250))),
            "TOO_LONG",
        ),
        ("username", json!("al"), "TOO_SHORT"),
        ("username", json!(long(51)), "TOO_LONG"),
        ("username", json!("al ice"), "INVALID"),
        ("username", json!("älice"), "INVALID"),
        ("username", json!("ali\u{0}ce"), "INVALID"),
        ("display_name", json!("   "), "BLANK"),
        ("display_name", json!("ü".repeat(101)), "TOO_LONG"),
        (
            "password",
            json!("short-1A"[..7].to_owned()),
            "WEAK_PASSWORD",
        ),
        ("password", json!("alllowercase-1"), "WEAK_PASSWORD"),
        ("password", json!("NoDigits-here"), "WEAK_PASSWORD"),
        ("password", json!("N0specials"), "WEAK_PASSWORD"),
        ("password", json!(format!("Aa-1{}", long(300))), "TOO_LONG"),
        ("password", json!("Correct\u{0}Horse-7"), "INVALID"),
    ] {
        let reply = register(&server, json!({ field: value })).await;
        assert_eq!(problem(&reply), (422, code.to_owned()), "{field} {value}");
        let errors = reply.body["errors"].as_array().expect("errors");
        assert_eq!(
            (errors.len(), &errors[0]["field"], &errors[0]["code"]),
            (1, &json!(field), &json!(code))
        );
    }
    let reply = register(
        &server,
        json!({ "email": "x", "username": "x", "password": "x" }),
    )
    .await;
    let fields: Vec<&Value> = reply.body["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|e| &e["field"])
        .collect();
    assert_eq!(
        fields,
        ["email", "username", "password"],
        "all fields are reported at once"
    );
    assert_eq!(
        register(&server, json!({})).await.status,
        201,
        "no failed attempt was stored"
    );
}

#[tokio::test]
async fn email_and_username_are_unique_ignoring_case() {
    let server = Server::start().await;
    assert_eq!(register(&server, json!({})).await.status, 201);
    let reply = register(
        &server,
        json!({ "email": "ALICE@example.ORG", "username": "other" }),
    )
    .await;
    assert_eq!(problem(&reply), (409, "TAKEN".to_owned()));
    assert_eq!(reply.body["errors"][0]["field"], "email");
    let reply = register(
        &server,
        json!({ "email": "other@example.org", "username": "ALICE" }),
    )
    .await;
    assert_eq!(reply.body["errors"][0]["field"], "username");
    let reply = register(&server, json!({})).await;
    assert_eq!(
        reply.body["errors"].as_array().map(Vec::len),
        Some(2),
        "both fields are reported at once"
    );
}

#[tokio::test]
async fn login_accepts_email_username_or_oauth2_form() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let login = server.request(Method::POST, "/auth/login");
    let form = [
        ("grant_type", "password"),
        ("username", "alice"),
        ("password", PASSWORD),
    ];
    let by_form = Reply::to(login.form(&form)).await;
    let by_email = server
        .post(
            "/auth/login",
            json!({ "email": "Alice@example.org", "password": PASSWORD }),
        )
        .await;
    let by_name = server
        .post(
            "/auth/login",
            json!({ "username": "ALICE", "password": PASSWORD }),
        )
        .await;
    for reply in [by_form, by_email, by_name] {
        assert_eq!(reply.status, 200);
        assert_eq!(reply.headers["cache-control"], "no-store");
        assert_eq!(
            (&reply.body["token_type"], &reply.body["expires_in"]),
            (&json!("bearer"), &json!(900))
        );
        assert!(reply.body["refresh_token"].is_string());
        let person = server.nobody().with_tokens(&reply.body);
        assert_eq!(
            person.query("{ viewer { id } }", json!({})).await["viewer"]["id"],
            alice.id
        );
    }
}

#[tokio::test]
async fn a_wrong_password_an_unknown_name_and_a_disabled_account_get_the_same_answer() {
    let server = Server::start().await;
    let (admin, bob) = (server.admin("admin").await, server.person("bob").await);
    server.person("alice").await;
    admin
        .mutate("updateUser", json!({ "id": bob.id, "isActive": false }))
        .await
        .ok();
    let mut answers = Vec::new();
    for (name, password) in [
        ("alice@example.org", "Wrong-Horse-7"),
        ("nobody@example.org", PASSWORD),
        ("bob@example.org", PASSWORD),
        ("alice@example.org", ""),
        ("", PASSWORD),
        ("al\u{0}ice", PASSWORD),
        ("alice", "\u{0}"),
    ] {
        let reply = server
            .post(
                "/auth/login",
                json!({ "email": name, "password": password }),
            )
            .await;
        assert_eq!(
            problem(&reply),
            (401, "INVALID_CREDENTIALS".to_owned()),
            "{name:?} {password:?}"
        );
        answers.push(reply.body);
    }
    assert!(
        answers.windows(2).all(|pair| pair[0] == pair[1]),
        "{answers:?}"
    );
}

#[tokio::test]
async fn access_token_expires_after_fifteen_minutes() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    server.advance(MINUTE * 15 - Duration::from_secs(1));
    assert!(signed_in(&alice).await);
    server.advance(Duration::from_secs(1));
    assert!(!signed_in(&alice).await);
}

#[tokio::test]
async fn foreign_and_non_access_tokens_are_rejected() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let good = alice.access_token.clone().expect("a token");
    let (head, signature) = good.rsplit_once('.').expect("a signature");
    let flipped: String = signature.chars().rev().collect();
    for token in [
        String::new(),
        "x".to_owned(),
        alice.refresh_token.clone(),
        format!("{head}."),
        format!("{head}.{flipped}"),
    ] {
        let reply = Reply::to(
            server
                .request(Method::POST, "/graphql")
                .bearer_auth(&token)
                .json(&json!({})),
        )
        .await;
        assert_eq!(reply.status, 401, "{token:?}");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
        let reply = Reply::to(
            server
                .request(Method::POST, "/auth/logout")
                .bearer_auth(&token),
        )
        .await;
        assert_eq!(
            problem(&reply),
            (401, "UNAUTHENTICATED".to_owned()),
            "{token:?}"
        );
    }
    let other = Server::with(&[("SECRET_KEY", "the access token key of another server")]).await;
    let stranger = other
        .nobody()
        .with_tokens(&json!({ "access_token": good, "refresh_token": "" }));
    assert!(!signed_in(&stranger).await);
}

#[tokio::test]
async fn refresh_rotates_both_tokens() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    server.advance(MINUTE);
    let reply = refresh(&server, &alice.refresh_token).await;
    assert_eq!(reply.status, 200);
    let renewed = alice.with_tokens(&reply.body);
    assert_ne!(renewed.refresh_token, alice.refresh_token);
    assert!(signed_in(&renewed).await);
    server.advance(Duration::from_secs(11));
    let reply = refresh(&server, &alice.refresh_token).await;
    assert_eq!(problem(&reply), (401, "UNAUTHENTICATED".to_owned()));
    assert!(
        !signed_in(&renewed).await,
        "a reused token may be stolen: the session ends"
    );
    assert_eq!(refresh(&server, &renewed.refresh_token).await.status, 401);
}

#[tokio::test]
async fn previous_refresh_token_returns_the_same_successor_within_grace() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let first = refresh(&server, &alice.refresh_token).await.body;
    server.advance(Duration::from_secs(10));
    let second = refresh(&server, &alice.refresh_token).await.body;
    assert_eq!(first["refresh_token"], second["refresh_token"]);
    assert_eq!(
        refresh(&server, &text(&second["refresh_token"]))
            .await
            .status,
        200
    );
    assert_eq!(
        refresh(&server, &alice.refresh_token).await.status,
        401,
        "no grace for older generations"
    );
}

#[tokio::test]
async fn concurrent_refreshes_create_one_successor() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let replies =
        futures_util::future::join_all((0..8).map(|_| refresh(&server, &alice.refresh_token)))
            .await;
    let successor = &replies[0].body["refresh_token"];
    assert!(
        replies
            .iter()
            .all(|reply| reply.status == 200 && reply.body["refresh_token"] == *successor)
    );
    assert_eq!(refresh(&server, &text(successor)).await.status, 200);
}

#[tokio::test]
async fn a_session_lasts_seven_days_after_its_last_refresh() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let day = MINUTE * 60 * 24;
    server.advance(day * 6);
    let renewed = text(&refresh(&server, &alice.refresh_token).await.body["refresh_token"]);
    server.advance(day);
    assert_eq!(refresh(&server, &bob.refresh_token).await.status, 401);
    assert_eq!(refresh(&server, &renewed).await.status, 200);
}

#[tokio::test]
async fn foreign_refresh_token_is_rejected() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let mut forged = alice.refresh_token.clone().into_bytes();
    forged[30] = if forged[30] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("ASCII");
    for token in [
        "",
        "x",
        &forged,
        alice.access_token.as_deref().unwrap_or_default(),
        "ü\u{0}",
    ] {
        assert_eq!(
            problem(&refresh(&server, token).await),
            (401, "UNAUTHENTICATED".to_owned()),
            "{token:?}"
        );
    }
    assert_eq!(
        refresh(&server, &alice.refresh_token).await.status,
        200,
        "the session is not affected"
    );
}

#[tokio::test]
async fn logout_revokes_both_tokens_of_this_session_only() {
    let server = Server::start().await;
    let here = server.person("alice").await;
    let there = server.login("alice").await;
    let reply = logout(&here).await;
    assert_eq!((reply.status.as_u16(), &reply.body), (204, &Value::Null));
    assert!(!signed_in(&here).await);
    assert_eq!(refresh(&server, &here.refresh_token).await.status, 401);
    assert_eq!(
        problem(&logout(&here).await),
        (401, "UNAUTHENTICATED".to_owned())
    );
    assert!(signed_in(&there).await);
    assert_eq!(refresh(&server, &there.refresh_token).await.status, 200);
}

#[tokio::test]
async fn disabling_an_account_takes_effect_with_the_next_request() {
    let server = Server::start().await;
    let (admin, bob) = (server.admin("admin").await, server.person("bob").await);
    admin
        .mutate("updateUser", json!({ "id": bob.id, "isActive": false }))
        .await
        .ok();
    assert!(!signed_in(&bob).await);
    assert_eq!(refresh(&server, &bob.refresh_token).await.status, 401);
    admin
        .mutate("updateUser", json!({ "id": bob.id, "isActive": true }))
        .await
        .ok();
    assert!(signed_in(&server.login("bob").await).await);
}

#[tokio::test]
async fn unreadable_body_is_a_client_error() {
    let server = Server::start().await;
    let large = format!(r#"{{ "email": "{}" }}"#, "x".repeat(9_000));
    for path in ["/auth/register", "/auth/login", "/auth/refresh"] {
        for (body, status) in [
            ("", 400),
            ("{", 400),
            ("nonsense", 400),
            (r#"{ "email": "\ud800", "refresh_token": "\ud800" }"#, 400),
            ("{}", 422),
            ("[]", 422),
            ("null", 422),
            (
                r#"{ "email": 1, "username": {}, "password": [], "refresh_token": null }"#,
                422,
            ),
        ] {
            let request = server
                .request(Method::POST, path)
                .header(CONTENT_TYPE, "application/json");
            let reply = Reply::to(request.body(body.to_owned())).await;
            assert_eq!(
                problem(&reply),
                (status, "BAD_REQUEST".to_owned()),
                "{path} {:.40}",
                body
            );
        }
        let large = server
            .request(Method::POST, path)
            .header(CONTENT_TYPE, "application/json")
            .body(large.clone());
        assert_eq!(
            problem(&Reply::to(large).await),
            (413, "PAYLOAD_TOO_LARGE".to_owned()),
            "{path}"
        );
        let untyped = server
            .request(Method::POST, path)
            .header(CONTENT_TYPE, "text/plain")
            .body("{}");
        assert_eq!(
            problem(&Reply::to(untyped).await),
            (415, "UNSUPPORTED_MEDIA_TYPE".to_owned()),
            "{path}"
        );
        let reply = Reply::to(server.request(Method::GET, path)).await;
        assert_eq!(
            problem(&reply),
            (405, "METHOD_NOT_ALLOWED".to_owned()),
            "{path}"
        );
        assert_eq!(reply.headers["allow"], "POST", "{path}");
    }
}

#[tokio::test]
async fn credentials_are_limited_by_address() {
    let server = Server::with(&[("RATE_LIMIT_ENABLED", "true")]).await;
    let wrong = json!({ "username": "nobody", "password": "x" });
    for _ in 0..5 {
        assert_eq!(server.post("/auth/login", wrong.clone()).await.status, 401);
    }
    let reply = server.post("/auth/login", wrong.clone()).await;
    assert_eq!(problem(&reply), (429, "RATE_LIMITED".to_owned()));
    let wait: u64 = reply.headers["retry-after"]
        .to_str()
        .expect("text")
        .parse()
        .expect("seconds");
    server.advance(Duration::from_secs(wait));
    let other = json!({ "username": "somebody", "password": "x" });
    assert_eq!(server.post("/auth/login", other).await.status, 401);
}
