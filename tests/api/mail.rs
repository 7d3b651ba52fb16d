//! Mail about assignments, as an SMTP server gets it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fasttrack::mail::Mailer;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::harness::{PATIENCE, Server};

/// An SMTP server that keeps what it gets, or turns it down as long as it is told to.
struct Postbox {
    url: String,
    turning_down: Arc<AtomicUsize>,
    letters: mpsc::UnboundedReceiver<String>,
}

impl Postbox {
    /// Opens one that turns down the first few letters.
    async fn open(turned_down: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("smtp://{}", listener.local_addr().expect("an address"));
        let turning_down = Arc::new(AtomicUsize::new(turned_down));
        let (sender, letters) = mpsc::unbounded_channel();
        let turns_down = Arc::clone(&turning_down);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(talk(stream, sender.clone(), Arc::clone(&turns_down)));
            }
        });
        Self { url, turning_down, letters }
    }

    async fn next(&mut self) -> String {
        timeout(PATIENCE, self.letters.recv()).await.expect("a letter in time").expect("an open postbox")
    }
}

/// One SMTP conversation.
async fn talk(stream: TcpStream, letters: mpsc::UnboundedSender<String>, turning_down: Arc<AtomicUsize>) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"220 postbox\r\n").await.ok()?;
    while let Some(line) = lines.next_line().await.ok()? {
        let answer = match line.split(' ').next().unwrap_or_default() {
            "DATA" => {
                writer.write_all(b"354 go on\r\n").await.ok()?;
                let mut letter = String::new();
                while let Some(line) = lines.next_line().await.ok()?.filter(|line| line != ".") {
                    letter.push_str(&line);
                    letter.push('\n');
                }
                let down = turning_down.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if down.is_ok() {
                    "451 not now\r\n"
                } else {
                    letters.send(letter).ok()?;
                    "250 kept\r\n"
                }
            }
            "QUIT" => "221 bye\r\n",
            _ => "250 fine\r\n",
        };
        writer.write_all(answer.as_bytes()).await.ok()?;
    }
    Some(())
}

/// Sends what is due now, without waiting for the job that does it every so often.
async fn send_due(server: &Server) {
    let sent = server.run(async |app| Mailer::new(&app.config)?.send_due(&app.db, &app.clock).await);
    sent.await.expect("a mail queue that can be read");
}

#[tokio::test]
async fn an_assignment_is_mailed_to_the_assignee_and_not_to_oneself() {
    let mut postbox = Postbox::open(0).await;
    let server = Server::with(&[("SMTP_URL", &postbox.url), ("MAIL_FROM", "Tracker <tracker@example.org>")]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    alice.task(&project, "My own", json!({ "assigneeId": alice.id })).await;
    let task = alice.task(&project, "Fly\r\nBcc: eve@example.org", json!({ "assigneeId": bob.id })).await;
    send_due(&server).await;
    let letter = postbox.next().await;
    for line in ["From: Tracker <tracker@example.org>", "To: bob@example.org", "Hello bob,"] {
        assert!(letter.lines().any(|found| found == line), "{line:?} is not in {letter}");
    }
    let (headers, body) = letter.split_once("\n\n").expect("headers and a body");
    assert!(headers.contains("Subject: Assigned to you:") && body.contains("  Fly"), "{letter}");
    assert!(!headers.contains("\nBcc:"), "a title is no header: {letter}");

    alice.mutate("updateTask", json!({ "id": task, "title": "Land", "assigneeId": bob.id })).await.ok();
    bob.mutate("updateTask", json!({ "id": task, "assigneeId": alice.id })).await.ok();
    send_due(&server).await;
    let letter = postbox.next().await;
    assert!(
        letter.contains("To: alice@example.org") && letter.contains("Land"),
        "only a new assignee is told: {letter}"
    );
}

#[tokio::test]
async fn a_mail_that_could_not_be_sent_is_sent_later() {
    let mut postbox = Postbox::open(2).await;
    let server = Server::with(&[("SMTP_URL", &postbox.url)]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    alice.task(&project, "Fly", json!({ "assigneeId": bob.id })).await;
    for _ in 0..20 {
        send_due(&server).await;
        server.advance(Duration::from_secs(3_600));
    }
    assert!(postbox.next().await.contains("To: bob@example.org"));
    assert_eq!(postbox.turning_down.load(Ordering::SeqCst), 0, "it was tried twice before");
    send_due(&server).await;
    assert!(postbox.letters.try_recv().is_err(), "and it is sent once");
}

#[tokio::test]
async fn what_is_refused_is_not_mailed() {
    let mut postbox = Postbox::open(0).await;
    let server = Server::with(&[("SMTP_URL", &postbox.url)]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let late = json!({ "id": task, "assigneeId": bob.id, "expectedVersion": 7 });
    assert_eq!(alice.mutate("updateTask", late).await.faults(), ["expectedVersion: CONFLICT"]);
    let wrong = json!({ "projectId": project, "title": "Refused", "assigneeId": bob.id, "labelIds": [task] });
    assert_eq!(alice.mutate("createTask", wrong).await.faults(), ["labelIds: NOT_FOUND"]);
    alice.mutate("updateTask", json!({ "id": task, "assigneeId": bob.id })).await.ok();
    send_due(&server).await;
    assert!(postbox.next().await.contains("Fly"), "the first mail is about what was done");
}
