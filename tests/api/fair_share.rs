//! Fairness: no user and no address can take more than its share of permits and database
//! connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fasttrack::db::Conn;
use fasttrack::http::concurrency_limit::{Permit, WaitPolicy};
use fasttrack::limits::ClientKey;
use futures_util::future::join_all;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::harness::{Frame, PATIENCE, Person, Reply, Server};

const QUERY: &str = "{ rateLimit { cost } }";
/// High enough never to be reached. Rate limits stay enabled because otherwise answers carry no
/// quota.
const MANY: &str = "1000000";
const SETTINGS: [(&str, &str); 8] = [
    ("MAX_OPERATIONS_AT_ONCE", "8"),
    ("DATABASE_CONNECTIONS", "8"),
    ("TRUSTED_PROXIES", "127.0.0.0/8"),
    ("RATE_LIMIT_ENABLED", "true"),
    ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", MANY),
    ("RATE_LIMIT_AUTH_PER_MINUTE", MANY),
    ("RATE_LIMIT_GRAPHQL_PER_MINUTE", MANY),
    ("RATE_LIMIT_COST_PER_MINUTE", MANY),
];
/// A quarter of the permits and of the connections.
const SHARE: usize = 2;

fn owner(server: &Server, person: &Person) -> ClientKey {
    let access = server
        .app
        .credentials
        .verify_access(server.app.clock.now(), person.token());
    ClientKey::User(access.expect("a good token").user_id)
}

/// Acquires all permits of an owner's share.
async fn share(server: &Server, owner: ClientKey) -> Vec<Permit> {
    let acquire = || server.app.concurrency.acquire(owner, WaitPolicy::Request);
    join_all((0..SHARE).map(|_| acquire()))
        .await
        .into_iter()
        .map(|permit| permit.expect("a permit"))
        .collect()
}

fn posted(request: RequestBuilder, accept: &str, address: &str) -> impl Future<Output = Reply> {
    let request = request
        .header("accept", accept)
        .header("x-forwarded-for", address);
    Reply::to(request.json(&json!({ "query": QUERY })))
}

fn is_refused(error: &Value) {
    let extensions = &error["extensions"];
    assert_eq!(
        (&extensions["code"], &extensions["retryAfter"]),
        (&json!("RATE_LIMITED"), &json!(1)),
        "{error}"
    );
}

#[tokio::test]
async fn exhausted_share_refuses_only_its_owner_over_http() {
    let server = Server::with(&SETTINGS).await;
    let (alice, bob, nobody) = (
        server.person("alice").await,
        server.person("bob").await,
        server.nobody(),
    );
    let (taken, other) = ("192.0.2.1", "192.0.2.2");
    let held = (
        share(&server, owner(&server, &alice)).await,
        share(
            &server,
            ClientKey::address(taken.parse().expect("an address")),
        )
        .await,
    );
    for accept in ["application/graphql-response+json", "text/event-stream"] {
        for (person, address) in [(&alice, other), (&nobody, taken)] {
            let refused = posted(person.post("/graphql"), accept, address).await;
            assert_eq!(
                (refused.status.as_u16(), &refused.headers["retry-after"]),
                (429, &"1".parse().unwrap())
            );
            is_refused(&refused.body["errors"][0]);
        }
        for (person, address) in [(&bob, taken), (&nobody, other)] {
            let answered = posted(person.post("/graphql"), accept, address).await;
            assert_eq!(answered.status, 200, "{accept}: {}", answered.body);
        }
    }
    drop(held);
    assert_eq!(
        posted(alice.post("/graphql"), "*/*", other).await.status,
        200
    );
    assert_eq!(server.app.concurrency.owners(), 0);
}

#[tokio::test]
async fn exhausted_share_refuses_only_its_owner_on_a_socket() {
    let server = Server::with(&SETTINGS).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let (mut hers, mut his) = (alice.socket().await, bob.socket().await);
    let held = share(&server, owner(&server, &alice)).await;
    hers.subscribe("1", QUERY, json!({})).await;
    his.subscribe("1", QUERY, json!({})).await;
    assert!(matches!(his.receive().await, Frame::Message(message) if message["type"] == "next"));
    let Frame::Message(refused) = hers.receive().await else {
        panic!("closed")
    };
    assert_eq!(refused["type"], "error");
    is_refused(&refused["payload"][0]);
    drop(held);
    hers.subscribe("1", QUERY, json!({})).await;
    assert!(matches!(hers.receive().await, Frame::Message(message) if message["type"] == "next"));
}

#[tokio::test]
async fn database_connections_are_shared_fairly() {
    let server = Server::with(&SETTINGS).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let permit = share(&server, owner(&server, &alice))
        .await
        .pop()
        .expect("a permit");
    let (release, released) = oneshot::channel::<()>();
    let (hold, held) = oneshot::channel();
    let app = Arc::clone(&server.app);
    server
        .run(async move |_| {
            tokio::spawn(permit.scope(PATIENCE, 0).run(async move {
                let mut conns: Vec<Conn> = Vec::new();
                for _ in 0..SHARE {
                    conns.push(app.db.conn().await.expect("a connection"));
                }
                hold.send(()).expect("the test receives");
                released.await.expect("the release");
                drop(conns);
            }));
        })
        .await;
    held.await.expect("held");
    let count = "{ tasks { totalCount } }";
    let waiting = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.query(count, json!({})).await })
    };
    for _ in 0..10 {
        assert_eq!(bob.query(count, json!({})).await["tasks"]["totalCount"], 0);
    }
    assert!(!waiting.is_finished(), "the owner's next operation waits");
    release.send(()).expect("a connection held until now");
    assert_eq!(waiting.await.expect("no panic")["tasks"]["totalCount"], 0);
}

#[tokio::test]
async fn search_flood_does_not_block_other_users() {
    let server = Server::with(&SETTINGS).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    for number in 0..60 {
        alice
            .task(
                &project,
                &number.to_string(),
                json!({ "description": "a".repeat(10_000) }),
            )
            .await;
    }
    let word = format!("{}b", "a".repeat(199));
    let field = |number: usize| {
        format!("a{number}: tasks(filter: {{ search: \"{word}\" }}) {{ totalCount }} ")
    };
    let flood: String = format!("{{ {} }}", (0..5).map(field).collect::<String>());
    let (stop, started) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(tokio::sync::Semaphore::new(0)),
    );
    let attackers: Vec<_> = (0..16)
        .map(|_| {
            let (alice, flood, stop, started) = (
                alice.clone(),
                flood.clone(),
                Arc::clone(&stop),
                Arc::clone(&started),
            );
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let sent = alice
                        .post("/graphql")
                        .json(&json!({ "query": flood }))
                        .send();
                    started.add_permits(1);
                    drop(sent.await);
                }
            })
        })
        .collect();
    started.acquire_many(16).await.expect("open").forget();
    let asked = "{ tasks { totalCount } projects { nodes { name } } }";
    for _ in 0..20 {
        let answer = Reply::to(bob.post("/graphql").json(&json!({ "query": asked }))).await;
        assert_eq!(
            (
                answer.status.as_u16(),
                &answer.body["data"]["tasks"]["totalCount"]
            ),
            (200, &json!(0)),
            "{}",
            answer.body
        );
        let request = bob.post("/graphql").header("accept", "text/event-stream");
        let answer = request
            .json(&json!({ "query": asked }))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        assert!(!answer.text().await.expect("text").contains("errors"));
    }
    let mut socket = bob.socket().await;
    for number in 0..20 {
        socket
            .subscribe(&number.to_string(), asked, json!({}))
            .await;
        let Frame::Message(answer) = socket.receive().await else {
            panic!("closed")
        };
        assert_eq!(
            answer["payload"]["data"]["tasks"]["totalCount"], 0,
            "{answer}"
        );
        assert!(
            matches!(socket.receive().await, Frame::Message(message) if message["type"] == "complete")
        );
    }
    stop.store(true, Ordering::Relaxed);
    timeout(PATIENCE + Duration::from_secs(10), join_all(attackers))
        .await
        .expect("the flood ends");
}
