//! History keeps one copy of what changed, and still reads as before.

use std::time::Duration;

use fasttrack::db::migrate;
use fasttrack::error::Error;
use fasttrack::events;
use fasttrack::graphql::node;
use fasttrack::store::event;
use serde_json::{Value, json};

use crate::harness::{Person, Server};

const DAY: Duration = Duration::from_secs(86_400);

/// The tables that an update of a task writes in place.
const UPDATED: [&str; 4] = ["tasks", "user_usage", "project_usage", "task_usage"];

const ACTIVITY: &str = "query ($id: ID!) { task(id: $id) { activity(first: 100) { nodes {
    __typename ... on TaskUpdatedEvent { task { title description } changes { field from to } } } } } }";

/// A description of the greatest length: 10,000 characters of four bytes each, in an order that no database compresses.
fn description(seed: u32) -> String {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        char::from_u32(0x20000 + state % 0xA000).expect("an ideograph")
    };
    (0..10_000).map(|_| next()).collect()
}

async fn describe(person: &Person, task: &str, description: &str) {
    person
        .mutate(
            "updateTask",
            json!({ "id": task, "description": description }),
        )
        .await
        .ok();
}

async fn changes(person: &Person, task: &str) -> Vec<(Value, Value)> {
    let found =
        person.query(ACTIVITY, json!({ "id": task })).await["task"]["activity"]["nodes"].clone();
    let events = found.as_array().expect("events").iter();
    let changes = events
        .filter_map(|event| event["changes"].as_array())
        .flatten();
    changes
        .map(|change| (change["from"].clone(), change["to"].clone()))
        .collect()
}

#[tokio::test]
async fn an_update_of_a_long_description_stores_one_copy_at_most() {
    const TOGGLED: u32 = 20;
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "description": description(0) }))
        .await;
    let bytes = async || server.database().stored_bytes(&UPDATED).await;

    let before = bytes().await;
    for number in 1..=TOGGLED {
        describe(&alice, &task, &description(number % 2)).await;
    }
    let toggled = (bytes().await - before) / i64::from(TOGGLED);
    let before = bytes().await;
    for number in 0..10 {
        describe(&alice, &task, &description(100 + number)).await;
    }
    let fresh = (bytes().await - before) / 10;
    println!(
        "bytes an update of a 10,000-character description: toggled {toggled}, another each time {fresh}"
    );
    assert!(
        toggled <= 8_000,
        "two texts are stored once, however often they alternate: {toggled}"
    );
    assert!(
        fresh <= 46_000,
        "40,000 bytes once, and the pages around them: {fresh}"
    );

    let seeds = (0..=TOGGLED).map(|number| number % 2).chain(100..110);
    let texts: Vec<Value> = seeds.map(|seed| description(seed).into()).collect();
    let expected: Vec<_> = texts
        .windows(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect();
    let found = changes(&alice, &task).await;
    assert_eq!(found.len(), expected.len());
    assert!(found == expected, "every text before and after");
}

#[tokio::test]
async fn a_small_update_stores_less_than_900_bytes() {
    const UPDATES: u32 = 400;
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let mut tasks = Vec::new();
    for number in 0..10 {
        let long = json!({ "description": format!("{number}").repeat(5_000) });
        tasks.push(alice.task(&project, &format!("Task {number}"), long).await);
    }
    let bytes = async || server.database().stored_bytes(&UPDATED).await;
    let before = bytes().await;
    let update =
        "mutation ($input: UpdateTaskInput!) { updateTask(input: $input) { userErrors { code } } }";
    for number in 0..UPDATES {
        let task = &tasks[number as usize % tasks.len()];
        let status = if number / 10 % 2 == 0 {
            "IN_PROGRESS"
        } else {
            "TODO"
        };
        let input = json!({ "id": task, "status": status });
        assert_eq!(
            alice.query(update, json!({ "input": input })).await["updateTask"]["userErrors"],
            json!([])
        );
    }
    let each = (bytes().await - before) / i64::from(UPDATES);
    println!("bytes a change of status of a task with a description of 5 kB: {each}");
    assert!(each <= 900, "{each}");
}

const EVENT: &str = "{ __typename
    ... on TaskCreatedEvent { task { title description } }
    ... on TaskUpdatedEvent { task { title description } changes { field from to } }
    ... on TaskDeletedEvent { task { title description } }
    ... on CommentAddedEvent { task { title } comment { body } }
    ... on CommentDeletedEvent { task { title } last: comment { body } }
    ... on ProjectUpdatedEvent { project { name description } changes { field from to } }
    ... on ProjectDeletedEvent { project { name description } }
}";

async fn log(person: &Person) -> Value {
    person
        .query(
            &format!("{{ events(first: 100) {{ nodes {EVENT} }} }}"),
            json!({}),
        )
        .await["events"]["nodes"]
        .clone()
}

/// Moves the end of the feed up to what is kept, as the job does it.
async fn expire(server: &Server) {
    let expired = server.run(async move |app| {
        let done = events::settled_end(&mut app.db.conn().await?).await?;
        while event::expire(&app.db, app.config.event_retention, app.clock.now(), done).await? {}
        Ok::<_, Error>(())
    });
    expired.await.expect("a feed that expires");
}

#[tokio::test]
async fn what_is_gone_shows_its_last_picture_with_every_text() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let start = alice.now().await;
    let project = alice.project("Apollo").await;
    let (first, last, body) = ("ä".repeat(5_000), "ö".repeat(5_000), "ü".repeat(4_000));
    let live = format!("subscription ($after: String) {{ events(after: $after) {EVENT} }}");
    let mut told = alice.subscribe(&live, json!({})).await;
    let task = alice
        .task(&project, "Fly", json!({ "description": first }))
        .await;
    let comment = alice.comment(&task, &body).await;
    alice
        .mutate("deleteComment", json!({ "id": comment }))
        .await
        .ok();
    alice
        .mutate(
            "updateTask",
            json!({ "id": task, "title": "Land", "description": last }),
        )
        .await
        .ok();
    for kind in [
        "TaskCreatedEvent",
        "CommentAddedEvent",
        "CommentDeletedEvent",
        "TaskUpdatedEvent",
    ] {
        assert_eq!(told.next().await["events"]["__typename"], kind);
    }
    alice.mutate("deleteTask", json!({ "id": task })).await.ok();
    alice
        .mutate(
            "updateProject",
            json!({ "id": project, "description": first }),
        )
        .await
        .ok();
    alice
        .mutate(
            "updateProject",
            json!({ "id": project, "description": last }),
        )
        .await
        .ok();
    alice
        .mutate("deleteProject", json!({ "id": project }))
        .await
        .ok();

    let picture = json!({ "title": "Land", "description": last });
    let project = |description: &str| json!({ "name": "Apollo", "description": description });
    let change = |from: Value, to: &str| json!({ "field": "description", "from": from, "to": to });
    let expected = [
        json!({ "__typename": "TaskCreatedEvent", "task": picture }),
        json!({ "__typename": "CommentAddedEvent", "task": { "title": "Land" }, "comment": null }),
        json!({ "__typename": "CommentDeletedEvent", "task": { "title": "Land" }, "last": { "body": "" } }),
        json!({ "__typename": "TaskUpdatedEvent", "task": picture, "changes": [
            { "field": "title", "from": "Fly", "to": "Land" }, change(json!(first), &last) ] }),
        json!({ "__typename": "TaskDeletedEvent", "task": picture }),
        json!({ "__typename": "ProjectUpdatedEvent", "project": project(&first), "changes": [
            change(Value::Null, &first) ] }),
        json!({ "__typename": "ProjectUpdatedEvent", "project": project(&last), "changes": [
            change(json!(first), &last) ] }),
        json!({ "__typename": "ProjectDeletedEvent", "project": project(&last) }),
    ];
    assert_eq!(log(&alice).await, json!(expected));
    for event in &expected[4..] {
        assert_eq!(told.next().await["events"], *event, "live");
    }
    let mut replayed = alice.subscribe(&live, json!({ "after": start })).await;
    for event in &expected {
        assert_eq!(replayed.next().await["events"], *event, "replayed");
    }
}

#[tokio::test]
async fn many_labels_are_kept_once_as_well() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let mut labels = Vec::new();
    for number in 0..10 {
        labels.push(
            alice
                .label(&project, &format!("{number}{}", "ß".repeat(49)))
                .await,
        );
    }
    let task = alice
        .task(&project, "Fly", json!({ "labelIds": labels[1..] }))
        .await;
    let names = |numbers: std::ops::Range<usize>| -> Value {
        numbers
            .map(|number| format!("{number}{}", "ß".repeat(49)))
            .collect::<Vec<_>>()
            .join(", ")
            .into()
    };
    for _ in 0..2 {
        alice
            .mutate(
                "updateTask",
                json!({ "id": task, "addLabelIds": [labels[0]] }),
            )
            .await
            .ok();
        alice
            .mutate(
                "updateTask",
                json!({ "id": task, "removeLabelIds": [labels[0]] }),
            )
            .await
            .ok();
    }
    let (few, all) = (names(1..10), names(0..10));
    let expected = [(few.clone(), all.clone()), (all, few)];
    assert_eq!(
        changes(&alice, &task).await,
        expected.iter().cycle().take(4).cloned().collect::<Vec<_>>()
    );
    assert_eq!(
        server
            .database()
            .number("SELECT count(*) FROM history_texts")
            .await,
        2
    );
}

#[tokio::test]
async fn texts_leave_with_the_last_event_that_refers_to_them() {
    let server = Server::with(&[("EVENT_RETENTION_DAYS", "2")]).await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let text = |name: &str| format!("{name} {}", "x".repeat(1_000));
    let (kept, gone) = (text("kept"), text("gone"));
    let stays = alice
        .task(&project, "Stays", json!({ "description": kept }))
        .await;
    let goes = alice
        .task(&project, "Goes", json!({ "description": gone }))
        .await;
    for description in [text("first"), text("second"), text("first")] {
        describe(&alice, &stays, &description).await;
        describe(&alice, &goes, &description).await;
        alice
            .mutate(
                "updateProject",
                json!({ "id": project, "description": description }),
            )
            .await
            .ok();
    }
    alice.mutate("deleteTask", json!({ "id": goes })).await.ok();
    let number = async || {
        server
            .database()
            .number("SELECT count(*) FROM history_texts")
            .await
    };
    // Of the task that stays `first` is both kept and its own; of the project nothing is kept from before it had any.
    assert_eq!(number().await, 3 + 3 + 2);
    expire(&server).await;
    assert_eq!(number().await, 3 + 3 + 2, "nothing is too old yet");

    server.advance(3 * DAY);
    let alice = server.login("alice").await;
    let (first, second) = (json!(text("first")), json!(text("second")));
    alice
        .mutate(
            "updateProject",
            json!({ "id": project, "description": "short" }),
        )
        .await
        .ok();
    expire(&server).await;
    assert_eq!(
        number().await,
        3 + 1,
        "the history of a task, and what the newest event of the project was changed from"
    );
    let found = changes(&alice, &stays).await;
    let expected = [
        (json!(kept), first.clone()),
        (first.clone(), second.clone()),
        (second, first),
    ];
    assert_eq!(found, expected);
    assert!(!server.dump().await.contains("gone xxx"));

    alice
        .mutate("deleteProject", json!({ "id": project }))
        .await
        .ok();
    server.advance(3 * DAY);
    expire(&server).await;
    assert_eq!(number().await, 0);
}

#[tokio::test]
async fn events_of_older_versions_still_read() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Now", json!({ "description": "now" }))
        .await;
    describe(&alice, &task, "now, really").await;
    let id = node::decode(&task.clone().into()).expect("an id").1;
    let old = json!({
        "task": { "id": id, "project_id": id, "owner_id": id, "creator_id": null, "assignee_id": null, "title": "Then",
            "description": "then", "status": "Todo", "priority": "Medium", "due_at": null, "completed_at": null,
            "version": 1, "created_at": "2030-01-01T12:00:00.000000Z", "updated_at": "2030-01-01T12:00:00.000000Z" },
        "changes": [{ "field": "description", "from": null, "to": "x".repeat(9_000) }],
    });
    server
        .database()
        .execute(&format!("UPDATE events SET data = '{old}' WHERE kind = 2"))
        .await;
    let to = json!("x".repeat(9_000));
    assert_eq!(changes(&alice, &task).await, [(Value::Null, to.clone())]);
    assert_eq!(
        log(&alice).await[1]["task"],
        json!({ "title": "Now", "description": "now, really" }),
        "as it is"
    );
    alice.mutate("deleteTask", json!({ "id": task })).await.ok();
    let told = log(&alice).await;
    assert_eq!(
        told[1]["task"],
        json!({ "title": "Then", "description": "then" }),
        "as it was"
    );
    assert_eq!(told[1]["changes"][0]["to"], to);
    assert_eq!(
        told[0]["task"],
        json!({ "title": "Now", "description": "now, really" })
    );
}

#[tokio::test]
async fn a_migration_down_puts_every_text_back_into_its_event() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let text = |name: &str| format!("{name} \"quoted\" \\ \n{}", "ü".repeat(1_000));
    let (stays, goes) = (
        alice.task(&project, "Stays", json!({})).await,
        alice.task(&project, "Goes", json!({})).await,
    );
    let comment = alice.comment(&goes, &text("comment")).await;
    alice
        .mutate("deleteComment", json!({ "id": comment }))
        .await
        .ok();
    for description in [text("first"), text("second"), text("third")] {
        describe(&alice, &stays, &description).await;
        describe(&alice, &goes, &description).await;
        alice
            .mutate(
                "updateProject",
                json!({ "id": project, "description": description }),
            )
            .await
            .ok();
    }
    alice.mutate("deleteTask", json!({ "id": goes })).await.ok();
    let before = (log(&alice).await, changes(&alice, &stays).await);
    let database = server.stop().await;

    let location = database.location();
    let mut steps = 0;
    while database.rows().await.contains_key("history_texts") {
        migrate::down(&location)
            .await
            .expect("a migration that goes down with data");
        steps += 1;
    }
    let rows = database.rows().await;
    let mut data: Vec<(i64, i64, Value)> = rows["events"]
        .iter()
        .map(|row| {
            let data = serde_json::from_str(row["data"].as_str().expect("text")).expect("JSON");
            (
                row["seq"].as_i64().expect("a number"),
                row["kind"].as_i64().expect("a number"),
                data,
            )
        })
        .collect();
    data.sort_by_key(|(seq, ..)| *seq);
    let of_kind = |wanted: i64| {
        data.iter()
            .filter(move |(_, kind, _)| *kind == wanted)
            .map(|(.., data)| data)
    };
    let updates: Vec<_> = of_kind(2)
        .map(|data| (&data["changes"][0]["from"], &data["changes"][0]["to"]))
        .collect();
    let (first, second, third) = (
        json!(text("first")),
        json!(text("second")),
        json!(text("third")),
    );
    let expected = [(&Value::Null, &first), (&first, &second), (&second, &third)];
    assert_eq!(
        updates,
        expected
            .iter()
            .flat_map(|pair| [*pair, *pair])
            .collect::<Vec<_>>()
    );
    let pictures: Vec<_> = of_kind(10)
        .map(|data| &data["project"]["description"])
        .collect();
    assert_eq!(pictures, [&first, &second, &third]);
    let deleted: Vec<_> = of_kind(9)
        .map(|data| (&data["comment"]["body"], &data["task"]["description"]))
        .collect();
    assert_eq!(deleted, [(&json!(""), &third)]);
    let created: Vec<_> = of_kind(1).map(|data| &data["task"]["title"]).collect();
    assert_eq!(
        created,
        [&Value::Null, &json!("Goes")],
        "of what is gone, every event has a picture"
    );

    assert_eq!(
        migrate::up(&location)
            .await
            .expect("migrations that go up with data"),
        steps
    );
    let server = Server::on(database, &[]).await;
    let alice = server.login("alice").await;
    assert_eq!((log(&alice).await, changes(&alice, &stays).await), before);
}
