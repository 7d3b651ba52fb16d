//! Changing the e-mail address: verification, and cancellation from the old address.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Mailbox, PASSWORD, Person, Reply, Server, text};
use crate::recovery::{start, verify};

const WRONG: &str = "Wrong-Horse-7";
const DAY: Duration = Duration::from_secs(86_400);
const NOTICE: &str = "Your e-mail address is about to change";

async fn cancel(server: &Server, token: &str) -> Reply {
    server
        .post("/auth/email-change/cancel", json!({ "token": token }))
        .await
}

async fn reset(server: &Server, token: &str, password: &str) -> Reply {
    server
        .post(
            "/auth/password-reset/confirm",
            json!({ "token": token, "new_password": password }),
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

async fn account(person: &Person) -> Value {
    person
        .query("{ viewer { email emailVerified } }", json!({}))
        .await["viewer"]
        .clone()
}

async fn log(person: &Person) -> Vec<String> {
    let document = "{ viewer { securityLog(first: 100) { nodes { kind } } } }";
    let log = person.query(document, json!({})).await["viewer"]["securityLog"]["nodes"].clone();
    log.as_array()
        .expect("entries")
        .iter()
        .map(|entry| text(&entry["kind"]))
        .collect()
}

/// Signs up Alice and verifies her address.
async fn alice(server: &Server, mailbox: &mut Mailbox) -> Person {
    let alice = server.person("alice").await;
    assert_eq!(
        verify(server, &mailbox.next().await.token()).await.status,
        204
    );
    alice
}

/// Requests a change of address. Returns the links mailed to the old and the new address.
async fn ask(person: &Person, mailbox: &mut Mailbox, old: &str, new: &str) -> (String, String) {
    person
        .mutate(
            "updateViewer",
            json!({ "email": new, "currentPassword": PASSWORD }),
        )
        .await
        .ok();
    let (notice, link) = (mailbox.next().await, mailbox.next().await);
    assert_eq!((notice.to.as_str(), notice.subject()), (old, NOTICE));
    assert!(
        notice
            .content
            .contains("https://tasks.example.org/auth/email-change/cancel#token="),
        "{}",
        notice.content
    );
    assert!(notice.content.contains(new), "{}", notice.content);
    assert_eq!(
        (link.to.as_str(), link.subject()),
        (new, "Verify your e-mail address")
    );
    (notice.token(), link.token())
}

#[tokio::test]
async fn email_change_requires_the_password() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = alice(&server, &mut mailbox).await;
    let change = async |input: Value| alice.mutate("updateViewer", input).await.faults();
    // Spellings that differ only in case count as different addresses.
    for email in [
        "thief@example.org",
        "ALICE@example.org",
        "alice@EXAMPLE.org",
    ] {
        for input in [
            json!({ "email": email, "displayName": "Mallory" }),
            json!({ "email": email, "currentPassword": null }),
        ] {
            assert_eq!(change(input).await, ["currentPassword: BLANK"], "{email}");
        }
        let wrong = json!({ "email": email, "currentPassword": WRONG });
        assert_eq!(
            change(wrong).await,
            ["currentPassword: WRONG_PASSWORD"],
            "{email}"
        );
    }
    let seen = alice
        .query("{ viewer { email displayName } }", json!({}))
        .await;
    assert_eq!(
        seen["viewer"],
        json!({ "email": "alice@example.org", "displayName": "alice" })
    );
    assert!(mailbox.is_empty(), "no mail is sent");
}

#[tokio::test]
async fn different_spelling_is_a_different_address() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = alice(&server, &mut mailbox).await;
    for spelling in ["ALICE@example.org", "Alice@Example.org"] {
        assert_eq!(
            alice
                .mutate("updateViewer", json!({ "email": spelling }))
                .await
                .faults(),
            ["currentPassword: BLANK"]
        );
        let (_, link) = ask(&alice, &mut mailbox, "alice@example.org", spelling).await;
        assert_eq!(
            account(&alice).await["email"],
            "alice@example.org",
            "not until the new address is verified"
        );
        assert!(!link.is_empty());
    }
    assert_eq!(
        login(&server, "alice@example.org", PASSWORD).await.status,
        200
    );
}

#[tokio::test]
async fn wrong_passwords_are_audited_and_lock_the_session() {
    let (server, _mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    let owner = server.login("alice").await;
    let attempts = [
        (
            "updateViewer",
            json!({ "email": "thief@example.org", "currentPassword": WRONG }),
            "currentPassword",
        ),
        (
            "changePassword",
            json!({ "currentPassword": WRONG, "newPassword": "Another-Horse-8" }),
            "currentPassword",
        ),
        ("deleteViewer", json!({ "password": WRONG }), "password"),
    ];
    for number in 0..5 {
        let (mutation, input, field) = attempts[number % 3].clone();
        assert_eq!(
            alice.mutate(mutation, input).await.faults(),
            [format!("{field}: WRONG_PASSWORD")],
            "{number}"
        );
    }
    let right = json!({ "email": "thief@example.org", "currentPassword": PASSWORD });
    let refused = alice.mutate("updateViewer", right.clone()).await;
    assert_eq!(refused.code(), "LOCKED_OUT");
    let document = "mutation ($password: String!) { deleteViewer(input: { password: $password }) { deletedUserId } }";
    let refused = alice.ask(document, json!({ "password": PASSWORD })).await;
    assert_eq!(refused.code(), "LOCKED_OUT");
    assert_eq!(refused.0["errors"][0]["extensions"]["retryAfter"], 1_800);
    alice
        .mutate("updateViewer", json!({ "displayName": "Ada" }))
        .await
        .ok();
    // The owner's other sessions and new logins are not locked.
    assert_eq!(login(&server, "alice", PASSWORD).await.status, 200);
    let mut expected = vec!["LOGGED_IN", "LOCKED_OUT"];
    expected.extend(["PASSWORD_CHECK_FAILED"; 5]);
    assert_eq!(log(&owner).await[..7], expected);
    let entry =
        "{ viewer { securityLog(first: 2) { nodes { kind ipAddress actor { username } } } } }";
    let entry = owner.query(entry, json!({})).await["viewer"]["securityLog"]["nodes"][1].clone();
    assert_eq!(
        entry,
        json!({ "kind": "LOCKED_OUT", "ipAddress": "127.0.0.1", "actor": { "username": "alice" } })
    );
    owner.mutate("updateViewer", right).await.ok();
    server.advance(Duration::from_secs(30 * 60));
    let alice = alice.with_tokens(
        &server
            .post(
                "/auth/refresh",
                json!({ "refresh_token": alice.refresh_token }),
            )
            .await
            .body,
    );
    let changed = json!({ "currentPassword": PASSWORD, "newPassword": "Another-Horse-8" });
    alice.mutate("changePassword", changed).await.ok();
}

#[tokio::test]
async fn old_address_cancels_a_pending_change() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = alice(&server, &mut mailbox).await;
    let (notice, link) = ask(
        &alice,
        &mut mailbox,
        "alice@example.org",
        "thief@example.org",
    )
    .await;
    assert_eq!(
        verify(&server, &notice).await.body["code"],
        "INVALID",
        "the link has no other use"
    );
    assert_eq!(cancel(&server, &link).await.body["code"], "INVALID");
    assert_eq!(cancel(&server, &notice).await.status, 204);
    assert_eq!(
        cancel(&server, &notice).await.body["code"],
        "INVALID",
        "used up"
    );
    assert_eq!(
        verify(&server, &link).await.body["code"],
        "INVALID",
        "called off"
    );
    // Someone else knows the password, so it stops working and the owner is mailed a reset link.
    assert!(!server.is_signed_in(alice.token()).await);
    assert_eq!(
        login(&server, "alice", PASSWORD).await.body["code"],
        "INVALID_CREDENTIALS"
    );
    let mail = mailbox.next().await;
    assert_eq!(
        (mail.to.as_str(), mail.subject()),
        ("alice@example.org", "Set a new password")
    );
    assert_eq!(
        reset(&server, &mail.token(), "Another-Horse-8")
            .await
            .status,
        204
    );
    let alice = server.login_with("alice", "Another-Horse-8").await;
    assert_eq!(
        account(&alice).await,
        json!({ "email": "alice@example.org", "emailVerified": true })
    );
    let steps = [
        "LOGGED_IN",
        "PASSWORD_RESET",
        "LOGIN_FAILED",
        "PASSWORD_DISABLED",
        "EMAIL_CHANGE_CANCELED",
    ];
    assert_eq!(log(&alice).await[..5], steps);
    assert_eq!(log(&alice).await[5], "EMAIL_CHANGE_REQUESTED");
}

#[tokio::test]
async fn old_address_reverts_a_confirmed_change() {
    let (server, mut mailbox) = start(&[]).await;
    let thief = alice(&server, &mut mailbox).await;
    let (notice, link) = ask(
        &thief,
        &mut mailbox,
        "alice@example.org",
        "thief@example.org",
    )
    .await;
    assert_eq!(verify(&server, &link).await.status, 204);
    assert_eq!(
        mailbox.next().await.subject(),
        "Your e-mail address was changed"
    );
    // The attacker continues: a new password, a reset link, a second change of address. A third
    // party tries to sign up with the old address.
    let changed = json!({ "currentPassword": PASSWORD, "newPassword": "Stolen-Horse-9" });
    thief.mutate("changePassword", changed).await.ok();
    assert_eq!(mailbox.next().await.to, "thief@example.org");
    server
        .post(
            "/auth/password-reset",
            json!({ "email": "thief@example.org" }),
        )
        .await;
    let stolen = mailbox.next().await.token();
    let second = json!({ "email": "second@example.org", "currentPassword": "Stolen-Horse-9" });
    thief.mutate("updateViewer", second).await.ok();
    let (second_notice, second) = (mailbox.next().await, mailbox.next().await);
    assert_eq!(second_notice.to, "thief@example.org");
    assert_eq!(verify(&server, &second.token()).await.status, 204);
    assert_eq!(mailbox.next().await.to, "thief@example.org");
    let squatter =
        json!({ "email": "Alice@example.org", "username": "squatter", "password": PASSWORD });
    assert_eq!(
        server.post("/auth/register", squatter.clone()).await.body["code"],
        "TAKEN"
    );

    server.advance(DAY * 3 - Duration::from_secs(1));
    assert_eq!(cancel(&server, &notice).await.status, 204);
    let told = mailbox.next().await;
    assert_eq!(
        (told.to.as_str(), told.subject()),
        ("second@example.org", "Your e-mail address was changed")
    );
    let mail = mailbox.next().await;
    assert_eq!(
        (mail.to.as_str(), mail.subject()),
        ("alice@example.org", "Set a new password")
    );
    assert_eq!(
        cancel(&server, &second_notice.token()).await.body["code"],
        "INVALID",
        "later changes are void"
    );
    assert_eq!(
        reset(&server, &stolen, "Stolen-Horse-9").await.body["code"],
        "INVALID"
    );
    assert_eq!(login(&server, "alice", "Stolen-Horse-9").await.status, 401);
    assert_eq!(
        reset(&server, &mail.token(), "Another-Horse-8")
            .await
            .status,
        204
    );
    let alice = server.login_with("alice", "Another-Horse-8").await;
    assert_eq!(
        account(&alice).await,
        json!({ "email": "alice@example.org", "emailVerified": true })
    );
    let steps = [
        "LOGGED_IN",
        "PASSWORD_RESET",
        "LOGIN_FAILED",
        "PASSWORD_DISABLED",
        "EMAIL_CHANGE_CANCELED",
    ];
    assert_eq!(log(&alice).await[..5], steps);
    assert_eq!(
        log(&alice).await[5],
        "EMAIL_CHANGED",
        "back to the old address"
    );
    assert_eq!(
        server.post("/auth/register", squatter).await.body["code"],
        "TAKEN"
    );
}

#[tokio::test]
async fn change_can_be_reverted_for_three_days() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = alice(&server, &mut mailbox).await;
    let (notice, link) = ask(&alice, &mut mailbox, "alice@example.org", "new@example.org").await;
    assert_eq!(verify(&server, &link).await.status, 204);
    mailbox.next().await;
    server.advance(DAY * 3);
    assert_eq!(cancel(&server, &notice).await.body["code"], "INVALID");
    let newcomer =
        json!({ "email": "alice@example.org", "username": "newcomer", "password": PASSWORD });
    assert_eq!(
        server.post("/auth/register", newcomer).await.status,
        201,
        "the address is available again"
    );
    assert_eq!(login(&server, "alice", PASSWORD).await.status, 200);
}

#[tokio::test]
async fn unverified_old_address_cannot_revert_a_confirmed_change() {
    let (server, mut mailbox) = start(&[]).await;
    // A typo at sign-up: the address belongs to someone else.
    let alice = server.person("alice").await;
    mailbox.next().await;
    let (notice, link) = ask(
        &alice,
        &mut mailbox,
        "alice@example.org",
        "right@example.org",
    )
    .await;
    assert_eq!(verify(&server, &link).await.status, 204);
    assert_eq!(
        mailbox.next().await.subject(),
        "Your e-mail address was changed"
    );
    assert_eq!(cancel(&server, &notice).await.body["code"], "INVALID");
    assert_eq!(
        account(&alice).await,
        json!({ "email": "right@example.org", "emailVerified": true })
    );
    let stranger =
        json!({ "email": "alice@example.org", "username": "stranger", "password": PASSWORD });
    assert_eq!(
        server.post("/auth/register", stranger).await.status,
        201,
        "its owner can sign up with it"
    );
}

#[tokio::test]
async fn repeated_request_keeps_the_first_cancel_link_valid() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = alice(&server, &mut mailbox).await;
    let (first, _) = ask(&alice, &mut mailbox, "alice@example.org", "one@example.org").await;
    let (_, link) = ask(&alice, &mut mailbox, "alice@example.org", "two@example.org").await;
    assert_eq!(verify(&server, &link).await.status, 204);
    assert_eq!(
        mailbox.next().await.subject(),
        "Your e-mail address was changed"
    );
    assert_eq!(cancel(&server, &first).await.status, 204);
    mailbox.next().await;
    assert_eq!(
        reset(&server, &mailbox.next().await.token(), "Another-Horse-8")
            .await
            .status,
        204
    );
    assert_eq!(
        account(&server.login_with("alice", "Another-Horse-8").await).await["email"],
        "alice@example.org"
    );
}

#[tokio::test]
async fn each_step_of_a_change_is_audited() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = alice(&server, &mut mailbox).await;
    let (_, link) = ask(&alice, &mut mailbox, "alice@example.org", "one@example.org").await;
    // Requesting the current address cancels the change. No password is needed.
    alice
        .mutate("updateViewer", json!({ "email": "alice@example.org" }))
        .await
        .ok();
    assert_eq!(verify(&server, &link).await.body["code"], "INVALID");
    let (_, link) = ask(&alice, &mut mailbox, "alice@example.org", "two@example.org").await;
    assert_eq!(verify(&server, &link).await.status, 204);
    let log = log(&alice).await;
    let steps = [
        "EMAIL_CHANGED",
        "EMAIL_CHANGE_REQUESTED",
        "EMAIL_CHANGE_CANCELED",
        "EMAIL_CHANGE_REQUESTED",
    ];
    assert_eq!(log[..4], steps, "{log:?}");
}

#[tokio::test]
async fn opening_the_cancel_page_changes_nothing() {
    let server = Server::start().await;
    let page = Reply::to(server.request(Method::GET, "/auth/email-change/cancel")).await;
    assert_eq!(page.status, 200);
    assert!(
        page.headers["content-security-policy"]
            .to_str()
            .expect("text")
            .contains("script-src 'self'")
    );
    for token in ["", "x", "ü\u{0}", &"A".repeat(64)] {
        assert_eq!(
            cancel(&server, token).await.body["code"],
            "INVALID",
            "{token}"
        );
    }
}

#[tokio::test]
async fn an_undo_restores_the_address_that_was_verified_first_and_no_spelling_of_it() {
    for evil in ["ALICE@strasse.example.org", "alice@STRASSE.example.org"] {
        let (server, mut mailbox) = start(&[]).await;
        let good = "alice@strasse.example.org";
        let account = json!({ "email": good, "username": "alice", "password": PASSWORD });
        assert_eq!(server.post("/auth/register", account).await.status, 201);
        assert_eq!(
            verify(&server, &mailbox.next().await.token()).await.status,
            204
        );
        let thief = server.login("alice").await;
        // The two addresses fold to the same, as straße would, but a mail server may have both.
        let (notice, link) = ask(&thief, &mut mailbox, good, evil).await;
        assert_eq!(verify(&server, &link).await.status, 204);
        assert_eq!(
            mailbox.next().await.subject(),
            "Your e-mail address was changed"
        );
        server.advance(DAY);
        ask(
            &thief.with_tokens(&login(&server, "alice", PASSWORD).await.body),
            &mut mailbox,
            evil,
            "x@evil.example.org",
        )
        .await;
        server.advance(DAY + DAY);
        assert_eq!(
            cancel(&server, &notice).await.status,
            204,
            "the second request extends the time"
        );
        let told = mailbox.next().await;
        assert_eq!(
            (told.to.as_str(), told.subject()),
            (evil, "Your e-mail address was changed")
        );
        let mail = mailbox.next().await;
        assert_eq!(
            (mail.to.as_str(), mail.subject()),
            (good, "Set a new password")
        );
        assert_eq!(
            reset(&server, &mail.token(), "Another-Horse-8")
                .await
                .status,
            204
        );
        assert_eq!(
            account_of(&server).await,
            json!({ "email": good, "emailVerified": true })
        );
    }
}

async fn account_of(server: &Server) -> Value {
    account(&server.login_with("alice", "Another-Horse-8").await).await
}

#[tokio::test]
async fn an_address_that_is_verified_after_a_request_takes_later_changes_back() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    let sign_up = mailbox.next().await.token();
    ask(&alice, &mut mailbox, "alice@example.org", "one@example.org").await;
    assert_eq!(verify(&server, &sign_up).await.status, 204);
    let (notice, link) = ask(&alice, &mut mailbox, "alice@example.org", "two@example.org").await;
    assert_eq!(verify(&server, &link).await.status, 204);
    mailbox.next().await;
    assert_eq!(cancel(&server, &notice).await.status, 204);
    assert_eq!(mailbox.next().await.to, "two@example.org");
    assert_eq!(mailbox.next().await.to, "alice@example.org");
}

#[tokio::test]
async fn the_link_of_an_unverified_address_ends_with_another_spelling_of_it() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    mailbox.next().await;
    let (old, link) = ask(
        &alice,
        &mut mailbox,
        "alice@example.org",
        "Alice@example.org",
    )
    .await;
    assert_eq!(verify(&server, &link).await.status, 204);
    mailbox.next().await;
    let (new, link) = ask(
        &alice,
        &mut mailbox,
        "Alice@example.org",
        "thief@example.org",
    )
    .await;
    assert_ne!(old, new);
    assert_eq!(verify(&server, &link).await.status, 204);
    mailbox.next().await;
    assert_eq!(cancel(&server, &old).await.body["code"], "INVALID");
    assert_eq!(cancel(&server, &new).await.status, 204);
    assert_eq!(mailbox.next().await.to, "thief@example.org");
    assert_eq!(mailbox.next().await.to, "Alice@example.org");
}

#[tokio::test]
async fn the_link_to_a_new_password_after_an_undo_is_mailed_at_once() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = alice(&server, &mut mailbox).await;
    let mut notices = Vec::new();
    for number in 0..5 {
        let (notice, _) = ask(
            &alice,
            &mut mailbox,
            "alice@example.org",
            &format!("x{number}@example.org"),
        )
        .await;
        notices.push(notice);
    }
    for _ in 0..4 {
        server
            .post(
                "/auth/password-reset",
                json!({ "email": "alice@example.org" }),
            )
            .await;
        assert_eq!(mailbox.next().await.subject(), "Set a new password");
    }
    server
        .post(
            "/auth/password-reset",
            json!({ "email": "alice@example.org" }),
        )
        .await;
    assert_eq!(cancel(&server, &notices[0]).await.status, 204);
    let mail = mailbox.next().await;
    assert_eq!(
        (mail.to.as_str(), mail.subject()),
        ("alice@example.org", "Set a new password")
    );
    assert_eq!(
        reset(&server, &mail.token(), "Another-Horse-8")
            .await
            .status,
        204
    );
}
