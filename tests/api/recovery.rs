//! E-mail verification and password reset.

use std::time::Duration;

use fasttrack::store::{account as accounts, user};
use serde_json::{Value, json};

use crate::harness::{Mailbox, Mutated, PASSWORD, Person, Reply, Server};

const NEW_PASSWORD: &str = "Another-Horse-8";

pub(crate) async fn start(settings: &[(&str, &str)]) -> (Server, Mailbox) {
    let mailbox = Mailbox::open().await;
    let url = mailbox.url();
    let mut all = vec![
        ("SMTP_URL", url.as_str()),
        ("PUBLIC_URL", "https://tasks.example.org"),
    ];
    all.extend_from_slice(settings);
    (Server::with(&all).await, mailbox)
}

/// Verifies an address with the token from a mailed link.
pub(crate) async fn verify(server: &Server, token: &str) -> Reply {
    server
        .post("/auth/verify-email", json!({ "token": token }))
        .await
}

pub(crate) async fn confirm(server: &Server, token: &str, new_password: &str) -> Reply {
    server
        .post(
            "/auth/password-reset/confirm",
            json!({ "token": token, "new_password": new_password }),
        )
        .await
}

async fn login(server: &Server, username: &str, password: &str) -> Reply {
    server
        .post(
            "/auth/login",
            json!({ "username": username, "password": password }),
        )
        .await
}

/// Requests a change of address.
async fn change_email(person: &Person, email: &str) -> Mutated {
    person
        .mutate(
            "updateViewer",
            json!({ "email": email, "currentPassword": PASSWORD }),
        )
        .await
}

async fn account(person: &Person) -> Value {
    person
        .query("{ viewer { email emailVerified } }", json!({}))
        .await["viewer"]
        .clone()
}

#[tokio::test]
async fn verification_link_works_once() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    let mail = mailbox.next().await;
    assert_eq!(
        (mail.to.as_str(), mail.subject()),
        ("alice@example.org", "Verify your e-mail address")
    );
    assert!(
        mail.content
            .contains("https://tasks.example.org/auth/verify-email#token="),
        "{}",
        mail.content
    );
    assert!(
        mail.content.contains("text/plain") && mail.content.contains("text/html"),
        "{}",
        mail.content
    );

    assert_eq!(verify(&server, "x").await.body["code"], "INVALID");
    assert_eq!(account(&alice).await["emailVerified"], false);
    assert_eq!(verify(&server, &mail.token()).await.status, 204);
    assert_eq!(account(&alice).await["emailVerified"], true);
    let again = verify(&server, &mail.token()).await;
    assert_eq!(
        (again.status.as_u16(), &again.body["code"]),
        (422, &json!("INVALID")),
        "used up"
    );
}

#[tokio::test]
async fn links_stay_valid_when_others_are_requested() {
    let (server, mut mailbox) = start(&[]).await;
    server.person("alice").await;
    let first = mailbox.next().await.token();
    let ask = async |path: &str, email: &str| server.post(path, json!({ "email": email })).await;
    let resend = async |email: &str| ask("/auth/verify-email/resend", email).await;
    let known = resend("ALICE@example.org").await;
    let second = mailbox.next().await.token();
    let unknown = resend("nobody@example.org").await;
    assert_eq!(
        (known.status.as_u16(), &known.body),
        (202, &unknown.body),
        "indistinguishable from an unknown address"
    );
    assert_eq!(unknown.status, 202);

    // The older of two reset links still works; setting the password then invalidates the newer
    // one.
    ask("/auth/password-reset", "alice@example.org").await;
    let old = mailbox.next().await.token();
    server.advance(Duration::from_secs(20 * 60));
    ask("/auth/password-reset", "alice@example.org").await;
    let new = mailbox.next().await.token();
    assert_ne!(old, new);
    assert_eq!(confirm(&server, &old, NEW_PASSWORD).await.status, 204);
    assert_eq!(
        confirm(&server, &new, PASSWORD).await.body["code"],
        "INVALID",
        "invalidated by the new password"
    );
    assert_eq!(mailbox.next().await.subject(), "Your password was changed");

    assert_eq!(verify(&server, &first).await.status, 204, "the older link");
    assert_eq!(verify(&server, &first).await.status, 422, "used up");
    server.advance(Duration::from_secs(24 * 3_600));
    assert_eq!(verify(&server, &second).await.status, 422, "expired");
    resend("alice@example.org").await;
    ask("/auth/password-reset", "alice@example.org").await;
    assert_eq!(
        mailbox.next().await.subject(),
        "Set a new password",
        "no verification mail to a verified address"
    );
}

#[tokio::test]
async fn login_can_require_a_verified_address() {
    let (server, mut mailbox) = start(&[("REQUIRE_VERIFIED_EMAIL", "true")]).await;
    let body = json!({ "email": "alice@example.org", "username": "alice", "password": PASSWORD });
    assert_eq!(server.post("/auth/register", body).await.status, 201);
    let refused = login(&server, "alice", PASSWORD).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["code"]),
        (403, &json!("EMAIL_NOT_VERIFIED"))
    );
    assert_eq!(
        login(&server, "alice", "Wrong-Horse-7").await.body["code"],
        "INVALID_CREDENTIALS"
    );
    assert_eq!(
        verify(&server, &mailbox.next().await.token()).await.status,
        204
    );
    let alice = server.login("alice").await;
    let document =
        "{ viewer { securityLog(first: 5) { nodes { kind ipAddress actor { username } } } } }";
    let log = alice.query(document, json!({})).await["viewer"]["securityLog"]["nodes"].clone();
    let kinds: Vec<&str> = log
        .as_array()
        .expect("entries")
        .iter()
        .filter_map(|entry| entry["kind"].as_str())
        .collect();
    assert_eq!(
        kinds,
        [
            "LOGGED_IN",
            "EMAIL_VERIFIED",
            "LOGIN_FAILED",
            "LOGIN_REFUSED",
            "REGISTERED"
        ]
    );
    assert_eq!(
        log[3],
        json!({ "kind": "LOGIN_REFUSED", "ipAddress": "127.0.0.1", "actor": null })
    );
}

#[tokio::test]
async fn concurrent_verification_of_one_address_has_one_winner() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let (_, _) = (mailbox.next().await, mailbox.next().await);
    let mut tokens = Vec::new();
    for person in [&alice, &bob] {
        change_email(person, "new@example.org").await.ok();
        tokens.push(mailbox.next_to("new@example.org").await.token());
    }
    let (one, other) = tokio::join!(verify(&server, &tokens[0]), verify(&server, &tokens[1]));
    let mut statuses = [one.status.as_u16(), other.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 409], "{} {}", one.body, other.body);
    let holds = async |person: &Person| account(person).await["email"] == "new@example.org";
    assert!(holds(&alice).await != holds(&bob).await);
}

#[tokio::test]
async fn a_changed_address_applies_once_verified_and_the_old_one_is_notified() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let (_, _) = (mailbox.next().await, mailbox.next().await);
    assert_eq!(
        change_email(&alice, "BOB@example.org").await.faults(),
        ["email: TAKEN"]
    );
    let answer = change_email(&alice, "new@example.org").await.ok();
    assert_eq!(answer["email"], "alice@example.org", "not yet");
    let mail = mailbox.next_to("new@example.org").await;

    // Meanwhile another user takes the address, so the link fails.
    let taken = change_email(&bob, "new@example.org").await.ok();
    assert_eq!(taken["email"], "bob@example.org");
    let rival = mailbox.next_to("new@example.org").await;
    assert_eq!(verify(&server, &rival.token()).await.status, 204);
    assert_eq!(mailbox.next().await.to, "bob@example.org");
    assert_eq!(verify(&server, &mail.token()).await.body["code"], "TAKEN");
    assert_eq!(
        account(&alice).await,
        json!({ "email": "alice@example.org", "emailVerified": false })
    );

    change_email(&alice, "alice@example.net").await.ok();
    let mail = mailbox.next_to("alice@example.net").await;
    assert_eq!(verify(&server, &mail.token()).await.status, 204);
    assert_eq!(
        account(&alice).await,
        json!({ "email": "alice@example.net", "emailVerified": true })
    );
    let told = mailbox.next().await;
    assert_eq!(
        (told.to.as_str(), told.subject()),
        ("alice@example.org", "Your e-mail address was changed")
    );
    assert_eq!(
        login(&server, "alice@example.net", PASSWORD).await.status,
        200
    );
    assert_eq!(
        login(&server, "alice@example.org", PASSWORD).await.status,
        401
    );
}

#[tokio::test]
async fn password_reset_ends_all_sessions_and_the_lockout() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    mailbox.next().await;
    for _ in 0..5 {
        login(&server, "alice", "Wrong-Horse-7").await;
    }
    assert_eq!(
        login(&server, "alice", PASSWORD).await.body["code"],
        "LOCKED_OUT"
    );

    let ask = async |email: &str| {
        server
            .post("/auth/password-reset", json!({ "email": email }))
            .await
    };
    let (known, unknown) = (
        ask("Alice@Example.org").await,
        ask("nobody@example.org").await,
    );
    assert_eq!((known.status.as_u16(), known.body), (202, unknown.body));
    let mail = mailbox.next().await;
    let token = mail.token();
    assert_eq!(
        mail.to, "alice@example.org",
        "sent to the stored spelling of the address"
    );

    for (password, code) in [("short", "WEAK_PASSWORD"), ("Password1!", "WEAK_PASSWORD")] {
        assert_eq!(
            confirm(&server, &token, password).await.body["code"],
            code,
            "an invalid password does not consume the link"
        );
    }
    assert_eq!(
        verify(&server, &token).await.status,
        422,
        "the link has no other use"
    );
    assert_eq!(confirm(&server, &token, NEW_PASSWORD).await.status, 204);
    assert_eq!(
        confirm(&server, &token, NEW_PASSWORD).await.body["code"],
        "INVALID",
        "used up"
    );
    assert!(!server.is_signed_in(alice.token()).await);
    assert_eq!(
        login(&server, "alice", NEW_PASSWORD).await.status,
        200,
        "unlocked"
    );
    assert_eq!(login(&server, "alice", PASSWORD).await.status, 401);
    assert_eq!(mailbox.next().await.subject(), "Your password was changed");
    assert_eq!(
        account(&server.login_with("alice", NEW_PASSWORD).await).await["emailVerified"],
        true
    );
}

#[tokio::test]
async fn new_password_cancels_a_pending_address_change() {
    let (server, mut mailbox) = start(&[]).await;
    // The account was created with an address that belongs to someone else.
    let mallory = server.person("alice").await;
    mailbox.next().await;
    change_email(&mallory, "mallory@example.org").await.ok();
    let mut links = vec![mailbox.next_to("mallory@example.org").await];
    server
        .post(
            "/auth/password-reset",
            json!({ "email": "alice@example.org" }),
        )
        .await;
    assert_eq!(
        confirm(&server, &mailbox.next().await.token(), NEW_PASSWORD)
            .await
            .status,
        204
    );
    assert_eq!(mailbox.next().await.subject(), "Your password was changed");

    let alice = server.login_with("alice", NEW_PASSWORD).await;
    let again = json!({ "email": "mallory@example.org", "currentPassword": NEW_PASSWORD });
    alice.mutate("updateViewer", again).await.ok();
    links.push(mailbox.next_to("mallory@example.org").await);
    let input = json!({ "currentPassword": NEW_PASSWORD, "newPassword": PASSWORD });
    alice.mutate("changePassword", input).await.ok();
    assert_eq!(mailbox.next().await.subject(), "Your password was changed");

    change_email(&alice, "mallory@example.org").await.ok();
    links.push(mailbox.next_to("mallory@example.org").await);
    let hash = server.stored_hash("alice").await;
    let set = server.run(async move |app| {
        let user = user::find_by_username(&mut app.db.conn().await?, "alice")
            .await?
            .expect("an account");
        accounts::set_password(&app.db, app.clock.now(), &user, &hash).await
    });
    set.await.expect("a password set from the command line");
    assert_eq!(mailbox.next().await.subject(), "Your password was changed");

    for link in links {
        assert_eq!(
            (link.to.as_str(), link.subject()),
            ("mallory@example.org", "Verify your e-mail address")
        );
        assert_eq!(verify(&server, &link.token()).await.body["code"], "INVALID");
    }
    assert_eq!(
        account(&server.login("alice").await).await["email"],
        "alice@example.org"
    );
}

#[tokio::test]
async fn requesting_the_current_address_cancels_a_change() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    let change = async |email: &str| {
        change_email(&alice, email).await.ok();
    };
    change("alice@example.org").await;
    let own = mailbox.next().await;
    change("new@example.org").await;
    let link = mailbox.next_to("new@example.org").await;
    change("alice@example.org").await;
    assert_eq!(verify(&server, &link.token()).await.body["code"], "INVALID");

    mailbox.refuse(true);
    change("new@example.org").await;
    mailbox.refused().await;
    mailbox.refused().await;
    change("alice@example.org").await;
    mailbox.refuse(false);
    server.advance(Duration::from_secs(31));
    server
        .post(
            "/auth/verify-email/resend",
            json!({ "email": "alice@example.org" }),
        )
        .await;
    let (notice, newer) = (mailbox.next().await, mailbox.next().await);
    assert_eq!(
        notice.subject(),
        "Your e-mail address is about to change",
        "the notice is still sent"
    );
    assert_eq!(
        (notice.to.as_str(), newer.to.as_str()),
        ("alice@example.org", "alice@example.org"),
        "and to no other address"
    );
    change("alice@example.org").await;
    for link in [own, newer] {
        assert_eq!(
            verify(&server, &link.token()).await.status,
            204,
            "links to the current address stay valid"
        );
    }
    assert!(mailbox.is_empty());
}

#[tokio::test]
async fn only_the_latest_requested_address_gets_mail() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    mailbox.next().await;
    mailbox.refuse(true);
    for email in ["one@example.org", "two@example.org", "three@example.org"] {
        change_email(&alice, email).await.ok();
        mailbox.refused().await;
        mailbox.refused().await;
    }
    mailbox.refuse(false);
    server.advance(Duration::from_secs(31));
    server
        .post(
            "/auth/password-reset",
            json!({ "email": "alice@example.org" }),
        )
        .await;
    let mut recipients = Vec::new();
    for _ in 0..5 {
        recipients.push(mailbox.next().await.to);
    }
    recipients.sort();
    recipients.dedup();
    assert_eq!(recipients, ["alice@example.org", "three@example.org"]);
    assert!(mailbox.is_empty());
}

#[tokio::test]
async fn address_changes_are_rate_limited_per_user() {
    let (server, _mailbox) = start(&[("RATE_LIMIT_ENABLED", "true")]).await;
    let alice = server.person("alice").await;
    for number in 0..5 {
        change_email(&alice, &format!("{number}@example.org"))
            .await
            .ok();
    }
    let more =
        json!({ "email": "6@example.org", "displayName": "Mallory", "currentPassword": PASSWORD });
    assert_eq!(
        alice.mutate("updateViewer", more).await.code(),
        "RATE_LIMITED"
    );
    let viewer = alice
        .mutate("updateViewer", json!({ "username": "alice-2" }))
        .await
        .ok();
    assert_eq!(
        (&viewer["username"], &viewer["displayName"]),
        (&json!("alice-2"), &json!("alice"))
    );
}

#[tokio::test]
async fn similar_looking_address_gets_no_link() {
    let (server, mut mailbox) = start(&[]).await;
    server.person("mike").await;
    mailbox.next().await;
    for path in ["/auth/password-reset", "/auth/verify-email/resend"] {
        // The Kelvin sign (U+212A) case-folds to `k`, but is a different character to a mail
        // server.
        assert_eq!(
            server
                .post(path, json!({ "email": "mi\u{212a}e@example.org" }))
                .await
                .status,
            202
        );
        assert_eq!(mailbox.next().await.to, "mike@example.org");
    }
}

#[tokio::test]
async fn reset_link_expires_after_thirty_minutes() {
    let (server, mut mailbox) = start(&[]).await;
    server.person("alice").await;
    mailbox.next().await;
    server
        .post(
            "/auth/password-reset",
            json!({ "email": "alice@example.org" }),
        )
        .await;
    let token = mailbox.next().await.token();
    server.advance(Duration::from_secs(30 * 60));
    assert_eq!(
        confirm(&server, &token, NEW_PASSWORD).await.body["code"],
        "INVALID"
    );
}

#[tokio::test]
async fn opening_a_mailed_link_changes_nothing() {
    let server = Server::start().await;
    for path in ["/auth/verify-email", "/auth/password-reset"] {
        let page = Reply::to(server.request(reqwest::Method::GET, path)).await;
        assert_eq!(page.status, 200);
        assert!(
            page.headers["content-security-policy"]
                .to_str()
                .expect("text")
                .contains("script-src 'self'")
        );
    }
    assert_eq!(
        Reply::to(server.request(reqwest::Method::GET, "/auth/page.js"))
            .await
            .status,
        200
    );
}
