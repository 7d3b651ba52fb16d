//! A user of the server, and the answers they receive.

use std::net::SocketAddr;
use std::sync::Arc;

use fasttrack::{App, events};
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::socket::{Socket, Subscription};
use super::{PATIENCE, contract, text};

/// The selection that [`Person::mutate`] makes on each payload.
const SELECTIONS: [(&str, &str); 18] = [
    ("createProject", PROJECT),
    ("updateProject", PROJECT),
    ("deleteProject", "deletedProjectId"),
    ("createLabel", LABEL),
    ("updateLabel", LABEL),
    ("deleteLabel", "deletedLabelId"),
    ("createTask", TASK),
    ("updateTask", TASK),
    ("deleteTask", "deletedTaskId"),
    ("addComment", COMMENT),
    ("updateComment", COMMENT),
    ("deleteComment", "deletedCommentId"),
    (
        "updateViewer",
        "viewer { id username displayName email emailVerified }",
    ),
    ("updateUser", "user { id username role isActive }"),
    ("changePassword", "viewer { id }"),
    ("revokeSession", "revokedSessionId"),
    ("deleteViewer", "deletedUserId"),
    ("markNotificationsRead", "readCount"),
];
const PROJECT: &str = "project { id name description status version createdAt updatedAt }";
const LABEL: &str = "label { id name color }";
const TASK: &str = "task { id title description status priority dueAt isOverdue completedAt version createdAt updatedAt
    assignee { id } labels { id name } }";
const COMMENT: &str = "comment { id body isEdited createdAt updatedAt author { id } }";

/// A client: a signed-in user, or anonymous.
#[derive(Clone)]
pub(crate) struct Person {
    pub id: String,
    pub username: String,
    pub access_token: Option<String>,
    pub refresh_token: String,
    pub(super) http: reqwest::Client,
    pub(super) app: Arc<App>,
    pub(super) threads: Handle,
    pub(super) address: SocketAddr,
}

impl Person {
    /// The access token. Panics for an anonymous client.
    pub(crate) fn token(&self) -> &str {
        self.access_token.as_deref().expect("signed in")
    }

    /// The same user with the tokens from a login or refresh.
    pub(crate) fn with_tokens(&self, tokens: &Value) -> Self {
        Self {
            access_token: Some(text(&tokens["access_token"])),
            refresh_token: text(&tokens["refresh_token"]),
            ..self.clone()
        }
    }

    /// Sends an operation and returns its answer.
    pub(crate) async fn ask(&self, document: &str, variables: Value) -> Answer {
        let request = self
            .post("/graphql")
            .json(&json!({ "query": document, "variables": variables }));
        Answer(Reply::to(request).await.body)
    }

    /// Sends an operation that must succeed and returns its data.
    pub(crate) async fn query(&self, document: &str, variables: Value) -> Value {
        let answer = self.ask(document, variables).await;
        assert!(
            answer.0.get("errors").is_none(),
            "{}: {document} returned {}",
            self.username,
            answer.0
        );
        answer.0["data"].clone()
    }

    /// Calls a mutation and waits until its events are visible in the log.
    pub(crate) async fn mutate(&self, name: &str, input: Value) -> Mutated {
        let done = self.send(name, input).await;
        self.settled().await;
        done
    }

    /// Calls a mutation.
    pub(crate) async fn send(&self, name: &str, input: Value) -> Mutated {
        let selection = SELECTIONS.iter().find(|(known, _)| *known == name);
        let (_, selection) =
            selection.unwrap_or_else(|| panic!("{name} has no selection in the harness"));
        let kind = format!("{}{}Input", name[..1].to_uppercase(), &name[1..]);
        let document = format!(
            "mutation ($input: {kind}!) {{ {name}(input: $input) {{ {selection} userErrors {{ field code }} }} }}"
        );
        let answer = self.ask(&document, json!({ "input": input })).await;
        let object = selection.split([' ', '{']).next().unwrap_or_default();
        Mutated {
            object: object.to_owned(),
            payload: answer.0["data"][name].clone(),
            answer,
        }
    }

    /// Opens a socket and subscribes. Sets the document's `$after`, if declared, to the current end
    /// of the log, so that no later event is missed.
    pub(crate) async fn subscribe(&self, document: &str, mut variables: Value) -> Subscription {
        if document.contains("$after") && variables.get("after").is_none() {
            variables["after"] = self.now().await.into();
        }
        let mut socket = self.socket().await;
        socket.subscribe("1", document, variables).await;
        Subscription::new(socket, "1")
    }

    /// Opens an authenticated socket without subscriptions.
    pub(crate) async fn socket(&self) -> Socket {
        let mut socket = Socket::open(self.address).await;
        socket.init(self.access_token.as_deref()).await;
        socket
    }

    /// The cursor of the end of the event log.
    pub(crate) async fn now(&self) -> String {
        self.app.cursors.encode(self.settled().await)
    }

    /// Waits until no write is pending and returns the end of the log. On PostgreSQL an event
    /// becomes visible only after all older transactions have ended, including those of other
    /// databases on the server.
    async fn settled(&self) -> events::LogPosition {
        let app = Arc::clone(&self.app);
        let settled = async move {
            loop {
                // Acquire a connection each time, so that the transaction we wait for can get one
                // too.
                let Ok(mut conn) = app.db.conn().await else {
                    continue;
                };
                let end = events::settled_end(&mut conn)
                    .await
                    .expect("the end of the log");
                if let (_, false) = events::settled_after(&mut conn, end, 1)
                    .await
                    .expect("the events after it")
                {
                    return end;
                }
            }
        };
        timeout(PATIENCE, self.threads.spawn(settled))
            .await
            .expect("a log that settles")
            .expect("no panic")
    }

    /// Builds a POST with this user's token.
    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        let request = self.http.post(format!("http://{}{path}", self.address));
        match &self.access_token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Creates a project and returns its id.
    pub(crate) async fn project(&self, name: &str) -> String {
        text(
            &self
                .mutate("createProject", json!({ "name": name }))
                .await
                .ok()["id"],
        )
    }

    /// Creates a task and returns its id; `more` is merged into the input.
    pub(crate) async fn task(&self, project: &str, title: &str, more: Value) -> String {
        let mut input = json!({ "projectId": project, "title": title });
        for (field, value) in more.as_object().expect("an object") {
            input[field] = value.clone();
        }
        text(&self.mutate("createTask", input).await.ok()["id"])
    }

    /// Creates a label and returns its id.
    pub(crate) async fn label(&self, project: &str, name: &str) -> String {
        text(
            &self
                .mutate("createLabel", json!({ "projectId": project, "name": name }))
                .await
                .ok()["id"],
        )
    }

    /// Adds a comment and returns its id.
    pub(crate) async fn comment(&self, task: &str, body: &str) -> String {
        text(
            &self
                .mutate("addComment", json!({ "taskId": task, "body": body }))
                .await
                .ok()["id"],
        )
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// JSON if it parses, otherwise a string; null if empty.
    pub body: Value,
}

impl Reply {
    /// Sends the request and checks the answer against the OpenAPI document.
    pub(crate) async fn to(request: RequestBuilder) -> Self {
        let (client, request) = request.build_split();
        let request = request.expect("a request");
        let response = client
            .execute(request.try_clone().expect("a body in one piece"))
            .await
            .expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.text().await.expect("a body");
        let body = serde_json::from_str(&body).unwrap_or_else(|_| {
            if body.is_empty() {
                Value::Null
            } else {
                body.into()
            }
        });
        let reply = Self {
            status,
            headers,
            body,
        };
        contract::check(&request, &reply);
        reply
    }
}

/// The answer to a GraphQL operation.
#[derive(Debug)]
pub(crate) struct Answer(pub Value);

impl Answer {
    /// The codes of all errors, in order.
    pub(crate) fn codes(&self) -> Vec<&str> {
        let errors = self.0["errors"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        errors
            .iter()
            .map(|error| {
                error["extensions"]["code"]
                    .as_str()
                    .unwrap_or("an error without a code")
            })
            .collect()
    }

    /// The code of the only error.
    pub(crate) fn code(&self) -> &str {
        match self.codes()[..] {
            [code] => code,
            _ => panic!("not one error: {}", self.0),
        }
    }

    /// The data, whether or not there are errors.
    pub(crate) fn data(&self) -> &Value {
        &self.0["data"]
    }
}

/// The result of a mutation.
#[derive(Debug)]
pub(crate) struct Mutated {
    object: String,
    payload: Value,
    answer: Answer,
}

impl Mutated {
    /// The object or deleted id of a mutation, which must have succeeded.
    pub(crate) fn ok(self) -> Value {
        let object = &self.payload[&self.object];
        assert!(
            self.answer.codes().is_empty() && self.payload["userErrors"] == json!([]),
            "{}",
            self.answer.0
        );
        object.clone()
    }

    /// The user errors of a refused mutation, each as `field: CODE`.
    pub(crate) fn faults(self) -> Vec<String> {
        assert!(
            self.answer.codes().is_empty() && self.payload[&self.object].is_null(),
            "{}",
            self.answer.0
        );
        let faults = self.payload["userErrors"]
            .as_array()
            .expect("user errors")
            .iter();
        faults
            .map(|fault| format!("{}: {}", text(&fault["field"][1]), text(&fault["code"])))
            .collect()
    }

    /// The code of the request error that refused the mutation.
    pub(crate) fn code(&self) -> &str {
        self.answer.code()
    }

    /// The outcome as one word: `ok`, a request error's code, or the user errors.
    pub(crate) fn outcome(self) -> String {
        if !self.answer.codes().is_empty() {
            self.answer.code().to_owned()
        } else if self.payload["userErrors"] == json!([]) {
            "ok".to_owned()
        } else {
            self.faults().join(", ")
        }
    }
}
