//! Authorization under concurrency: writes that race with changes of roles, sessions and assignees.
//!
//! On PostgreSQL the change has written its rows and pauses before its commit. The write starts
//! then, waits for the row locks, and is decided by the committed state. SQLite has a single
//! writer, so the write simply follows the change.

use std::pin::pin;

use futures_util::future::{Either, join_all, select};
use serde_json::{Value, json};

use crate::harness::{Mutated, OpenTransaction, PASSWORD, Person, Server, is_postgres, text};

const NO: &str = "UNAUTHENTICATED";

/// The people of a scenario: `owner` has a project with a task assigned to `assignee`, who
/// commented on it.
struct Scene {
    server: Server,
    root: Person,
    admin: Person,
    owner: Person,
    assignee: Person,
    next: Person,
}

/// Ids of the objects in a scenario.
struct Ids {
    project: String,
    task: String,
    label: String,
    comment: String,
}

impl Scene {
    async fn new() -> Self {
        let server = Server::start().await;
        let (root, admin) = (server.admin("root").await, server.admin("admin").await);
        let (owner, assignee) = (
            server.person("owner").await,
            server.person("assignee").await,
        );
        let next = server.person("next").await;
        if is_postgres() {
            // Transactions that append to the event log wait for as long as the test holds the
            // advisory lock.
            let gate = "CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS
                $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$;
                CREATE TRIGGER gate BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION wait_at_gate()";
            server.database().execute(gate).await;
        }
        Self {
            server,
            root,
            admin,
            owner,
            assignee,
            next,
        }
    }

    async fn ids(&self) -> Ids {
        let project = self.owner.project("Apollo").await;
        let task = self
            .owner
            .task(&project, "Fly", json!({ "assigneeId": self.assignee.id }))
            .await;
        let label = self.owner.label(&project, "red").await;
        let comment = self.assignee.comment(&task, "Soon").await;
        Ids {
            project,
            task,
            label,
            comment,
        }
    }

    /// Runs `change` up to its events, then starts `write`. Lets both continue once `write` waits
    /// for a lock or finishes.
    async fn beside<A, B>(
        &self,
        change: impl Future<Output = A>,
        write: impl Future<Output = B>,
    ) -> (A, B) {
        if !is_postgres() {
            return (change.await, write.await);
        }
        let gate: OpenTransaction = self
            .server
            .database()
            .begin("SELECT pg_advisory_xact_lock(1)")
            .await;
        let write = async {
            gate.blocked(1).await;
            let mut write = pin!(write);
            let done = match select(write.as_mut(), pin!(gate.blocked(2))).await {
                Either::Left((done, _)) => Some(done),
                Either::Right(_) => None,
            };
            gate.commit().await;
            match done {
                Some(done) => done,
                None => write.await,
            }
        };
        tokio::join!(change, write)
    }

    /// The outcome of a write that races with a successful change.
    async fn outcome(
        &self,
        change: (&Person, &str, Value),
        write: (&Person, &str, Value),
    ) -> String {
        let (changed, written) = self
            .beside(
                change.0.send(change.1, change.2),
                write.0.send(write.1, write.2),
            )
            .await;
        changed.ok();
        written.outcome()
    }

    async fn admin_again(&self) {
        self.root
            .mutate(
                "updateUser",
                json!({ "id": self.admin.id, "role": "ADMIN" }),
            )
            .await
            .ok();
    }

    /// Events read directly from the table: kind, actor and assignee.
    async fn log(&self, kinds: &[i64]) -> Vec<(i64, String, String)> {
        let rows = self.server.database().rows().await;
        let key = |id: &Value| text(id).to_lowercase();
        let people: Vec<_> = rows["users"]
            .iter()
            .map(|user| (key(&user["id"]), text(&user["username"])))
            .collect();
        let name = |id: &Value| {
            let known = people
                .iter()
                .find(|(known, _)| id.is_string() && *known == key(id));
            known.map_or_else(|| "-".to_owned(), |(_, name)| name.clone())
        };
        let number = |row: &serde_json::Map<String, Value>, column: &str| {
            row[column].as_i64().expect("a number")
        };
        let mut events: Vec<_> = rows["events"]
            .iter()
            .filter(|event| kinds.contains(&number(event, "kind")))
            .collect();
        events.sort_by_key(|event| (number(event, "xid"), number(event, "seq")));
        let told = |event: &&serde_json::Map<String, Value>| {
            (
                number(event, "kind"),
                name(&event["actor_id"]),
                name(&event["assignee_id"]),
            )
        };
        events.iter().map(told).collect()
    }
}

#[tokio::test]
async fn a_former_assignee_cannot_write_to_the_task() {
    let scene = Scene::new().await;
    for write in [
        "title",
        "status",
        "labels",
        "assignee",
        "addComment",
        "updateComment",
        "deleteComment",
    ] {
        let Ids {
            task,
            label,
            comment,
            ..
        } = scene.ids().await;
        let (mutation, input, outcome) = match write {
            "title" => (
                "updateTask",
                json!({ "id": task, "title": "x" }),
                "id: NOT_FOUND",
            ),
            "status" => (
                "updateTask",
                json!({ "id": task, "status": "IN_PROGRESS" }),
                "id: NOT_FOUND",
            ),
            "labels" => (
                "updateTask",
                json!({ "id": task, "addLabelIds": [label] }),
                "id: NOT_FOUND",
            ),
            "assignee" => (
                "updateTask",
                json!({ "id": task, "assigneeId": scene.assignee.id }),
                "id: NOT_FOUND",
            ),
            "addComment" => (
                "addComment",
                json!({ "taskId": task, "body": "x" }),
                "taskId: NOT_FOUND",
            ),
            "updateComment" => (
                "updateComment",
                json!({ "id": comment, "body": "x" }),
                "id: NOT_FOUND",
            ),
            _ => ("deleteComment", json!({ "id": comment }), "id: NOT_FOUND"),
        };
        let unassign = (
            &scene.owner,
            "updateTask",
            json!({ "id": task, "assigneeId": scene.next.id }),
        );
        let done = scene
            .outcome(unassign, (&scene.assignee, mutation, input))
            .await;
        assert_eq!(done, outcome, "{write}");
    }
}

#[tokio::test]
async fn demoted_admin_cannot_write_afterwards() {
    let scene = Scene::new().await;
    for write in 0..12 {
        let Ids {
            project,
            task,
            label,
            comment,
        } = scene.ids().await;
        let (mutation, input, outcome) = match write {
            0 => (
                "updateProject",
                json!({ "id": project, "name": "x" }),
                "id: NOT_FOUND",
            ),
            1 => ("deleteProject", json!({ "id": project }), "id: NOT_FOUND"),
            2 => (
                "createLabel",
                json!({ "projectId": project, "name": "x" }),
                "projectId: NOT_FOUND",
            ),
            3 => (
                "updateLabel",
                json!({ "id": label, "name": "x" }),
                "id: NOT_FOUND",
            ),
            4 => ("deleteLabel", json!({ "id": label }), "id: NOT_FOUND"),
            5 => (
                "createTask",
                json!({ "projectId": project, "title": "x" }),
                "projectId: NOT_FOUND",
            ),
            6 => (
                "updateTask",
                json!({ "id": task, "title": "x" }),
                "id: NOT_FOUND",
            ),
            7 => (
                "updateTask",
                json!({ "id": task, "addLabelIds": [label] }),
                "id: NOT_FOUND",
            ),
            8 => ("deleteTask", json!({ "id": task }), "id: NOT_FOUND"),
            9 => (
                "addComment",
                json!({ "taskId": task, "body": "x" }),
                "taskId: NOT_FOUND",
            ),
            10 => ("deleteComment", json!({ "id": comment }), "id: NOT_FOUND"),
            _ => (
                "updateUser",
                json!({ "id": scene.owner.id, "isActive": false }),
                "FORBIDDEN",
            ),
        };
        let demote = (
            &scene.root,
            "updateUser",
            json!({ "id": scene.admin.id, "role": "USER" }),
        );
        let done = scene.outcome(demote, (&scene.admin, mutation, input)).await;
        assert_eq!(done, outcome, "{mutation}");
        scene.admin_again().await;
    }
}

#[tokio::test]
async fn ended_session_cannot_write() {
    let scene = Scene::new().await;
    for (round, change) in ["disable", "revoke", "password", "leave"]
        .into_iter()
        .cycle()
        .take(12)
        .enumerate()
    {
        let name = format!("somebody-{round}");
        let somebody = scene.server.person(&name).await;
        let elsewhere = scene.server.login(&name).await;
        let ids = "{ viewer { sessions { id isCurrent } } }";
        let sessions = somebody.query(ids, json!({})).await["viewer"]["sessions"].clone();
        let sessions = sessions.as_array().expect("sessions").clone();
        let session = |current: bool| {
            text(
                &sessions
                    .iter()
                    .find(|session| session["isCurrent"] == current)
                    .expect("a session")["id"],
            )
        };
        let project = somebody.project("Own").await;
        let task = somebody.task(&project, "Fly", json!({})).await;
        let label = somebody.label(&project, "red").await;
        let (by, changing, with) = match change {
            "disable" => (
                &scene.root,
                "updateUser",
                json!({ "id": somebody.id, "isActive": false }),
            ),
            "revoke" => (&somebody, "revokeSession", json!({ "id": session(false) })),
            "password" => {
                let input =
                    json!({ "currentPassword": PASSWORD, "newPassword": "Another-Horse-8" });
                (&somebody, "changePassword", input)
            }
            _ => (&somebody, "deleteViewer", json!({ "password": PASSWORD })),
        };
        let (mutation, input) = match round {
            0 => ("addComment", json!({ "taskId": task, "body": "x" })),
            1 => ("updateTask", json!({ "id": task, "title": "x" })),
            2 => (
                "updateTask",
                json!({ "id": task, "title": "x", "status": "IN_PROGRESS" }),
            ),
            3 => ("createProject", json!({ "name": "x" })),
            4 => ("updateProject", json!({ "id": project, "name": "x" })),
            5 => ("markNotificationsRead", json!({ "all": true })),
            6 => ("deleteLabel", json!({ "id": label })),
            7 => ("updateViewer", json!({ "displayName": "x" })),
            8 => ("createLabel", json!({ "projectId": project, "name": "x" })),
            9 => ("revokeSession", json!({ "id": session(true) })),
            10 => ("createTask", json!({ "projectId": project, "title": "x" })),
            _ => ("deleteTask", json!({ "id": task })),
        };
        let done = scene
            .outcome((by, changing, with), (&elsewhere, mutation, input))
            .await;
        assert_eq!(done, NO, "{mutation} beside {change}");
    }
}

#[tokio::test]
async fn events_go_to_the_assignee_at_commit() {
    let scene = Scene::new().await;
    let document = "subscription ($after: String) { events(after: $after) { __typename } }";
    for write in [
        "addComment",
        "updateComment",
        "deleteComment",
        "updateTask",
        "labels",
        "deleteTask",
        "deleteProject",
    ] {
        let Ids {
            project,
            task,
            label,
            ..
        } = scene.ids().await;
        let comment = scene.owner.comment(&task, "Later").await;
        let mut live = scene.next.subscribe(document, json!({})).await;
        let (mutation, input, event) = match write {
            "addComment" => (
                write,
                json!({ "taskId": task, "body": "x" }),
                "CommentAddedEvent",
            ),
            "updateComment" => (
                write,
                json!({ "id": comment, "body": "x" }),
                "CommentUpdatedEvent",
            ),
            "deleteComment" => (write, json!({ "id": comment }), "CommentDeletedEvent"),
            "updateTask" => (
                write,
                json!({ "id": task, "title": "x" }),
                "TaskUpdatedEvent",
            ),
            "labels" => (
                "updateTask",
                json!({ "id": task, "addLabelIds": [label] }),
                "TaskUpdatedEvent",
            ),
            "deleteTask" => (write, json!({ "id": task }), "TaskDeletedEvent"),
            _ => (write, json!({ "id": project }), "TaskDeletedEvent"),
        };
        let reassign = (
            &scene.root,
            "updateTask",
            json!({ "id": task, "assigneeId": scene.next.id }),
        );
        assert_eq!(
            scene
                .outcome(reassign, (&scene.owner, mutation, input))
                .await,
            "ok",
            "{write}"
        );
        // Skip the events of the assignment, which come first.
        while live.next().await["events"]["__typename"] != event {}
        let log = scene.log(&[2, 3, 7, 8, 9]).await;
        let (_, actor, assignee) = log.last().expect("an event");
        assert_eq!(
            (actor.as_str(), assignee.as_str()),
            ("owner", "next"),
            "{write}"
        );
    }
}

/// Deleting an account with many projects takes a while.
#[tokio::test]
async fn admin_write_does_not_wait_for_an_account_deletion() {
    let scene = Scene::new().await;
    let leave = scene
        .assignee
        .send("deleteViewer", json!({ "password": PASSWORD }));
    if is_postgres() {
        let gate = scene
            .server
            .database()
            .begin("SELECT pg_advisory_xact_lock(1)")
            .await;
        let beside = async {
            gate.blocked(1).await;
            scene
                .root
                .send("createProject", json!({ "name": "x" }))
                .await
                .ok();
            gate.commit().await;
        };
        let (left, ()) = tokio::join!(leave, beside);
        left.ok();
    } else {
        leave.await.ok();
        scene
            .root
            .mutate("createProject", json!({ "name": "x" }))
            .await
            .ok();
    }
}

#[tokio::test]
async fn mentions_are_resolved_with_permissions_at_commit() {
    let scene = Scene::new().await;
    for write in ["addComment", "updateComment"] {
        let Ids { task, .. } = scene.ids().await;
        let comment = scene.owner.comment(&task, "Soon").await;
        let input = match write {
            "addComment" => json!({ "taskId": task, "body": "For @admin" }),
            _ => json!({ "id": comment, "body": "For @admin" }),
        };
        let demote = (
            &scene.root,
            "updateUser",
            json!({ "id": scene.admin.id, "role": "USER" }),
        );
        assert_eq!(
            scene.outcome(demote, (&scene.owner, write, input)).await,
            "ok"
        );
        let rows = scene.server.database().rows().await;
        let mentions = rows["events"]
            .iter()
            .any(|event| text(&event["data"]).contains("mentions"));
        assert!(!mentions, "{write}");
        scene.admin_again().await;
    }
}

#[tokio::test]
async fn task_cannot_be_assigned_to_an_account_being_disabled() {
    let scene = Scene::new().await;
    for write in ["createTask", "updateTask"] {
        let Ids { project, task, .. } = scene.ids().await;
        let input = match write {
            "createTask" => {
                json!({ "projectId": project, "title": "x", "assigneeId": scene.next.id })
            }
            _ => json!({ "id": task, "assigneeId": scene.next.id }),
        };
        let disable = (
            &scene.root,
            "updateUser",
            json!({ "id": scene.next.id, "isActive": false }),
        );
        assert_eq!(
            scene.outcome(disable, (&scene.admin, write, input)).await,
            "assigneeId: INVALID",
            "{write}"
        );
        scene
            .root
            .mutate(
                "updateUser",
                json!({ "id": scene.next.id, "isActive": true }),
            )
            .await
            .ok();
    }
}

/// Two users comment on a task that is reassigned back and forth between them.
#[tokio::test]
async fn only_the_current_assignee_comments() {
    const ROUNDS: usize = 20;
    let scene = Scene::new().await;
    let Scene {
        owner,
        assignee,
        next,
        ..
    } = &scene;
    let task = scene.ids().await.task;
    let reassign = async |person: &Person| {
        owner
            .send("updateTask", json!({ "id": task, "assigneeId": person.id }))
            .await
            .ok();
    };
    let commenting = async |person: &Person| {
        let mut written = 0;
        for _ in 0..2 * ROUNDS {
            let done: Mutated = person
                .send("addComment", json!({ "taskId": task, "body": "x" }))
                .await;
            written += usize::from(done.outcome() == "ok");
        }
        written
    };
    let reassigning = async {
        for _ in 0..ROUNDS {
            reassign(next).await;
            reassign(assignee).await;
        }
    };
    let (_, ours, theirs) = tokio::join!(reassigning, commenting(assignee), commenting(next));
    let document = "subscription ($after: String) { events(after: $after) { ... on CommentAddedEvent { comment { body } } } }";
    let mut live = next.subscribe(document, json!({})).await;
    reassign(next).await;
    let last: Vec<String> = (0..5).map(|number| number.to_string()).collect();
    join_all(last.iter().map(async |body| {
        owner
            .send("addComment", json!({ "taskId": task, "body": body }))
            .await
            .ok();
    }))
    .await;
    let mut told = Vec::new();
    while told.len() < last.len() {
        let event = live.next().await["events"].clone();
        if event["comment"].is_object() {
            told.push(text(&event["comment"]["body"]));
        }
    }
    told.sort_unstable();
    assert_eq!(told, last);

    let (mut present, mut comments) = ("assignee".to_owned(), 0);
    for (kind, actor, assignee) in scene.log(&[4, 7]).await {
        if kind == 4 {
            present = assignee;
            continue;
        }
        assert_eq!(assignee, present, "the event names the current assignee");
        if actor != "owner" {
            assert_eq!(actor, present, "only the assignee comments");
            comments += 1;
        }
    }
    assert_eq!(comments, 1 + ours + theirs, "every comment is in the log");
}

#[tokio::test]
async fn concurrent_label_changes_are_all_applied() {
    let server = Server::start().await;
    let owner = server.person("owner").await;
    let project = owner.project("Apollo").await;
    let label = owner.label(&project, "red").await;
    let rename = owner.send("updateLabel", json!({ "id": label, "name": "blue" }));
    let recolor = owner.send("updateLabel", json!({ "id": label, "color": "#0000ff" }));
    if is_postgres() {
        let held = server
            .database()
            .begin("SELECT FROM labels FOR SHARE")
            .await;
        let release = async {
            held.blocked(2).await;
            held.commit().await;
        };
        let (rename, recolor, ()) = tokio::join!(rename, recolor, release);
        rename.ok();
        recolor.ok();
    } else {
        let (rename, recolor) = tokio::join!(rename, recolor);
        rename.ok();
        recolor.ok();
    }
    let seen = owner
        .query(
            "{ projects { nodes { labels { name color } } } }",
            json!({}),
        )
        .await;
    assert_eq!(
        seen["projects"]["nodes"][0]["labels"],
        json!([{ "name": "blue", "color": "#0000ff" }])
    );
}

#[tokio::test]
async fn deadlocked_write_is_retried() {
    // SQLite has a single writer and cannot deadlock.
    if !is_postgres() {
        return;
    }
    let server = Server::start().await;
    let owner = server.person("owner").await;
    let project = owner.project("Apollo").await;
    let task = owner.task(&project, "Fly", json!({})).await;
    let other = server
        .database()
        .begin("UPDATE tasks SET title = 'x'")
        .await;
    let write = owner.send("addComment", json!({ "taskId": task, "body": "x" }));
    let against = async {
        // The write has locked its author's row; from here each transaction waits for the other.
        other.blocked(1).await;
        other
            .execute("SET LOCAL deadlock_timeout = '10s'; UPDATE users SET display_name = 'x'")
            .await;
        other.commit().await;
    };
    let (written, ()) = tokio::join!(write, against);
    written.ok();
}

#[tokio::test]
async fn what_belongs_to_a_task_is_read_with_the_right_to_the_task() {
    if !is_postgres() {
        // SQLite has no lock that holds up one of two reads of an operation.
        return;
    }
    let scene = Scene::new().await;
    let fields = [
        (
            "comments",
            "comments { nodes { body } totalCount }",
            json!({ "nodes": [], "totalCount": 0 }),
        ),
        (
            "events",
            "activity { nodes { id } }",
            json!({ "nodes": [] }),
        ),
        ("task_labels", "labels { name }", json!([])),
    ];
    for (table, field, nothing) in fields {
        let document = format!("query ($id: ID!) {{ task(id: $id) {{ title {field} }} }}");
        let name = field.split(' ').next().expect("a name");
        let mut read = Value::Null;
        // The reader of the event log may be what waits for the lock. The query then finds no task.
        while read.is_null() {
            let Ids { task, label, .. } = scene.ids().await;
            let input = json!({ "id": task, "addLabelIds": [label] });
            scene.owner.mutate("updateTask", input).await.ok();
            let before = scene.assignee.query(&document, json!({ "id": task })).await;
            assert_ne!(before["task"][name], nothing);

            let taken = format!(
                "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; UPDATE tasks SET assignee_id = NULL"
            );
            let gate = scene.server.database().begin(&taken).await;
            let commit = async {
                gate.blocked(1).await;
                gate.commit().await;
            };
            let query = scene.assignee.query(&document, json!({ "id": task }));
            let (answer, ()) = tokio::join!(query, commit);
            read = answer["task"].clone();
        }
        assert_eq!(
            read,
            json!({ "title": "Fly", name: nothing }),
            "the task was read before it was taken"
        );
    }
}
