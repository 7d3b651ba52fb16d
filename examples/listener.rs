//! Prints every event of a fasttrack server exactly once, also across restarts of the server and
//! network failures: `cargo run --example listener -- http://127.0.0.1:8000 ada Correct-Horse-7`.

use std::{collections::HashSet, env, error::Error, time::Duration};

use futures_util::{SinkExt, StreamExt};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Message};

const EVENTS: &str = "subscription ($after: String) {
  events(after: $after) { __typename id cursor occurredAt actor { username } }
}";

#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    cursor: Option<String>,
}

fn subscribe(query: &str, after: &Option<String>) -> Value {
    json!({ "type": "subscribe", "id": "1", "payload": { "query": query, "variables": { "after": after } } })
}

async fn listen(api: &str, who: &Value, seen: &mut Seen) -> Result<(), Box<dyn Error>> {
    let login = reqwest::Client::new()
        .post(format!("{api}/auth/login"))
        .json(who)
        .send()
        .await?;
    let tokens: Value = login.error_for_status()?.json().await?;
    let authorization = format!(
        "Bearer {}",
        tokens["access_token"].as_str().unwrap_or_default()
    );
    let url = format!("{}/graphql", api.replacen("http", "ws", 1)).parse()?;
    let (mut socket, _) =
        connect_async(ClientRequestBuilder::new(url).with_sub_protocol("graphql-transport-ws"))
            .await?;
    let mut say =
        json!({ "type": "connection_init", "payload": { "Authorization": authorization } });
    loop {
        socket.send(Message::text(say.to_string())).await?;
        say = loop {
            // The server sends a ping at least every 30 seconds.
            let heard = timeout(Duration::from_secs(75), socket.next()).await?;
            let Message::Text(text) = heard.ok_or("the socket was closed")?? else {
                continue;
            };
            let heard: Value = serde_json::from_str(&text)?;
            match heard["type"].as_str() {
                Some("next") => {
                    let (event, now) = (
                        &heard["payload"]["data"]["events"],
                        &heard["payload"]["extensions"]["sync"],
                    );
                    let cursor = event["cursor"].as_str().or(now["cursor"].as_str());
                    seen.cursor = Some(cursor.ok_or(text.as_str())?.to_owned());
                    // Delivery is at least once, so ignore repeated ids.
                    if event.is_object() && seen.ids.insert(event["id"].to_string()) {
                        println!("{event}");
                    }
                }
                // Every response contains the current position of the event log.
                Some("connection_ack") if seen.cursor.is_none() => {
                    break subscribe("{ __typename }", &seen.cursor);
                }
                Some("connection_ack" | "complete") => {
                    eprintln!("listening");
                    break subscribe(EVENTS, &seen.cursor);
                }
                Some("ping") => break json!({ "type": "pong" }),
                _ => return Err(text.as_str().into()),
            }
        };
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [api, username, password]: [String; 3] = env::args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| "listener <url> <username> <password>")?;
    let (who, mut seen) = (
        json!({ "username": username, "password": password }),
        Seen::default(),
    );
    loop {
        let Err(error) = listen(&api, &who, &mut seen).await else {
            continue;
        };
        if error
            .downcast_ref::<reqwest::Error>()
            .and_then(reqwest::Error::status)
            == Some(StatusCode::UNAUTHORIZED)
        {
            return Err("wrong username or password".into());
        }
        eprintln!("retrying in 2 s: {error}");
        sleep(Duration::from_secs(2)).await;
    }
}
