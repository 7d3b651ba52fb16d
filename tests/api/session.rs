//! Sessions: refresh token rotation, revocation, and expiry.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use crate::harness::{PASSWORD, PATIENCE, Server, text};

const SESSIONS: &str = "{ viewer { sessions { id isCurrent userAgent ipAddress } } }";

#[tokio::test]
async fn a_hundred_concurrent_refreshes_create_one_successor() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    // Retry on 503, because a slow machine may run out of database connections.
    let refresh = async || loop {
        let reply = server
            .post(
                "/auth/refresh",
                json!({ "refresh_token": alice.refresh_token }),
            )
            .await;
        if reply.status != 503 {
            break reply;
        }
    };
    let replies = timeout(PATIENCE, join_all((0..100).map(|_| refresh())))
        .await
        .expect("answers before the timeout");
    let mut successors: Vec<String> = Vec::new();
    for reply in replies {
        assert_eq!(reply.status, 200, "{}", reply.body);
        successors.push(text(&reply.body["refresh_token"]));
    }
    successors.dedup();
    assert_eq!(successors.len(), 1, "all requests get the same successor");
    assert_ne!(successors[0], alice.refresh_token);
}

#[tokio::test]
async fn reuse_after_the_grace_period_ends_the_session() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let refresh = async |token: &str| {
        server
            .post("/auth/refresh", json!({ "refresh_token": token }))
            .await
    };
    let first = text(&refresh(&alice.refresh_token).await.body["refresh_token"]);
    server.advance(Duration::from_secs(9));
    let again = refresh(&alice.refresh_token).await;
    assert_eq!(text(&again.body["refresh_token"]), first);
    assert!(
        server
            .is_signed_in(&text(&again.body["access_token"]))
            .await
    );
    server.advance(Duration::from_secs(2));
    let late = refresh(&alice.refresh_token).await;
    assert_eq!(
        (late.status.as_u16(), &late.body["code"]),
        (401, &json!("UNAUTHENTICATED"))
    );
    assert_eq!(
        refresh(&first).await.status,
        401,
        "reuse ends the whole session"
    );
    assert!(
        !server
            .is_signed_in(&text(&again.body["access_token"]))
            .await,
        "its access tokens are revoked too"
    );
}

#[tokio::test]
async fn older_generation_ends_the_session_within_grace() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let refresh = async |token: &str| {
        server
            .post("/auth/refresh", json!({ "refresh_token": token }))
            .await
    };
    let second = text(&refresh(&alice.refresh_token).await.body["refresh_token"]);
    let third = text(&refresh(&second).await.body["refresh_token"]);
    assert_eq!(refresh(&alice.refresh_token).await.status, 401);
    assert_eq!(refresh(&third).await.status, 401);
}

#[tokio::test]
async fn a_forged_refresh_token_does_not_end_the_session() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let mut forged = alice.refresh_token.clone().into_bytes();
    let last = forged.len() - 2;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("ASCII");
    for token in [forged.as_str(), "", "x", &alice.refresh_token[1..], "ä"] {
        assert_eq!(
            server
                .post("/auth/refresh", json!({ "refresh_token": token }))
                .await
                .status,
            401,
            "{token}"
        );
    }
    assert_eq!(
        server
            .post(
                "/auth/refresh",
                json!({ "refresh_token": alice.refresh_token })
            )
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn refresh_extends_the_session() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let mut token = alice.refresh_token.clone();
    for _ in 0..3 {
        server.advance(Duration::from_secs(6 * 86_400));
        let reply = server
            .post("/auth/refresh", json!({ "refresh_token": token }))
            .await;
        assert_eq!(reply.status, 200);
        token = text(&reply.body["refresh_token"]);
    }
    server.advance(Duration::from_secs(7 * 86_400));
    assert_eq!(
        server
            .post("/auth/refresh", json!({ "refresh_token": token }))
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn users_list_and_revoke_only_their_own_sessions() {
    let server = Server::start().await;
    let phone = server.person("alice").await;
    let laptop = server.login("alice").await;
    let bob = server.person("bob").await;
    let admin = server.admin("root").await;

    let sessions = laptop.query(SESSIONS, json!({})).await;
    let sessions = sessions["viewer"]["sessions"]
        .as_array()
        .expect("sessions")
        .clone();
    assert_eq!(
        sessions
            .iter()
            .map(|session| session["isCurrent"] == true)
            .collect::<Vec<_>>(),
        [true, false]
    );
    assert_eq!(sessions[1]["ipAddress"], "127.0.0.1");
    let other = text(&sessions[1]["id"]);

    let node = json!({ "id": other });
    let find = "query ($id: ID!) { node(id: $id) { id __typename } }";
    assert_eq!(
        laptop.query(find, node.clone()).await["node"]["__typename"],
        "Session"
    );
    assert_eq!(bob.query(find, node.clone()).await["node"], json!(null));
    let document = "query ($username: String!) { user(username: $username) { sessions { id } } }";
    for other in [&bob, &admin] {
        assert_eq!(
            other
                .ask(document, json!({ "username": "alice" }))
                .await
                .code(),
            "FORBIDDEN"
        );
    }
    assert_eq!(
        bob.mutate("revokeSession", node.clone()).await.faults(),
        ["id: NOT_FOUND"]
    );
    assert!(server.is_signed_in(phone.token()).await);

    assert_eq!(
        laptop.mutate("revokeSession", node.clone()).await.ok(),
        json!(other)
    );
    assert!(!server.is_signed_in(phone.token()).await, "at once");
    assert!(server.is_signed_in(laptop.token()).await);
    assert_eq!(
        laptop.mutate("revokeSession", node).await.faults(),
        ["id: NOT_FOUND"],
        "it no longer exists"
    );
}

#[tokio::test]
async fn revoke_other_sessions_ends_all_others() {
    let server = Server::start().await;
    let first = server.person("alice").await;
    let second = server.login("alice").await;
    let current = server.login("alice").await;
    let document = "mutation { revokeOtherSessions { revokedCount } }";
    assert_eq!(
        current.query(document, json!({})).await["revokeOtherSessions"]["revokedCount"],
        2
    );
    assert_eq!(
        current.query(document, json!({})).await["revokeOtherSessions"]["revokedCount"],
        0
    );
    assert!(
        !server.is_signed_in(first.token()).await && !server.is_signed_in(second.token()).await
    );
    assert!(server.is_signed_in(current.token()).await);
}

#[tokio::test]
async fn only_streams_of_the_ended_session_close() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let other = server.login("alice").await;
    let admin = server.admin("root").await;
    let document = "subscription ($after: String) { events(after: $after) { __typename } }";
    let mut first = alice.subscribe(document, json!({})).await;
    let mut second = other.subscribe(document, json!({})).await;

    let logout = alice.post("/auth/logout").send().await.expect("an answer");
    assert_eq!(logout.status(), 204);
    first.end().await;
    let project = other.project("Apollo").await;
    other.task(&project, "still here", json!({})).await;
    assert_eq!(
        second.next().await["events"]["__typename"],
        "TaskCreatedEvent"
    );

    admin
        .mutate("updateUser", json!({ "id": other.id, "isActive": false }))
        .await
        .ok();
    second.end().await;
    assert!(!server.is_signed_in(other.token()).await);
    let login = json!({ "username": "alice", "password": PASSWORD });
    assert_eq!(
        server.post("/auth/login", login.clone()).await.body["code"],
        "INVALID_CREDENTIALS"
    );
    admin
        .mutate("updateUser", json!({ "id": other.id, "isActive": true }))
        .await
        .ok();
    assert!(
        !server.is_signed_in(other.token()).await,
        "ended sessions stay ended"
    );
    assert_eq!(server.post("/auth/login", login).await.status, 200);
}

#[tokio::test]
async fn role_change_takes_effect_with_the_next_request() {
    let server = Server::start().await;
    let (root, bob) = (server.admin("root").await, server.person("bob").await);
    let users = "{ users { totalCount } }";
    assert_eq!(bob.ask(users, json!({})).await.code(), "FORBIDDEN");
    root.mutate("updateUser", json!({ "id": bob.id, "role": "ADMIN" }))
        .await
        .ok();
    assert_eq!(bob.query(users, json!({})).await["users"]["totalCount"], 2);
    root.mutate("updateUser", json!({ "id": bob.id, "role": "USER" }))
        .await
        .ok();
    assert_eq!(bob.ask(users, json!({})).await.code(), "FORBIDDEN");
}

#[tokio::test]
async fn last_active_admin_cannot_be_demoted() {
    let server = Server::start().await;
    let (first, second) = (server.admin("first").await, server.admin("second").await);
    let demote = async |by: &crate::harness::Person, whom: &str| {
        by.ask(
            "mutation ($id: ID!) { updateUser(input: { id: $id, role: USER }) { user { role } userErrors { code } } }",
            json!({ "id": whom }),
        )
        .await
        .0
    };
    // Two concurrent demotions: only one succeeds.
    let (one, other) = tokio::join!(demote(&first, &second.id), demote(&second, &first.id));
    let admins = [&first, &second];
    let mut left = Vec::new();
    for admin in admins {
        if admin
            .ask("{ users { totalCount } }", json!({}))
            .await
            .codes()
            .is_empty()
        {
            left.push(admin);
        }
    }
    assert_eq!(left.len(), 1, "{one} {other}");
    let alone = demote(left[0], &left[0].id).await;
    assert_eq!(
        alone["data"]["updateUser"]["userErrors"][0]["code"],
        "INVALID"
    );
    let disable = "mutation ($id: ID!) { updateUser(input: { id: $id, isActive: false }) { userErrors { code } } }";
    let disabled = left[0].ask(disable, json!({ "id": left[0].id })).await.0;
    assert_eq!(
        disabled["data"]["updateUser"]["userErrors"][0]["code"],
        "INVALID"
    );
}

#[tokio::test]
async fn database_contains_no_usable_tokens() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let export = alice
        .query("{ exportViewerData }", json!({}))
        .await
        .to_string();
    for secret in [
        alice.token(),
        &alice.refresh_token,
        PASSWORD,
        "seed",
        "argon2",
    ] {
        assert!(!export.contains(secret));
    }
}

#[tokio::test]
async fn session_ends_at_its_maximum_age() {
    let day = Duration::from_secs(86_400);
    for (settings, days) in [
        (&[][..], 90),
        (&[("SESSION_MAX_DAYS", "9")], 9),
        (&[("SESSION_MAX_DAYS", "1")], 1),
    ] {
        let server = Server::with(settings).await;
        let mut alice = server.person("alice").await;
        let end = server.moment(day * days);
        let refresh = async |token: &str| {
            server
                .post("/auth/refresh", json!({ "refresh_token": token }))
                .await
        };
        let mut left = day * days - Duration::from_secs(100);
        while !left.is_zero() {
            let step = left.min(day * 6);
            left -= step;
            server.advance(step);
            alice = alice.with_tokens(&refresh(&alice.refresh_token).await.body);
        }
        let sessions = alice
            .query("{ viewer { sessions { expiresAt } } }", json!({}))
            .await;
        assert_eq!(
            sessions["viewer"]["sessions"],
            json!([{ "expiresAt": end }])
        );
        let last = refresh(&alice.refresh_token).await;
        assert_eq!(
            last.body["expires_in"], 100,
            "no token is valid longer than its session"
        );
        let last = alice.with_tokens(&last.body);
        server.advance(Duration::from_secs(99));
        assert!(server.is_signed_in(last.token()).await, "{days} days");
        server.advance(Duration::from_secs(1));
        assert!(!server.is_signed_in(last.token()).await, "{days} days");
        assert_eq!(refresh(&last.refresh_token).await.status, 401);
        server.login("alice").await;
    }
}

#[tokio::test]
async fn shorter_maximum_age_applies_to_existing_sessions() {
    let server = Server::start().await;
    let mut alice = server.person("alice").await;
    for _ in 0..3 {
        server.advance(Duration::from_secs(5 * 86_400));
        let reply = server
            .post(
                "/auth/refresh",
                json!({ "refresh_token": alice.refresh_token }),
            )
            .await;
        alice = alice.with_tokens(&reply.body);
    }
    let server = server.again(&[("SESSION_MAX_DAYS", "10")]).await;
    server.advance(Duration::from_secs(15 * 86_400));
    assert_eq!(
        server
            .post(
                "/auth/refresh",
                json!({ "refresh_token": alice.refresh_token })
            )
            .await
            .status,
        401
    );
    server.login("alice").await;
}

#[tokio::test]
async fn refresh_records_a_new_network() {
    let server = Server::with(&[("TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let mut alice = server.person("alice").await;
    for (from, agent) in [
        ("127.0.0.1", "home"),
        ("203.0.113.9", "phone"),
        ("203.0.113.9", "phone"),
        ("192.0.2.1", "x"),
    ] {
        let request = server
            .request(reqwest::Method::POST, "/auth/refresh")
            .header("x-forwarded-for", from);
        let request = request
            .header("user-agent", agent)
            .json(&json!({ "refresh_token": alice.refresh_token }));
        alice = alice.with_tokens(&crate::harness::Reply::to(request).await.body);
        let seen = alice
            .query(
                "{ viewer { sessions { ipAddress lastIpAddress } } }",
                json!({}),
            )
            .await;
        assert_eq!(
            seen["viewer"]["sessions"],
            json!([{ "ipAddress": "127.0.0.1", "lastIpAddress": from }])
        );
    }
    let document = "{ viewer { securityLog(first: 100) { nodes { kind ipAddress userAgent } } } }";
    let log = alice.query(document, json!({})).await["viewer"]["securityLog"]["nodes"].clone();
    let moved =
        |from, agent| json!({ "kind": "SESSION_MOVED", "ipAddress": from, "userAgent": agent });
    let log = &log.as_array().expect("entries")[..3];
    assert_eq!(
        log[..2],
        [moved("192.0.2.1", "x"), moved("203.0.113.9", "phone")],
        "one entry per address and device"
    );
    assert_eq!(log[2]["kind"], "LOGGED_IN");
}

#[tokio::test]
async fn access_token_tolerates_five_seconds_of_clock_skew() {
    for (ahead, good) in [(5, true), (6, false)] {
        let server = Server::start().await;
        server.person("alice").await;
        server.advance(Duration::from_secs(ahead));
        let early = server.login("alice").await;
        // Restarting with the clock set back acts as another instance whose clock is behind.
        let server = server.again(&[]).await;
        assert_eq!(
            server.is_signed_in(early.token()).await,
            good,
            "{ahead} seconds"
        );
    }
}

#[tokio::test]
async fn wrong_passwords_of_one_session_leave_the_others_their_attempts() {
    let server = Server::with(&[("RATE_LIMIT_ENABLED", "true")]).await;
    let mut sessions = vec![server.person("alice").await];
    for _ in 0..5 {
        server.advance(std::time::Duration::from_secs(61));
        sessions.push(server.login("alice").await);
    }
    let change = async |session: usize, password: &str| {
        let input = json!({ "currentPassword": password, "newPassword": PASSWORD });
        sessions[session]
            .mutate("changePassword", input)
            .await
            .outcome()
    };
    let wrong = "currentPassword: WRONG_PASSWORD";
    for _ in 0..5 {
        assert_eq!(change(0, "Wrong-Horse-7").await, wrong);
    }
    assert_eq!(change(0, "Wrong-Horse-7").await, "RATE_LIMITED");
    for session in 1..4 {
        for _ in 0..4 {
            assert_eq!(change(session, "Wrong-Horse-7").await, wrong);
        }
    }
    // The right one ends the other sessions, so they are counted before it.
    for _ in 0..2 {
        assert_eq!(change(4, "Wrong-Horse-7").await, wrong);
    }
    assert_eq!(
        change(5, PASSWORD).await,
        "ok",
        "the twentieth of the account"
    );
    assert_eq!(
        change(5, PASSWORD).await,
        "RATE_LIMITED",
        "many sessions do not multiply guesses"
    );
    server.advance(std::time::Duration::from_secs(61));
    server.login("alice").await;
}
