//! The mail queue, as an SMTP server gets it.

use std::time::Duration;

use fasttrack::db::Bell;
use fasttrack::store::mail;
use serde_json::json;

use crate::harness::Server;
use crate::recovery::{start, verify};

#[tokio::test]
async fn a_mail_server_that_is_down_delays_mail_and_nothing_else() {
    let (server, mut mailbox) = start(&[]).await;
    mailbox.refuse(true);
    server.person("alice").await;
    mailbox.refused().await;
    mailbox.refuse(false);
    // The next attempt is half a minute later; another mail rings the bell then.
    server.advance(Duration::from_secs(31));
    server.post("/auth/password-reset", json!({ "email": "alice@example.org" })).await;
    let mut subjects = [mailbox.next().await.subject().to_owned(), mailbox.next().await.subject().to_owned()];
    subjects.sort();
    assert_eq!(subjects, ["Set a new password", "Verify your e-mail address"]);
    assert!(mailbox.is_empty());
}

#[tokio::test]
async fn an_assignment_is_mailed_to_whoever_has_verified_their_address_and_not_to_oneself() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, carol, bob) = (server.person("alice").await, server.person("carol").await, server.person("bob").await);
    let links = [mailbox.next().await, mailbox.next().await, mailbox.next().await];
    for link in links.iter().filter(|link| link.to != "carol@example.org") {
        assert_eq!(verify(&server, &link.token()).await.status, 204);
    }
    let project = alice.project("Apollo").await;
    alice.task(&project, "For me <b>", json!({ "assigneeId": alice.id })).await;
    alice.task(&project, "For Carol <b>", json!({ "assigneeId": carol.id })).await;
    alice.task(&project, "For Bob <b>", json!({ "assigneeId": bob.id })).await;
    let mail = mailbox.next().await;
    assert_eq!((mail.to.as_str(), mail.subject()), ("bob@example.org", "Assigned to you: For Bob <b>"));
    assert!(mail.content.contains("For Bob &lt;b&gt;"), "escaped in HTML: {}", mail.content);
}

#[tokio::test]
async fn mail_about_an_account_goes_before_assignments() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, root) = (server.person("alice").await, server.admin("root").await);
    mailbox.next().await;
    let project = alice.project("Apollo").await;
    mailbox.refuse(true);
    for _ in 0..3 {
        alice.task(&project, "Fly", json!({ "assigneeId": root.id })).await;
        mailbox.refused().await;
    }
    server.post("/auth/password-reset", json!({ "email": "alice@example.org" })).await;
    mailbox.refused().await;
    mailbox.refuse(false);
    server.advance(Duration::from_secs(31));
    server.app.db.ring(Bell::Mail);
    let mut subjects = Vec::new();
    for _ in 0..4 {
        subjects.push(mailbox.next().await.subject().to_owned());
    }
    assert_eq!(subjects[0], "Set a new password", "{subjects:?}");
}

#[tokio::test]
async fn a_message_is_claimed_when_its_turn_comes_and_whoever_lost_the_claim_has_no_say() {
    let server = Server::without_jobs().await;
    let (_, _) = (server.person("alice").await, server.person("bob").await);
    let claim = async || server.run(async |app| mail::claim(&app.db, app.clock.now()).await).await.expect("an answer");
    let slow = claim().await.expect("a message");
    server.advance(Duration::from_secs(100));
    let other = claim().await.expect("another message");
    assert_ne!(slow.id, other.id);
    server.advance(Duration::from_secs(20));
    let again = claim().await.expect("the first one once more");
    assert_eq!((again.id, claim().await), (slow.id, None), "the second claim lasts");
    let late = server.run(async move |app| {
        mail::postpone(&app.db, app.clock.now(), &slow, "late").await?;
        mail::settle(&app.db, &slow).await
    });
    late.await.expect("an answer");
    server.advance(Duration::from_secs(100));
    assert_eq!(claim().await.expect("the second one").id, other.id);
    assert_eq!(claim().await, None);
    server.advance(Duration::from_secs(20));
    assert_eq!(claim().await.expect("the first one").attempts, 0);
}
