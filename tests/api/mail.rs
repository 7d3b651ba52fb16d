//! The mail queue, observed from an SMTP server.

use std::time::Duration;

use diesel::prelude::*;
use fasttrack::db::CommitSignal;
use fasttrack::db::schema::mails;
use fasttrack::error::Error;
use fasttrack::on;
use fasttrack::store::mail::{self, MailKind};
use fasttrack::store::mail_quota::{
    self, ACCOUNT_MAILS, QuotaDecision, WINDOW, admit_account_mail,
};
use fasttrack::time::Timestamp;
use reqwest::Method;
use serde_json::json;
use tokio::time::timeout;

use crate::harness::{Mail, Mailbox, PASSWORD, PATIENCE, Person, Program, Reply, Server};
use crate::recovery::{confirm, start, verify};

/// Waits until no message in the queue is due.
async fn idle(server: &Server) {
    let idle = server.run(async |app| {
        loop {
            // A message that is being sent is claimed for two minutes.
            let soon = app.clock.now().plus(Duration::from_secs(120));
            let due = mails::table.filter(mails::next_attempt_at.le(soon)).count();
            let mut conn = app.db.conn().await?;
            let due: i64 = on!(conn, |c| diesel_async::RunQueryDsl::get_result(due, c)
                .await)?;
            drop(conn);
            if due == 0 {
                return Result::<(), Error>::Ok(());
            }
            tokio::task::yield_now().await;
        }
    });
    timeout(PATIENCE, idle)
        .await
        .expect("an idle queue")
        .expect("an answer");
}

/// Waits for the queue and returns everything that has arrived.
async fn arrived(server: &Server, mailbox: &mut Mailbox) -> Vec<Mail> {
    idle(server).await;
    let mut all = Vec::new();
    while !mailbox.is_empty() {
        all.push(mailbox.next().await);
    }
    all
}

async fn ask(server: &Server, path: &str, email: &str) -> Reply {
    server.post(path, json!({ "email": email })).await
}

#[tokio::test]
async fn unavailable_smtp_server_only_delays_mail() {
    let (server, mut mailbox) = start(&[]).await;
    mailbox.refuse(true);
    server.person("alice").await;
    mailbox.refused().await;
    mailbox.refuse(false);
    // The next attempt is 30 seconds later; a new mail then wakes the queue.
    server.advance(Duration::from_secs(31));
    server
        .post(
            "/auth/password-reset",
            json!({ "email": "alice@example.org" }),
        )
        .await;
    let mut subjects = [
        mailbox.next().await.subject().to_owned(),
        mailbox.next().await.subject().to_owned(),
    ];
    subjects.sort();
    assert_eq!(
        subjects,
        ["Set a new password", "Verify your e-mail address"]
    );
    assert!(mailbox.is_empty());
}

#[tokio::test]
async fn an_assignment_is_mailed_to_verified_addresses_and_not_to_oneself() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, carol, bob) = (
        server.person("alice").await,
        server.person("carol").await,
        server.person("bob").await,
    );
    let links = [
        mailbox.next().await,
        mailbox.next().await,
        mailbox.next().await,
    ];
    for link in links.iter().filter(|link| link.to != "carol@example.org") {
        assert_eq!(verify(&server, &link.token()).await.status, 204);
    }
    let project = alice.project("Apollo").await;
    alice
        .task(&project, "For me <b>", json!({ "assigneeId": alice.id }))
        .await;
    alice
        .task(&project, "For Carol <b>", json!({ "assigneeId": carol.id }))
        .await;
    alice
        .task(&project, "For Bob <b>", json!({ "assigneeId": bob.id }))
        .await;
    let mail = mailbox.next().await;
    assert_eq!(
        (mail.to.as_str(), mail.subject()),
        ("bob@example.org", "A task was assigned to you")
    );
    assert!(
        mail.content.contains("For Bob &lt;b&gt;"),
        "escaped in HTML: {}",
        mail.content
    );
    assert!(arrived(&server, &mut mailbox).await.is_empty());
}

#[tokio::test]
async fn account_mail_beyond_5_an_hour_is_delayed() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    let mut mails = arrived(&server, &mut mailbox).await;
    let mut answers = Vec::new();
    for path in ["/auth/password-reset", "/auth/verify-email/resend"]
        .into_iter()
        .cycle()
        .take(12)
    {
        let (hers, nobodys) = (
            ask(&server, path, "alice@example.org").await,
            ask(&server, path, "x@example.org").await,
        );
        assert_eq!((hers.status.as_u16(), &hers.body), (202, &nobodys.body));
        answers.push((path, hers.body));
        mails.extend(arrived(&server, &mut mailbox).await);
    }
    assert_eq!(mails.len(), 5, "{mails:?}");
    assert!(answers.iter().all(|(path, body)| {
        answers
            .iter()
            .all(|(other, same)| path != other || body == same)
    }));

    // The limit survives a restart, and requests by another account for the same address count too.
    let server = server.again(&[("SMTP_URL", &mailbox.url())]).await;
    let mallory = server.person("mallory").await;
    assert_eq!(
        arrived(&server, &mut mailbox).await.len(),
        1,
        "the limit is per recipient"
    );
    for number in 0..3 {
        for email in [&format!("{number}@example.org"), "bob@example.org"] {
            let input = json!({ "email": email, "currentPassword": PASSWORD });
            mallory.mutate("updateViewer", input).await.ok();
        }
    }
    let to_bob: Vec<_> = arrived(&server, &mut mailbox)
        .await
        .into_iter()
        .filter(|mail| mail.to == "bob@example.org")
        .collect();
    assert!(to_bob.len() <= 3, "{to_bob:?}");

    server.advance(Duration::from_secs(3_600));
    server.app.db.signal(CommitSignal::Mail);
    let mut late: Vec<_> = arrived(&server, &mut mailbox).await;
    late.retain(|mail| mail.to == "alice@example.org");
    let mut subjects: Vec<_> = late.iter().map(|mail| mail.subject()).collect();
    subjects.sort_unstable();
    assert_eq!(
        subjects,
        ["Set a new password", "Verify your e-mail address"],
        "one delayed mail of each kind"
    );
    let reset = late
        .iter()
        .find(|mail| mail.subject() == "Set a new password")
        .expect("a link");
    assert_eq!(
        confirm(&server, &reset.token(), "Another-Horse-8")
            .await
            .status,
        204
    );
    assert!(!server.is_signed_in(alice.token()).await);
}

#[tokio::test]
async fn no_hour_has_more_account_mails_than_the_limit() {
    let server = Server::without_jobs().await;
    let checked = server.run(async |app| {
        let (mut now, mut state, mut counted) =
            (app.clock.now(), 7_u64, Vec::<(MailKind, Timestamp)>::new());
        let mut refused = 0;
        for step in 0..400 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let random = state >> 33;
            now = now.plus(Duration::from_secs(random % 900));
            let kind = [
                MailKind::VerifyEmail,
                MailKind::ResetPassword,
                MailKind::PasswordChanged,
            ][(random / 900 % 3) as usize];
            let address = [
                "alice@example.org",
                "ALICE@example.org",
                "alice+tag@example.org",
            ][step % 3];
            let admission = app
                .db
                .transaction(async |tx| admit_account_mail(tx, now, kind, address).await)
                .await?;
            let recent = counted.iter().filter(|(other, at)| {
                now.since(*at) < WINDOW
                    && (kind == MailKind::PasswordChanged) == (*other == MailKind::PasswordChanged)
            });
            let recent: Vec<Timestamp> = recent.map(|(_, at)| *at).collect();
            match admission {
                QuotaDecision::Counted(_) => {
                    assert!(
                        recent.len() < ACCOUNT_MAILS,
                        "step {step}: {kind:?} after {recent:?}"
                    );
                    counted.push((kind, now));
                }
                QuotaDecision::Full(until) => {
                    refused += 1;
                    let oldest = recent.len().checked_sub(ACCOUNT_MAILS).map(|at| recent[at]);
                    assert_eq!(
                        oldest.map(|at| at.plus(WINDOW)),
                        Some(until),
                        "step {step}: {kind:?}"
                    );
                }
            }
        }
        assert!(
            refused > 50 && counted.len() > 50,
            "{refused} {}",
            counted.len()
        );
        let purged = mail_quota::purge_expired(&app.db, now.plus(WINDOW)).await?;
        assert_eq!(purged, counted.len());
        Result::<(), Error>::Ok(())
    });
    checked.await.expect("answers");
}

#[tokio::test]
async fn one_click_unsubscribe_requires_https() {
    let (server, mut mailbox) = start(&[("PUBLIC_URL", "http://tasks.example.org")]).await;
    let (alice, root) = (server.person("alice").await, server.admin("root").await);
    mailbox.next().await;
    let project = alice.project("Apollo").await;
    alice
        .task(&project, "Fly", json!({ "assigneeId": root.id }))
        .await;
    let mail = mailbox.next().await;
    assert!(
        header(&mail, "List-Unsubscribe")
            .is_some_and(|value| value.starts_with("<http://tasks.example.org/"))
    );
    assert_eq!(header(&mail, "List-Unsubscribe-Post"), None);
}

#[tokio::test]
async fn stranger_requests_cannot_suppress_security_notices() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    for _ in 0..6 {
        ask(&server, "/auth/password-reset", "alice@example.org").await;
        idle(&server).await;
    }
    assert_eq!(arrived(&server, &mut mailbox).await.len(), 5);
    let change = async |old: &str, new: &str| {
        alice
            .mutate(
                "changePassword",
                json!({ "currentPassword": old, "newPassword": new }),
            )
            .await
            .ok();
    };
    let mut notices = 0;
    for _ in 0..4 {
        change(PASSWORD, "Another-Horse-8").await;
        change("Another-Horse-8", PASSWORD).await;
        let mails = arrived(&server, &mut mailbox).await;
        assert!(
            mails
                .iter()
                .all(|mail| mail.subject() == "Your password was changed"),
            "{mails:?}"
        );
        notices += mails.len();
    }
    assert_eq!(notices, 5, "each kind of notice has its own limit");
}

#[tokio::test]
async fn undelivered_mail_does_not_count_toward_the_limit() {
    let (server, mut mailbox) = start(&[]).await;
    server.person("alice").await;
    mailbox.next().await;
    mailbox.refuse(true);
    for _ in 0..6 {
        ask(&server, "/auth/password-reset", "alice@example.org").await;
        mailbox.refused().await;
    }
    mailbox.refuse(false);
    server.advance(Duration::from_secs(31));
    server.app.db.signal(CommitSignal::Mail);
    assert_eq!(mailbox.next().await.subject(), "Set a new password");
}

/// Assigns `count` tasks and returns the number of mails about them.
async fn assign(
    server: &Server,
    mailbox: &mut Mailbox,
    from: &Person,
    to: &Person,
    count: usize,
) -> usize {
    let project = from.project("Apollo").await;
    for number in 0..count {
        from.task(
            &project,
            &format!("Task {number}"),
            json!({ "assigneeId": to.id }),
        )
        .await;
    }
    arrived(server, mailbox)
        .await
        .iter()
        .filter(|mail| mail.subject() == "A task was assigned to you")
        .count()
}

#[tokio::test]
async fn assignment_mails_are_limited_by_sender_and_recipient() {
    let (server, mut mailbox) = start(&[]).await;
    let root = server.admin("root").await;
    let mut senders = Vec::new();
    for number in 0..5 {
        senders.push(server.person(&format!("sender-{number}")).await);
    }
    assert_eq!(
        assign(&server, &mut mailbox, &senders[0], &root, 7).await,
        5,
        "one sender, one recipient"
    );
    let mut sum = 5;
    for sender in &senders[1..] {
        sum += assign(&server, &mut mailbox, sender, &root, 6).await;
    }
    assert_eq!(sum, 20, "all senders, one recipient");
    server.advance(Duration::from_secs(3_600));
    let sender = server.login("sender-0").await;
    sum = assign(&server, &mut mailbox, &sender, &root, 6).await;
    for number in 1..13 {
        let other = server.admin(&format!("admin-{number}")).await;
        sum += assign(&server, &mut mailbox, &sender, &other, 5).await;
    }
    assert_eq!(sum, 60, "one sender, all recipients");
}

#[tokio::test]
async fn concurrent_assignments_respect_the_mail_limit() {
    let (server, mut mailbox) = start(&[]).await;
    let (root, alice) = (server.admin("root").await, server.person("alice").await);
    mailbox.next().await;
    let project = alice.project("Apollo").await;
    let create =
        "mutation ($input: CreateTaskInput!) { createTask(input: $input) { userErrors { code } } }";
    let make = async |number: usize| {
        let input =
            json!({ "projectId": project, "title": number.to_string(), "assigneeId": root.id });
        alice.query(create, json!({ "input": input })).await;
    };
    futures_util::future::join_all((0..20).map(make)).await;
    assert_eq!(arrived(&server, &mut mailbox).await.len(), 5);
}

/// The value of a header.
fn header<'a>(mail: &'a Mail, name: &str) -> Option<&'a str> {
    mail.content
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn one_click_unsubscribes_and_a_setting_resubscribes() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, root) = (server.person("alice").await, server.admin("root").await);
    assert_eq!(
        header(&mailbox.next().await, "List-Unsubscribe"),
        None,
        "no unsubscribe link in account mail"
    );
    let project = alice.project("Apollo").await;
    let assign = async || {
        alice
            .task(&project, "Fly", json!({ "assigneeId": root.id }))
            .await
    };
    assign().await;
    let mail = mailbox.next().await;
    assert_eq!(
        header(&mail, "List-Unsubscribe-Post"),
        Some("List-Unsubscribe=One-Click"),
        "{}",
        mail.content
    );
    let address = header(&mail, "List-Unsubscribe").expect("an address");
    let address = address
        .strip_prefix("<https://tasks.example.org")
        .and_then(|rest| rest.strip_suffix('>'));
    let path = address
        .unwrap_or_else(|| panic!("an https URI in angle brackets: {}", mail.content))
        .to_owned();
    assert!(
        mail.content.matches(&path).count() >= 3,
        "the link is in the text too: {}",
        mail.content
    );
    let setting = async || {
        root.query("{ viewer { assignmentEmails } }", json!({}))
            .await["viewer"]
            .clone()
    };

    // Mail scanners open links, so GET must not unsubscribe.
    let page = server
        .request(Method::GET, &path)
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        (page.status().as_u16(), &page.headers()["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    assert_eq!(setting().await["assignmentEmails"], true);

    let form = "application/x-www-form-urlencoded";
    let multipart = "--b\r\nContent-Disposition: form-data; name=\"List-Unsubscribe\"\r\n\r\nOne-Click\r\n--b--\r\n";
    for (kind, body) in [
        (form, "List-Unsubscribe=One-Click"),
        ("multipart/form-data; boundary=b", multipart),
    ] {
        let input = json!({ "assignmentEmails": true });
        let changed = root.mutate("updateViewer", input).await.ok();
        assert_eq!(changed["email"], "root@example.org");
        assert_eq!(setting().await["assignmentEmails"], true);
        let request = server
            .request(Method::POST, &path)
            .header("content-type", kind)
            .body(body);
        assert_eq!(Reply::to(request).await.status, 200, "{kind}");
        assert_eq!(setting().await["assignmentEmails"], false, "{kind}");
        assert_eq!(
            Reply::to(server.request(Method::POST, &path)).await.status,
            200,
            "once more"
        );
    }
    assign().await;
    assert!(arrived(&server, &mut mailbox).await.is_empty());
    root.mutate("updateViewer", json!({ "assignmentEmails": true }))
        .await
        .ok();
    assign().await;
    assert_eq!(mailbox.next().await.to, "root@example.org");

    // A forged link unsubscribes nobody.
    let (base, token) = path.split_once("token=").expect("a token");
    let mut forged: Vec<String> = vec![String::new(), "x".to_owned(), format!("{token}A")];
    forged.extend((0..token.len()).step_by(7).map(|at| {
        let other = if &token[at..=at] == "A" { "B" } else { "A" };
        format!("{}{other}{}", &token[..at], &token[at + 1..])
    }));
    for token in forged {
        let reply = Reply::to(server.request(Method::POST, &format!("{base}token={token}"))).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.body["code"]),
            (422, &json!("INVALID")),
            "{token}"
        );
    }
    assert_eq!(setting().await["assignmentEmails"], true);
    let export = root.query("{ exportViewerData }", json!({})).await;
    assert_eq!(
        export["exportViewerData"]["account"]["assignmentEmails"],
        true
    );
    let of_root = "query ($id: ID!) { node(id: $id) { ... on User { assignmentEmails } } }";
    assert_eq!(
        alice.ask(of_root, json!({ "id": root.id })).await.code(),
        "FORBIDDEN"
    );
    let log = root
        .query(
            "{ viewer { securityLog(first: 9) { nodes { kind ipAddress } } } }",
            json!({}),
        )
        .await;
    let log = log["viewer"]["securityLog"]["nodes"]
        .as_array()
        .expect("entries")
        .clone();
    let entry = json!({ "kind": "UNSUBSCRIBED", "ipAddress": "127.0.0.1" });
    assert_eq!(
        log.iter().filter(|other| **other == entry).count(),
        2,
        "one entry per change: {log:?}"
    );
}

#[test]
fn mail_without_smtp_is_logged_at_any_level_to_private_files() {
    for filter in ["off", "error", "fasttrack=off", "fasttrack::mail=off,warn"] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (server, address) = Program::server(directory.path(), &[("RUST_LOG", filter)]);
        let body =
            json!({ "email": "alice@example.org", "username": "alice", "password": PASSWORD });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let signed_up = runtime.block_on(async {
            reqwest::Client::new()
                .post(format!("http://{address}/auth/register"))
                .json(&body)
                .send()
                .await
        });
        assert_eq!(signed_up.expect("an answer").status(), 201);
        let mail = server.line("#token=");
        assert!(mail.contains("alice@example.org"), "{filter}: {mail}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mut seen = Vec::new();
            for entry in std::fs::read_dir(directory.path()).expect("files") {
                let entry = entry.expect("a file");
                let mode = entry.metadata().expect("its mode").permissions().mode() & 0o777;
                seen.push((
                    entry.file_name().into_string().expect("a name"),
                    format!("{mode:o}"),
                ));
            }
            seen.sort();
            let expected = [
                "fasttrack.db",
                "fasttrack.db-shm",
                "fasttrack.db-wal",
                "fasttrack.secrets",
            ];
            assert_eq!(
                seen,
                expected.map(|name| (name.to_owned(), "600".to_owned()))
            );
        }
    }
}

#[tokio::test]
async fn mail_about_an_account_goes_before_assignments() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, root) = (server.person("alice").await, server.admin("root").await);
    mailbox.next().await;
    let project = alice.project("Apollo").await;
    mailbox.refuse(true);
    for _ in 0..3 {
        alice
            .task(&project, "Fly", json!({ "assigneeId": root.id }))
            .await;
        mailbox.refused().await;
    }
    server
        .post(
            "/auth/password-reset",
            json!({ "email": "alice@example.org" }),
        )
        .await;
    mailbox.refused().await;
    mailbox.refuse(false);
    server.advance(Duration::from_secs(31));
    server.app.db.signal(CommitSignal::Mail);
    let mut subjects = Vec::new();
    for _ in 0..4 {
        subjects.push(mailbox.next().await.subject().to_owned());
    }
    assert_eq!(subjects[0], "Set a new password", "{subjects:?}");
}

#[tokio::test]
async fn a_due_message_is_claimed_and_a_lost_claim_changes_nothing() {
    let server = Server::without_jobs().await;
    let (_, _) = (server.person("alice").await, server.person("bob").await);
    let claim = async || {
        server
            .run(async |app| mail::claim(&app.db, app.clock.now()).await)
            .await
            .expect("an answer")
    };
    let slow = claim().await.expect("a message");
    server.advance(Duration::from_secs(100));
    let other = claim().await.expect("another message");
    assert_ne!(slow.id, other.id);
    server.advance(Duration::from_secs(20));
    let again = claim().await.expect("the first message again");
    assert_eq!(
        (again.id, claim().await),
        (slow.id, None),
        "the second claim is valid"
    );
    let late = server.run(async move |app| {
        mail::postpone(&app.db, app.clock.now(), &slow, "late").await?;
        mail::complete(&app.db, &slow).await
    });
    late.await.expect("an answer");
    server.advance(Duration::from_secs(100));
    assert_eq!(claim().await.expect("the second message").id, other.id);
    assert_eq!(claim().await, None);
    server.advance(Duration::from_secs(20));
    assert_eq!(claim().await.expect("the first message").attempts, 0);
}

/// The number of messages in the queue.
async fn queued(server: &Server) -> usize {
    server.database().rows().await["mails"].len()
}

#[tokio::test]
async fn spellings_of_one_address_wait_as_one_message_of_each_kind() {
    let (server, mut mailbox) = start(&[]).await;
    server.person("alice").await;
    let spelling = |mask: u32| -> String {
        let letters = "alice".chars().enumerate();
        let letters = letters.map(|(at, c)| {
            if mask >> at & 1 == 1 {
                c.to_ascii_uppercase()
            } else {
                c
            }
        });
        letters.chain("@example.org".chars()).collect()
    };
    let mut mails = arrived(&server, &mut mailbox).await;
    for mask in 0..32 {
        for path in ["/auth/password-reset", "/auth/verify-email/resend"] {
            assert_eq!(ask(&server, path, &spelling(mask)).await.status, 202);
        }
        if mask < 4 {
            mails.extend(arrived(&server, &mut mailbox).await);
        }
    }
    mails.extend(arrived(&server, &mut mailbox).await);
    assert_eq!(mails.len(), 5, "{mails:?}");
    assert_eq!(queued(&server).await, 2, "one message of each kind waits");
    server.advance(Duration::from_secs(3_600));
    server.app.db.signal(CommitSignal::Mail);
    assert_eq!(arrived(&server, &mut mailbox).await.len(), 2);
    assert_eq!(queued(&server).await, 0);
}

#[tokio::test]
async fn a_link_that_waited_for_half_a_day_is_dropped_and_a_notice_is_not() {
    let (server, mut mailbox) = start(&[]).await;
    mailbox.refuse(true);
    let alice = server.person("alice").await;
    mailbox.refused().await;
    ask(&server, "/auth/password-reset", "alice@example.org").await;
    mailbox.refused().await;
    let change = json!({ "currentPassword": PASSWORD, "newPassword": "Another-Horse-8" });
    alice.mutate("changePassword", change).await.ok();
    mailbox.refused().await;
    assert_eq!(queued(&server).await, 3);
    server.advance(Duration::from_secs(12 * 3_600));
    mailbox.refuse(false);
    server.app.db.signal(CommitSignal::Mail);
    let mails = arrived(&server, &mut mailbox).await;
    let subjects: Vec<_> = mails.iter().map(Mail::subject).collect();
    assert_eq!(subjects, ["Your password was changed"]);
    assert_eq!(queued(&server).await, 0);
}

#[tokio::test]
async fn a_message_that_was_put_off_does_not_delay_new_ones() {
    let server = Server::without_jobs().await;
    server.person("alice").await;
    let claim = async || {
        server
            .run(async |app| mail::claim(&app.db, app.clock.now()).await)
            .await
            .expect("an answer")
    };
    let first = claim().await.expect("a message");
    let until = first.created_at.plus(Duration::from_secs(10));
    let deferred = server.run(async move |app| {
        app.db
            .transaction(async |tx| mail::defer(tx, &first, until).await)
            .await
    });
    deferred.await.expect("an answer");
    server.advance(Duration::from_secs(20));
    server.person("bob").await;
    let next = [claim().await, claim().await].map(|mail| mail.expect("a message").recipient);
    assert_eq!(next, ["bob@example.org", "alice@example.org"]);
}

#[tokio::test]
async fn address_changes_of_others_delay_a_sign_up_mail_and_do_not_suppress_it() {
    let (server, mut mailbox) = start(&[]).await;
    let mallory = server.person("mallory").await;
    arrived(&server, &mut mailbox).await;
    for _ in 0..5 {
        let input = json!({ "email": "newcomer@example.org", "currentPassword": PASSWORD });
        mallory.mutate("updateViewer", input).await.ok();
        assert_eq!(
            arrived(&server, &mut mailbox).await.len(),
            2,
            "a notice and a link"
        );
    }
    server.person("newcomer").await;
    assert!(
        arrived(&server, &mut mailbox).await.is_empty(),
        "over the limit"
    );
    server.advance(Duration::from_secs(3_600));
    server.app.db.signal(CommitSignal::Mail);
    let mail = mailbox.next().await;
    assert_eq!(
        (mail.to.as_str(), mail.subject()),
        ("newcomer@example.org", "Verify your e-mail address")
    );
    assert_eq!(verify(&server, &mail.token()).await.status, 204);
}

#[tokio::test]
async fn notices_leave_the_limit_of_links_alone() {
    let (server, mut mailbox) = start(&[]).await;
    let alice = server.person("alice").await;
    arrived(&server, &mut mailbox).await;
    for (old, new) in [(PASSWORD, "Another-Horse-8"), ("Another-Horse-8", PASSWORD)]
        .into_iter()
        .cycle()
        .take(4)
    {
        alice
            .mutate(
                "changePassword",
                json!({ "currentPassword": old, "newPassword": new }),
            )
            .await
            .ok();
        assert_eq!(arrived(&server, &mut mailbox).await.len(), 1);
    }
    ask(&server, "/auth/password-reset", "alice@example.org").await;
    assert_eq!(mailbox.next().await.subject(), "Set a new password");
}

#[tokio::test]
async fn plus_addresses_of_one_mailbox_count_together() {
    let (server, mut mailbox) = start(&[]).await;
    for number in 0..8 {
        let email = format!("box+{number}@example.org");
        let body =
            json!({ "email": email, "username": format!("user-{number}"), "password": PASSWORD });
        assert_eq!(
            server.post("/auth/register", body).await.status,
            201,
            "each may have an account"
        );
    }
    assert_eq!(arrived(&server, &mut mailbox).await.len(), 5);
    server.person("boxer").await;
    assert_eq!(
        mailbox.next().await.to,
        "boxer@example.org",
        "other mailboxes are not affected"
    );
    let odd = json!({ "email": "+tag@example.org", "username": "tag", "password": PASSWORD });
    assert_eq!(server.post("/auth/register", odd).await.status, 201);
    assert_eq!(mailbox.next().await.to, "+tag@example.org");
}

#[tokio::test]
async fn an_assignment_mail_shows_the_title_on_one_line_and_in_quotes() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, root) = (server.person("alice").await, server.admin("root").await);
    mailbox.next().await;
    let project = alice.project("Apollo").await;
    let title = "Fly\"\n\nYour password\texpires.\u{202e}\u{2028}Set a new one:\r\n\u{1}\nhttps://evil.example/\n-- \nThe team";
    alice
        .task(&project, title, json!({ "assigneeId": root.id }))
        .await;
    let mail = mailbox.next().await;
    let line = "\"Fly' Your password expires. Set a new one: https://evil.example/ -- The team\"";
    assert!(
        mail.content.lines().any(|text| text == line),
        "{}",
        mail.content
    );
    assert!(
        mail.content
            .contains(&format!("<p>{}</p>", line.replace('"', "&quot;"))),
        "{}",
        mail.content
    );
}

#[tokio::test]
async fn an_assignment_is_not_mailed_after_the_recipient_has_unsubscribed_or_moved() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, root, other) = (
        server.person("alice").await,
        server.admin("root").await,
        server.admin("other").await,
    );
    mailbox.next().await;
    let project = alice.project("Apollo").await;
    mailbox.refuse(true);
    for person in [&root, &other] {
        alice
            .task(&project, "Fly", json!({ "assigneeId": person.id }))
            .await;
        mailbox.refused().await;
    }
    root.mutate("updateViewer", json!({ "assignmentEmails": false }))
        .await
        .ok();
    other
        .mutate("deleteViewer", json!({ "password": PASSWORD }))
        .await
        .ok();
    mailbox.refuse(false);
    server.advance(Duration::from_secs(31));
    server.app.db.signal(CommitSignal::Mail);
    assert!(arrived(&server, &mut mailbox).await.is_empty());
    assert_eq!(queued(&server).await, 0);
}
