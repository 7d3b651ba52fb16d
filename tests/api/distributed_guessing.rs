//! Distributed password guessing: how many guesses are evaluated, and how the owner can still log
//! in.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use reqwest::header::{COOKIE, SET_COOKIE};
use serde_json::{Value, json};

use crate::harness::{Mailbox, PASSWORD, Reply, Server, text};

const WRONG: &str = "Wrong-Horse-7";
const MINUTE: Duration = Duration::from_secs(60);
/// The harness acts as the trusted proxy that reports client addresses.
const PROXIED: (&str, &str) = ("TRUSTED_PROXIES", "127.0.0.0/8");
/// An address the owner has logged in from, and one without any login.
const HOME: &str = "198.51.100.7";
const ELSEWHERE: &str = "203.0.113.9";

async fn start() -> Server {
    let server = Server::with(&[PROXIED]).await;
    let account =
        json!({ "email": "alice@example.org", "username": "alice", "password": PASSWORD });
    assert_eq!(server.post("/auth/register", account).await.status, 201);
    server
}

/// Logs in; retries on 503, because a slow machine may run out of database connections.
async fn login(server: &Server, from: &str, body: Value) -> Reply {
    loop {
        let request = server
            .request(Method::POST, "/auth/login")
            .header("x-forwarded-for", from);
        let reply = Reply::to(request.json(&body)).await;
        if reply.status != 503 {
            return reply;
        }
    }
}

fn with(password: &str, more: Value) -> Value {
    let mut body = json!({ "username": "alice", "password": password });
    for (field, value) in more.as_object().expect("an object") {
        body[field] = value.clone();
    }
    body
}

async fn code(server: &Server, from: &str, body: Value) -> String {
    let reply = login(server, from, body).await;
    if reply.status == 200 {
        "ok".to_owned()
    } else {
        text(&reply.body["code"])
    }
}

/// Sends one wrong guess from each address and counts those that were evaluated.
async fn evaluated(server: &Server, identifier: &str, from: impl Iterator<Item = String>) -> usize {
    let from: Vec<String> = from.collect();
    let mut evaluated = 0;
    for from in from.chunks(20) {
        let guess = |from| {
            code(
                server,
                from,
                json!({ "username": identifier, "password": WRONG }),
            )
        };
        for code in join_all(from.iter().map(|from| guess(from))).await {
            assert!(
                ["INVALID_CREDENTIALS", "LOCKED_OUT"].contains(&code.as_str()),
                "{code}"
            );
            evaluated += usize::from(code == "INVALID_CREDENTIALS");
        }
    }
    evaluated
}

/// An address in the `number`th /48 network.
fn everywhere(number: usize) -> String {
    format!("2001:db8:{number:x}::1")
}

/// Exhausts the guesses, so that only known devices can log in.
async fn attack(server: &Server) {
    for identifier in ["alice", "alice@example.org"] {
        assert_eq!(
            evaluated(server, identifier, (0..80).map(everywhere)).await,
            25,
            "{identifier}"
        );
    }
    assert_eq!(
        code(server, ELSEWHERE, with(PASSWORD, json!({}))).await,
        "LOCKED_OUT",
        "even with the correct password"
    );
}

#[tokio::test]
async fn at_most_a_hundred_guesses_an_hour_are_evaluated_per_account() {
    let server = start().await;
    let (mut history, mut next) = (Vec::new(), 0);
    for minute in 0..150 {
        let mut count = 0;
        // All at once first, then a few each minute.
        let guesses = if minute == 0 { 160 } else { 2 };
        for identifier in ["alice", "ALICE@example.org"] {
            count += evaluated(&server, identifier, (next..next + guesses).map(everywhere)).await;
            next += guesses;
        }
        history.push(count);
        server.advance(MINUTE);
    }
    for (minute, hour) in history.windows(60).enumerate() {
        let count: usize = hour.iter().sum();
        assert!(
            (40..=100).contains(&count),
            "{count} guesses in the hour from minute {minute}"
        );
    }
    assert_eq!(history[0], 50);
}

#[tokio::test]
async fn ipv6_networks_share_a_guessing_limit() {
    let server = start().await;
    let of_48 =
        (0..320).map(|number: usize| format!("2001:db8:1:{:x}::{number:x}", (number % 80) << 8));
    assert_eq!(
        evaluated(&server, "alice", of_48).await,
        15,
        "80 /64 networks in one /48"
    );
    let of_56 = (0..80).map(|number: usize| format!("2001:db8:2:{:x}::1", number % 20));
    assert_eq!(
        evaluated(&server, "alice@example.org", of_56).await,
        10,
        "20 /64 networks in one /56"
    );
    assert_eq!(
        code(&server, &everywhere(9), with(WRONG, json!({}))).await,
        "INVALID_CREDENTIALS",
        "other networks are not affected"
    );
}

#[tokio::test]
async fn known_device_can_log_in_during_an_attack() {
    let server = start().await;
    let first = login(&server, HOME, with(PASSWORD, json!({}))).await;
    let token = text(&first.body["device_token"]);
    let cookie = first.headers[SET_COOKIE].to_str().expect("text").to_owned();
    for attribute in [
        "Path=/auth",
        "HttpOnly",
        "SameSite=Strict",
        "Max-Age=31536000",
    ] {
        assert!(cookie.contains(attribute), "{attribute} in {cookie}");
    }
    assert!(!cookie.contains("Secure"), "PUBLIC_URL is plain HTTP here");
    let out = server.nobody().with_tokens(&first.body);
    assert_eq!(Reply::to(out.post("/auth/logout")).await.status, 204);
    attack(&server).await;
    // From a new address, apps send the device token in the body and browsers send it as a cookie.
    let by_token = login(
        &server,
        ELSEWHERE,
        with(PASSWORD, json!({ "device_token": token })),
    )
    .await;
    assert_eq!(by_token.status, 200, "{}", by_token.body);
    let by_cookie = async |from: &str, cookies: &str, password: &str| {
        let request = server
            .request(Method::POST, "/auth/login")
            .header("x-forwarded-for", from);
        Reply::to(
            request
                .header(COOKIE, cookies)
                .json(&with(password, json!({}))),
        )
        .await
    };
    let pair = cookie.split(';').next().expect("a pair").to_owned();
    assert_eq!(
        by_cookie("203.0.113.10", &format!("theme=dark; {pair}; a"), PASSWORD)
            .await
            .status,
        200
    );
    assert_eq!(
        by_cookie("203.0.113.10", &format!("theme=dark; {pair}; a"), WRONG)
            .await
            .body["code"],
        "INVALID_CREDENTIALS"
    );
    assert_eq!(
        by_cookie("203.0.113.12", "theme=dark", PASSWORD).await.body["code"],
        "LOCKED_OUT"
    );
    let form = [
        ("username", "alice"),
        ("password", PASSWORD),
        ("device_token", &token),
    ];
    let form = server
        .request(Method::POST, "/auth/login")
        .header("x-forwarded-for", "203.0.113.11")
        .form(&form);
    assert_eq!(Reply::to(form).await.status, 200);
}

#[tokio::test]
async fn wrong_passwords_lock_only_the_known_device() {
    let server = start().await;
    let device =
        async || text(&login(&server, HOME, with(PASSWORD, json!({}))).await.body["device_token"]);
    let (phone, laptop) = (device().await, device().await);
    let from = async |token: &str, address: &str, password: &str| {
        code(
            &server,
            address,
            with(password, json!({ "device_token": token })),
        )
        .await
    };
    for number in 0..5 {
        let address = format!("203.0.113.{number}");
        assert_eq!(
            from(&phone, &address, WRONG).await,
            "INVALID_CREDENTIALS",
            "failures count per device, not per address"
        );
    }
    assert_eq!(from(&phone, HOME, PASSWORD).await, "LOCKED_OUT");
    assert_eq!(from(&laptop, HOME, PASSWORD).await, "ok");
    // Another client at the same address locks the address, not the device.
    for _ in 0..5 {
        assert_eq!(
            code(&server, HOME, with(WRONG, json!({}))).await,
            "INVALID_CREDENTIALS"
        );
    }
    assert_eq!(
        code(&server, HOME, with(PASSWORD, json!({}))).await,
        "LOCKED_OUT"
    );
    assert_eq!(from(&laptop, HOME, PASSWORD).await, "ok");
}

#[tokio::test]
async fn device_token_is_valid_until_password_change_or_one_year() {
    let server = start().await;
    let bob = json!({ "email": "bob@example.org", "username": "bob", "password": PASSWORD });
    assert_eq!(server.post("/auth/register", bob).await.status, 201);
    let device = async |body: Value| text(&login(&server, HOME, body).await.body["device_token"]);
    let own = device(with(PASSWORD, json!({}))).await;
    let bobs = device(json!({ "username": "bob", "password": PASSWORD })).await;
    let reply = login(&server, HOME, with(PASSWORD, json!({}))).await;
    let mut forged = own.clone().into_bytes();
    let last = forged.len() - 2;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("ASCII");
    let refresh = text(&reply.body["refresh_token"]);
    attack(&server).await;
    let long = "x".repeat(1_000);
    for token in [bobs.as_str(), &forged, &refresh, "", "x", "ü\u{0}", &long] {
        let body = with(PASSWORD, json!({ "device_token": token }));
        assert_eq!(
            code(&server, ELSEWHERE, body).await,
            "LOCKED_OUT",
            "{token}"
        );
    }
    let known = with(PASSWORD, json!({ "device_token": own }));
    assert_eq!(code(&server, ELSEWHERE, known.clone()).await, "ok");

    let signed_in = server.nobody().with_tokens(&reply.body);
    let changed = json!({ "currentPassword": PASSWORD, "newPassword": "Another-Horse-8" });
    signed_in.mutate("changePassword", changed).await.ok();
    assert_eq!(
        evaluated(&server, "alice", (0..80).map(everywhere)).await,
        25,
        "a new password resets the count"
    );
    let old = with("Another-Horse-8", json!({ "device_token": own }));
    assert_eq!(
        code(&server, ELSEWHERE, old).await,
        "LOCKED_OUT",
        "old device tokens are void"
    );

    server.advance(Duration::from_secs(365 * 86_400));
    assert_eq!(evaluated(&server, "bob", (0..80).map(everywhere)).await, 25);
    let late = json!({ "username": "bob", "password": PASSWORD, "device_token": bobs });
    assert_eq!(code(&server, ELSEWHERE, late).await, "LOCKED_OUT");
}

#[tokio::test]
async fn the_address_of_a_live_session_gets_in_and_reveals_nothing_to_others() {
    let server = start().await;
    let first = login(&server, "2001:db8:ffff:1::5", with(PASSWORD, json!({}))).await;
    let alice = server.nobody().with_tokens(&first.body);
    attack(&server).await;
    let (neighbor, same) = ("2001:db8:ffff:2::5", "2001:db8:ffff:1::9");
    let stranger = login(&server, neighbor, with(WRONG, json!({}))).await;
    let here = login(&server, same, with(WRONG, json!({}))).await;
    assert_eq!(
        (stranger.status, &stranger.body),
        (here.status, &here.body),
        "indistinguishable answers"
    );
    assert_eq!(stranger.headers["retry-after"], here.headers["retry-after"]);
    assert_eq!(
        code(&server, neighbor, with(PASSWORD, json!({}))).await,
        "LOCKED_OUT"
    );
    assert_eq!(code(&server, same, with(PASSWORD, json!({}))).await, "ok");
    // The address of the last refresh counts too.
    let moved = server
        .request(Method::POST, "/auth/refresh")
        .header("x-forwarded-for", neighbor);
    let moved = Reply::to(moved.json(&json!({ "refresh_token": alice.refresh_token }))).await;
    assert_eq!(
        code(&server, neighbor, with(PASSWORD, json!({}))).await,
        "ok"
    );
    let all = "mutation { revokeOtherSessions { revokedCount } }";
    let alice = alice.with_tokens(&moved.body);
    alice.query(all, json!({})).await;
    assert_eq!(Reply::to(alice.post("/auth/logout")).await.status, 204);
    assert_eq!(
        code(&server, same, with(PASSWORD, json!({}))).await,
        "LOCKED_OUT",
        "there is no session left"
    );
}

#[tokio::test]
async fn unknown_identifiers_are_limited_alike() {
    let server = start().await;
    login(&server, HOME, with(PASSWORD, json!({}))).await;
    let mut told = Vec::new();
    for identifier in ["alice", "nobody", "nobody@example.org"] {
        let mut replies = Vec::new();
        for number in 0..30 {
            let body = json!({ "username": identifier, "password": WRONG });
            let reply = login(&server, &everywhere(number), body).await;
            replies.push((
                reply.status.as_u16(),
                reply.headers.get("retry-after").cloned(),
                reply.body,
            ));
        }
        told.push(replies);
    }
    assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:?}");
    let wait = told[0][29].1.as_ref().expect("Retry-After");
    assert_eq!(wait, "144", "a guess every 144 seconds");
}

#[tokio::test]
async fn guessing_limit_survives_a_restart_and_expires() {
    let server = start().await;
    attack(&server).await;
    let server = server.again(&[PROXIED]).await;
    assert_eq!(
        code(&server, ELSEWHERE, with(PASSWORD, json!({}))).await,
        "LOCKED_OUT"
    );
    server.advance(Duration::from_secs(144));
    assert_eq!(
        code(&server, ELSEWHERE, with(PASSWORD, json!({}))).await,
        "ok",
        "one chance"
    );
    server.advance(MINUTE * 61);
    let cleared = server.run(async |app| {
        let before = app.clock.now().minus(Duration::from_secs(3_600));
        fasttrack::store::lockout::purge_expired(&app.db, before).await
    });
    cleared.await.expect("cleared");
    assert!(
        !server.dump().await.contains("login_failures: "),
        "the rows are deleted"
    );
}

#[tokio::test]
async fn credentials_are_limited_by_ipv6_network_too() {
    let server = Server::with(&[PROXIED, ("RATE_LIMIT_ENABLED", "true")]).await;
    let admitted = async |from: &dyn Fn(usize) -> String| {
        let mut admitted = 0;
        for number in 0..120 {
            let body = json!({ "username": format!("nobody{number}"), "password": WRONG });
            let code = code(&server, &from(number), body).await;
            assert!(
                ["INVALID_CREDENTIALS", "RATE_LIMITED"].contains(&code.as_str()),
                "{code}"
            );
            admitted += usize::from(code == "INVALID_CREDENTIALS");
        }
        admitted
    };
    assert_eq!(
        admitted(&|number| format!("2001:db8:1:1::{number:x}")).await,
        5,
        "a /64"
    );
    assert_eq!(
        admitted(&|number| format!("2001:db8:2:{:x}::1", number % 256)).await,
        20,
        "a /56"
    );
    assert_eq!(
        admitted(&|number| format!("2001:db8:3:{:x}::1", number << 8)).await,
        80,
        "a /48"
    );
    assert_eq!(
        admitted(&|number| format!("192.0.2.{number}")).await,
        120,
        "IPv4 addresses count individually"
    );
}

#[tokio::test]
async fn a_password_reset_makes_the_device_known_while_strangers_guess() {
    let mut mailbox = Mailbox::open().await;
    let server = Server::with(&[PROXIED, ("SMTP_URL", &mailbox.url())]).await;
    server.person("alice").await;
    mailbox.next().await;
    let mut devices = Vec::new();
    for wants_body in [false, true] {
        server
            .post(
                "/auth/password-reset",
                json!({ "email": "alice@example.org" }),
            )
            .await;
        let mut body =
            json!({ "token": mailbox.next().await.token(), "new_password": "Another-Horse-8" });
        if wants_body {
            body["issue_device_token"] = true.into();
        }
        let reply = server.post("/auth/password-reset/confirm", body).await;
        assert_eq!(
            reply.status,
            if wants_body { 200 } else { 204 },
            "{}",
            reply.body
        );
        assert_eq!(mailbox.next().await.subject(), "Your password was changed");
        devices.push(reply);
    }
    let cookie = |reply: &Reply| reply.headers[SET_COOKIE].to_str().expect("text").to_owned();
    for attribute in [
        "Path=/auth",
        "HttpOnly",
        "SameSite=Strict",
        "Max-Age=31536000",
    ] {
        assert!(
            cookie(&devices[0]).contains(attribute),
            "{attribute} in {}",
            cookie(&devices[0])
        );
    }
    attack(&server).await;
    let by_cookie = async |reply: &Reply| {
        let request = server
            .request(Method::POST, "/auth/login")
            .header("x-forwarded-for", ELSEWHERE);
        let pair = cookie(reply).split(';').next().expect("a pair").to_owned();
        Reply::to(
            request
                .header(COOKIE, pair)
                .json(&with("Another-Horse-8", json!({}))),
        )
        .await
    };
    assert_eq!(
        by_cookie(&devices[0]).await.body["code"],
        "LOCKED_OUT",
        "the second reset voids the first device"
    );
    assert_eq!(by_cookie(&devices[1]).await.status, 200);
    let token = json!({ "device_token": devices[1].body["device_token"] });
    assert_eq!(
        code(&server, ELSEWHERE, with("Another-Horse-8", token)).await,
        "ok"
    );
}
