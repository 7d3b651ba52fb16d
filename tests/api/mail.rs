//! The mail queue, as an SMTP server gets it.

use std::time::Duration;

use serde_json::json;

use crate::recovery::start;

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
async fn an_assignment_is_mailed_to_the_assignee_and_not_to_oneself() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let (_, _) = (mailbox.next().await, mailbox.next().await);
    let project = alice.project("Apollo").await;
    alice.task(&project, "For me <b>", json!({ "assigneeId": alice.id })).await;
    alice.task(&project, "For Bob <b>", json!({ "assigneeId": bob.id })).await;
    let mail = mailbox.next().await;
    assert_eq!((mail.to.as_str(), mail.subject()), ("bob@example.org", "Assigned to you: For Bob <b>"));
    assert!(mail.content.contains("For Bob &lt;b&gt;"), "escaped in HTML: {}", mail.content);
}
