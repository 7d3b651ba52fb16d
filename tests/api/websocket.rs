//! graphql-transport-ws, frame by frame. The reference client drives it in `tests/clients/sockets`.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::harness::{PATIENCE, Person, Server};

/// A socket on which nothing is hidden.
struct Raw(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Raw {
    async fn open(server: &Server) -> Self {
        let mut request = format!("ws://{}/graphql", server.address).into_client_request().expect("a request");
        request.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse().expect("a header"));
        Self(connect_async(request).await.expect("a socket").0)
    }

    async fn greeted(server: &Server, person: &Person) -> Self {
        let mut raw = Self::open(server).await;
        let payload = json!({ "Authorization": format!("Bearer {}", person.token()) });
        raw.send(json!({ "type": "connection_init", "payload": payload })).await;
        assert_eq!(raw.receive().await, Ok(json!({ "type": "connection_ack" })));
        raw
    }

    async fn send(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.expect("an open socket");
    }

    async fn subscribe(&mut self, id: &str, query: &str) {
        self.send(json!({ "type": "subscribe", "id": id, "payload": { "query": query } })).await;
    }

    /// The next message, or the code of the end.
    async fn receive(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("a frame in time") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("JSON")),
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(1005, |frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    async fn closed(&mut self) -> u16 {
        loop {
            if let Err(code) = self.receive().await {
                return code;
            }
        }
    }
}

#[tokio::test]
async fn each_breach_of_the_protocol_has_its_code() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let operation = json!({ "type": "subscribe", "id": "1", "payload": { "query": "subscription { events { id } }" } });
    for (first, code) in [
        (json!({ "type": "nonsense" }), 4400),
        (json!({ "type": "subscribe", "id": "1", "payload": 7 }), 4400),
        (operation.clone(), 4401),
        (json!({ "type": "connection_init" }), 4403),
        (json!({ "type": "connection_init", "payload": { "Authorization": "Bearer x" } }), 4403),
    ] {
        let mut raw = Raw::open(&server).await;
        raw.send(first.clone()).await;
        assert_eq!(raw.closed().await, code, "{first}");
    }
    for (again, code) in [(operation.clone(), 4409), (json!({ "type": "connection_init" }), 4429)] {
        let mut raw = Raw::greeted(&server, &alice).await;
        raw.send(operation.clone()).await;
        raw.send(again.clone()).await;
        assert_eq!(raw.closed().await, code, "{again}");
    }
}

#[tokio::test]
async fn a_silent_socket_is_closed_before_and_after_the_greeting() {
    let server = Server::with(&[("WS_INIT_SECONDS", "2"), ("WS_PING_SECONDS", "2")]).await;
    let alice = server.person("alice").await;
    assert_eq!(Raw::open(&server).await.closed().await, 4408);
    let mut raw = Raw::greeted(&server, &alice).await;
    for _ in 0..2 {
        assert_eq!(raw.receive().await, Ok(json!({ "type": "ping" })));
        raw.send(json!({ "type": "pong" })).await;
    }
    assert_eq!(raw.closed().await, 4408);
}

#[tokio::test]
async fn a_socket_ends_with_its_session_and_a_change_of_its_user() {
    let server = Server::start().await;
    let (alice, root) = (server.person("alice").await, server.admin("root").await);
    let mut raw = Raw::greeted(&server, &alice).await;
    let mut other = Raw::greeted(&server, &server.login("alice").await).await;
    raw.subscribe("1", "subscription { events { id } }").await;
    alice.post("/auth/logout").send().await.expect("an answer");
    assert_eq!(raw.closed().await, 4403);
    // Another session of the same user goes on.
    other.subscribe("1", "{ __typename }").await;
    assert_eq!(other.receive().await.expect("an answer")["type"], "next");
    root.mutate("updateUser", json!({ "id": alice.id, "role": "ADMIN" })).await.ok();
    assert_eq!(other.closed().await, 4403);
}

#[tokio::test]
async fn a_socket_ends_with_a_session_that_one_of_its_streams_was_opened_in() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let fresh = server.login("alice").await;
    let mut raw = Raw::greeted(&server, &alice).await;
    raw.subscribe("1", "subscription { events { id } }").await;
    let payload = json!({ "Authorization": format!("Bearer {}", fresh.token()) });
    raw.send(json!({ "type": "ping", "payload": payload })).await;
    assert_eq!(raw.receive().await, Ok(json!({ "type": "pong" })));
    alice.post("/auth/logout").send().await.expect("an answer");
    assert_eq!(raw.receive().await, Err(4403));
}

#[tokio::test]
async fn nothing_is_done_for_a_session_whose_end_was_not_heard_of_yet() {
    // Nothing is told of the log here, as on PostgreSQL while an older transaction is open.
    let server = Server::without_jobs().await;
    let root = server.admin("root").await;
    let (ended, changed) = (server.admin("alice").await, server.admin("bob").await);
    let (mut of_ended, mut of_changed) = (Raw::greeted(&server, &ended).await, Raw::greeted(&server, &changed).await);
    for raw in [&mut of_ended, &mut of_changed] {
        raw.subscribe("1", "{ users { totalCount } }").await;
        assert_eq!(raw.receive().await.expect("an answer")["payload"]["data"]["users"]["totalCount"], 3);
        assert_eq!(raw.receive().await, Ok(json!({ "type": "complete", "id": "1" })));
    }
    ended.post("/auth/logout").send().await.expect("an answer");
    of_ended.subscribe("2", "mutation { createProject(input: { name: \"x\" }) { project { id } } }").await;
    assert_eq!(of_ended.receive().await, Err(4403));
    assert!(!server.dump().await.contains("projects: "), "nothing was written");
    root.mutate("updateUser", json!({ "id": changed.id, "role": "USER" })).await.ok();
    of_changed.subscribe("2", "{ users { totalCount } }").await;
    assert_eq!(of_changed.receive().await, Err(4403));
}

#[tokio::test]
async fn a_fresh_token_prolongs_a_socket() {
    let server = Server::with(&[("ACCESS_TOKEN_EXPIRE_MINUTES", "1")]).await;
    let alice = server.person("alice").await;
    // Fifty-two seconds on, the token is good for eight more.
    server.advance(Duration::from_secs(52));
    let (mut prolonged, mut forgotten) = (Raw::greeted(&server, &alice).await, Raw::greeted(&server, &alice).await);
    let fresh = server.login("alice").await;
    let payload = json!({ "Authorization": format!("Bearer {}", fresh.token()) });
    prolonged.send(json!({ "type": "ping", "payload": payload })).await;
    assert_eq!(prolonged.receive().await, Ok(json!({ "type": "pong" })));
    assert_eq!(forgotten.closed().await, 4403);
    prolonged.subscribe("1", "{ __typename }").await;
    assert_eq!(prolonged.receive().await.expect("an answer")["type"], "next");
}

#[tokio::test]
async fn a_socket_says_that_the_server_restarts() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let mut raw = Raw::greeted(&server, &alice).await;
    raw.subscribe("1", "subscription { events { id } }").await;
    let stopped = std::thread::spawn(move || drop(server));
    assert_eq!(raw.closed().await, 1012);
    stopped.join().expect("an end");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let server = Server::with(&[("WS_WRITE_SECONDS", "1")]).await;
    let alice = server.person("alice").await;
    let mut raw = Raw::greeted(&server, &alice).await;
    let fields = "fields { name description args { name description } }";
    let query = format!("{{ __schema {{ types {{ name description {fields} }} }} }}");
    let flood = async {
        for number in 0.. {
            let payload = json!({ "query": query });
            let message = json!({ "type": "subscribe", "id": number.to_string(), "payload": payload });
            if raw.0.send(Message::text(message.to_string())).await.is_err() {
                break;
            }
        }
    };
    timeout(PATIENCE, flood).await.expect("dropped");
}

#[tokio::test]
async fn mutations_are_refused_where_they_are_not_wanted() {
    let server = Server::with(&[("WS_MUTATIONS", "false")]).await;
    let alice = server.person("alice").await;
    let mut raw = Raw::greeted(&server, &alice).await;
    raw.subscribe("1", "mutation { createProject(input: { name: \"x\" }) { project { id } } }").await;
    let refused = raw.receive().await.expect("a message");
    assert_eq!(
        (&refused["type"], &refused["payload"][0]["extensions"]["code"]),
        (&json!("error"), &json!("FORBIDDEN"))
    );
}

#[tokio::test]
async fn a_page_of_another_site_opens_no_socket() {
    let server = Server::with(&[("CORS_ORIGINS", "https://app.example.org, capacitor://localhost")]).await;
    let (page, app) = (("https://app.example.org", 101), ("capacitor://localhost", 101));
    for (origin, status) in [("https://evil.example", 403), ("null", 403), ("capacitor://evil", 403), page, app] {
        let request = server.request(Method::GET, "/graphql").header("origin", origin);
        let request = request.header("connection", "upgrade").header("upgrade", "websocket");
        let request =
            request.header("sec-websocket-version", "13").header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
        let answer = request.header("sec-websocket-protocol", "graphql-transport-ws").send().await;
        assert_eq!(answer.expect("an answer").status(), status, "{origin}");
    }
}
