//! Failed logins: lockout, information leaks, and bursts.

use std::time::{Duration, Instant};

use fasttrack::store::{account, session, user};
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, future};
use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{PASSWORD, Reply, Server};

async fn login(server: &Server, username: &str, password: &str) -> Reply {
    server
        .post(
            "/auth/login",
            json!({ "username": username, "password": password }),
        )
        .await
}

#[tokio::test]
async fn five_failures_lock_the_identifier_for_the_address() {
    let server = Server::start().await;
    server.person("alice").await;
    for identifier in ["alice", "nobody", "ALICE@example.org"] {
        for attempt in 1..=5 {
            let reply = login(&server, identifier, "Wrong-Horse-7").await;
            assert_eq!(
                reply.body["code"], "INVALID_CREDENTIALS",
                "{identifier} {attempt}"
            );
        }
        let locked = login(&server, identifier, PASSWORD).await;
        assert_eq!(
            (locked.status.as_u16(), &locked.body["code"]),
            (429, &json!("LOCKED_OUT")),
            "{identifier}"
        );
        assert_eq!(locked.headers["retry-after"], "1800");
    }
    // Another identifier of the same user, and other users, are not locked out.
    server.person("bob").await;
    server.advance(Duration::from_secs(30 * 60 - 1));
    assert_eq!(
        login(&server, "alice", PASSWORD).await.body["code"],
        "LOCKED_OUT"
    );
    server.advance(Duration::from_secs(1));
    assert_eq!(login(&server, "alice", PASSWORD).await.status, 200);
}

#[tokio::test]
async fn success_and_time_reset_failures() {
    let server = Server::start().await;
    server.person("alice").await;
    for _ in 0..3 {
        for _ in 0..4 {
            login(&server, "alice", "Wrong-Horse-7").await;
        }
        assert_eq!(login(&server, "alice", PASSWORD).await.status, 200);
    }
    for _ in 0..4 {
        login(&server, "alice", "Wrong-Horse-7").await;
    }
    server.advance(Duration::from_secs(30 * 60));
    login(&server, "alice", "Wrong-Horse-7").await;
    assert_eq!(login(&server, "alice", PASSWORD).await.status, 200);
}

#[tokio::test]
async fn login_time_does_not_reveal_accounts() {
    let server = Server::with(&[
        ("ARGON2_MEMORY_KIB", "2048"),
        ("LOCKOUT_FAILURES", "1000000"),
    ])
    .await;
    server.person("alice").await;
    let medians = async || {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..60 {
            for (times, identifier) in times
                .iter_mut()
                .zip(["alice@example.org", "nobody@example.org"])
            {
                let begun = Instant::now();
                assert_eq!(
                    login(&server, identifier, "Wrong-Horse-7").await.status,
                    401
                );
                times.push(begun.elapsed());
            }
        }
        times.map(|mut times| {
            times.sort();
            times[times.len() / 2]
        })
    };
    // A real difference shows in every round; noise from other processes does not.
    let mut told = Vec::new();
    for _ in 0..3 {
        let [known, unknown] = medians().await;
        if (0.75..1.33).contains(&(known.as_secs_f64() / unknown.as_secs_f64())) {
            return;
        }
        told.push((known, unknown));
    }
    panic!("known and unknown: {told:?}");
}

#[tokio::test]
async fn a_burst_beyond_the_queue_gets_retry_after_and_the_rest_is_served() {
    let server = Server::with(&[
        ("ARGON2_MEMORY_KIB", "4096"),
        ("LOCKOUT_FAILURES", "1000000"),
    ])
    .await;
    server.person("alice").await;
    let logins = (0..200).map(|_| login(&server, "alice", PASSWORD));
    let replies = future::join_all(logins).await;
    let served = replies.iter().filter(|reply| reply.status == 200).count();
    let busy: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 503).collect();
    assert_eq!(served + busy.len(), 200);
    assert!(served >= 64 && !busy.is_empty(), "{served} served");
    assert!(
        busy.iter()
            .all(|reply| reply.headers.contains_key("retry-after"))
    );
    assert_eq!(
        login(&server, "alice", PASSWORD).await.status,
        200,
        "the burst is over"
    );
}

#[tokio::test]
async fn password_is_rehashed_when_the_cost_rises() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let cheap = server.stored_hash("alice").await;
    let dearer = server.again(&[("ARGON2_MEMORY_KIB", "16")]).await;
    assert_eq!(login(&dearer, "alice", PASSWORD).await.status, 200);
    let renewed = dearer.stored_hash("alice").await;
    assert!(
        cheap.contains("m=8,") && renewed.contains("m=16,"),
        "{cheap} {renewed}"
    );
    assert!(
        dearer.is_signed_in(alice.token()).await,
        "sessions survive the restart"
    );
    assert_eq!(login(&dearer, "alice", PASSWORD).await.status, 200);
    assert_eq!(dearer.stored_hash("alice").await, renewed);
}

#[tokio::test]
async fn concurrent_logins_can_rehash() {
    let server = Server::start().await;
    server.person("alice").await;
    let dearer = server.again(&[("ARGON2_MEMORY_KIB", "1024")]).await;
    for reply in future::join_all((0..8).map(|_| login(&dearer, "alice", PASSWORD))).await {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    assert!(dearer.stored_hash("alice").await.contains("m=1024,"));
}

#[tokio::test]
async fn login_in_progress_fails_when_the_password_changes() {
    let server = Server::start().await;
    server.person("alice").await;
    let (old, new) = (PASSWORD, "Another-Horse-8");
    let bob = server.person("bob").await;
    bob.mutate(
        "changePassword",
        json!({ "currentPassword": old, "newPassword": new }),
    )
    .await
    .ok();
    let hash = server.stored_hash("bob").await;
    // Each login computes two slow hashes, so most are in progress when the first one succeeds.
    let server = server
        .again(&[
            ("ARGON2_MEMORY_KIB", "16384"),
            ("LOCKOUT_FAILURES", "1000000"),
        ])
        .await;
    let mut logins: FuturesUnordered<_> = (0..16).map(|_| login(&server, "alice", old)).collect();
    let mut replies = vec![logins.next().await.expect("a login")];
    let set = server.run(async move |app| {
        let user = user::find_by_username(&mut app.db.conn().await?, "alice")
            .await?
            .expect("an account");
        account::set_password(&app.db, app.clock.now(), &user, &hash).await
    });
    set.await.expect("a new password");
    replies.extend(logins.collect::<Vec<_>>().await);
    for reply in replies {
        let token = reply.body["access_token"].as_str().unwrap_or_default();
        assert!(
            !server.is_signed_in(token).await,
            "a login with the old password kept its session"
        );
    }
    assert_eq!(login(&server, "alice", old).await.status, 401);
    assert_eq!(login(&server, "alice", new).await.status, 200);
}

#[tokio::test]
async fn operations_in_progress_fail_when_the_session_ends() {
    let server = Server::with(&[("ARGON2_MEMORY_KIB", "16384")]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let (old, new) = (PASSWORD, "Another-Horse-8");
    bob.mutate(
        "changePassword",
        json!({ "currentPassword": old, "newPassword": new }),
    )
    .await
    .ok();
    let hash = server.stored_hash("bob").await;
    let change = async || {
        let input = json!({ "currentPassword": old, "newPassword": "Stolen-Horse-9" });
        alice.mutate("changePassword", input).await.outcome()
    };
    let mut changes: FuturesUnordered<_> = (0..8).map(|_| change()).collect();
    assert_eq!(changes.next().await.expect("a change"), "ok");
    let set = server.run(async move |app| {
        let user = user::find_by_username(&mut app.db.conn().await?, "alice")
            .await?
            .expect("an account");
        account::set_password(&app.db, app.clock.now(), &user, &hash).await
    });
    set.await.expect("a new password");
    let rest: Vec<String> = changes.collect().await;
    assert_eq!(
        rest.last().map(String::as_str),
        Some("UNAUTHENTICATED"),
        "{rest:?}"
    );
    assert_eq!(login(&server, "alice", new).await.status, 200);
}

#[tokio::test]
async fn lockouts_and_ended_sessions_survive_a_restart() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    for _ in 0..5 {
        login(&server, "alice", "Wrong-Horse-7").await;
    }
    assert_eq!(
        bob.post("/auth/logout")
            .send()
            .await
            .expect("an answer")
            .status(),
        204
    );
    let server = server.again(&[]).await;
    assert_eq!(
        login(&server, "alice", PASSWORD).await.body["code"],
        "LOCKED_OUT"
    );
    assert!(server.is_signed_in(alice.token()).await);
    assert!(!server.is_signed_in(bob.token()).await);
}

#[tokio::test]
async fn the_last_login_survives_the_purge_of_its_session() {
    let server = Server::start().await;
    let (root, bob) = (server.admin("root").await, server.person("bob").await);
    let last = async || {
        let told = root.query(
            "query ($id: ID!) { node(id: $id) { ... on User { lastLoginAt } } }",
            json!({ "id": bob.id }),
        );
        told.await["node"]["lastLoginAt"].clone()
    };
    let forget = async || {
        let dropped =
            server.run(async |app| session::purge_expired(&app.db, app.clock.now()).await);
        dropped.await.expect("expired sessions are deleted")
    };
    assert_eq!(last().await, server.moment(Duration::ZERO));
    let minute = Duration::from_secs(60);
    server.advance(minute);
    let later = server.login("bob").await;
    assert_eq!(last().await, server.moment(minute));
    assert_eq!(
        later
            .post("/auth/logout")
            .send()
            .await
            .expect("an answer")
            .status(),
        204
    );
    server.advance(minute);
    assert_eq!(
        (forget().await, last().await),
        (1, json!(server.moment(minute)))
    );
    // The older session ends later and must not replace the newer login.
    assert_eq!(
        bob.post("/auth/logout")
            .send()
            .await
            .expect("an answer")
            .status(),
        204
    );
    server.advance(minute);
    assert_eq!(
        (forget().await, last().await),
        (1, json!(server.moment(minute)))
    );
    server.login("bob").await;
    assert_eq!(last().await, server.moment(minute * 3));
}

#[tokio::test]
async fn password_change_requires_the_current_password() {
    let server = Server::start().await;
    let phone = server.person("alice").await;
    let alice = server.login("alice").await;
    let change = async |current: &str, new: &str| {
        let input = json!({ "currentPassword": current, "newPassword": new });
        alice.mutate("changePassword", input).await
    };
    assert_eq!(
        change("Wrong-Horse-7", "Another-Horse-8").await.faults(),
        ["currentPassword: WRONG_PASSWORD"]
    );
    assert_eq!(
        change(PASSWORD, "weak").await.faults(),
        ["newPassword: WEAK_PASSWORD"]
    );
    assert_eq!(
        change(PASSWORD, "alice@example.org").await.faults(),
        ["newPassword: WEAK_PASSWORD"]
    );
    assert!(
        server.is_signed_in(phone.token()).await,
        "a refused change has no effect"
    );
    change(PASSWORD, "Another-Horse-8").await.ok();
    assert!(
        server.is_signed_in(alice.token()).await,
        "the current session continues"
    );
    assert!(
        !server.is_signed_in(phone.token()).await,
        "every other session ends"
    );
    assert_eq!(login(&server, "alice", PASSWORD).await.status, 401);
    assert_eq!(login(&server, "alice", "Another-Horse-8").await.status, 200);
}

#[tokio::test]
async fn cross_site_login_is_rejected() {
    let (listed, public) = ("https://app.example.org", "https://tasks.example.org/at");
    let server = Server::with(&[("CORS_ORIGINS", listed), ("PUBLIC_URL", public)]).await;
    server.person("ada").await;
    let form = async |password: &str, headers: &[(&str, &str)]| {
        let request = server
            .request(Method::POST, "/auth/login")
            .form(&[("username", "ada"), ("password", password)]);
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        let reply = Reply::to(request).await;
        (
            reply.status.as_u16(),
            reply.body["code"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let (foreign, none) = (("origin", "https://evil.example"), ("origin", "null"));
    let (cross, same_site) = (
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    );
    for headers in [
        &[foreign] as &[_],
        &[foreign, cross],
        &[foreign, same_site],
        &[none],
        &[none, cross],
        &[cross],
    ] {
        assert_eq!(
            form("Wrong-Horse-7", headers).await,
            (403, "FORBIDDEN".to_owned()),
            "{headers:?}"
        );
    }
    // None of these counted as a failed login.
    let (own, here) = (
        ("sec-fetch-site", "same-origin"),
        format!("http://{}", server.address),
    );
    for headers in [
        &[] as &[_],
        &[("sec-fetch-site", "none")],
        &[("origin", listed), cross],
        &[("origin", "https://tasks.example.org"), cross],
        &[("origin", &here)],
        // Headers of the server's own pages: with their referrer policy, and behind a proxy that
        // changes Host.
        &[none, own],
        &[("origin", "https://proxy.example.org"), own],
    ] {
        assert_eq!(
            form(PASSWORD, headers).await,
            (200, String::new()),
            "{headers:?}"
        );
    }
}

/// Sends a request and returns the connection without waiting for the answer.
async fn left(server: &Server, path: &str, body: serde_json::Value) -> TcpStream {
    let mut stream = TcpStream::connect(server.address)
        .await
        .expect("a connection");
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json");
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

#[tokio::test]
async fn a_client_that_disconnects_undoes_nothing_and_harms_nobody_else() {
    let server = Server::with(&[("LOCKOUT_FAILURES", "1000000")]).await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    for round in 0..20 {
        let leaving = future::join_all((0..10).map(|number| {
            let server = &server;
            async move {
                let name = format!("guest{round}_{number}");
                let email = format!("{name}@example.org");
                let guest = json!({ "email": email, "username": name, "password": PASSWORD });
                let wrong = json!({ "username": "alice", "password": "Wrong-Horse-7" });
                let (path, body) = if number % 2 == 0 {
                    ("/auth/register", guest)
                } else {
                    ("/auth/login", wrong)
                };
                let gone = left(server, path, body).await;
                // Disconnect at different moments of the request.
                tokio::time::sleep(Duration::from_micros(500 * (number + round % 7))).await;
                drop(gone);
            }
        }));
        let staying = future::join_all((0..10).map(|_| alice.task(&project, "Fly", json!({}))));
        tokio::join!(leaving, staying);
    }
}
