//! `fasttrack demo`: fills an empty database with a team, its projects, tasks and comments.
//!
//! The data is written with the functions of [`crate::store`], as requests do, so the event log and
//! inboxes have matching entries.

use std::time::Duration;

use crate::App;
use crate::access::{Role, Viewer};
use crate::auth::credential;
use crate::error::{Code, Error, Result};
use crate::id::Id;
use crate::store::audit::ClientInfo;
use crate::store::lockout::PasswordAttempt;
use crate::store::password::Password;
use crate::store::session::{LoginOutcome, Session, VerifiedPassword};
use crate::store::task::{NewTask, Priority, TaskChanges, TaskStatus};
use crate::store::value::{
    Color, CommentBody, Description, DisplayName, Email, LabelName, ProjectName, Title, Username,
};
use crate::store::{comment, label, project, session, task, user};
use crate::time::Timestamp;

/// The password of all demo users.
const PASSWORD: &str = "Demo-Password-1";

const PEOPLE: [(&str, &str, Role); 5] = [
    ("alice", "Alice Moreau", Role::User),
    ("bob", "Bob Lindqvist", Role::User),
    ("carol", "Carol Nakamura", Role::User),
    ("dave", "Dave Okafor", Role::User),
    ("erin", "Erin Schäfer", Role::Admin),
];

const PROJECTS: [(usize, &str, &str); 3] = [
    (
        0,
        "Website relaunch",
        "New look, new content system, and pages that load in under a second.",
    ),
    (
        1,
        "Mobile app 2.0",
        "Offline mode and push notifications for both platforms.",
    ),
    (
        2,
        "Office move",
        "From the third floor to the new building by the river.",
    ),
];

/// Project, title, priority, days until due, assignee, status.
type Row = (
    usize,
    &'static str,
    Priority,
    Option<u64>,
    Option<usize>,
    TaskStatus,
);

const TASKS: [Row; 15] = [
    (
        0,
        "Choose the content system",
        Priority::High,
        Some(3),
        Some(1),
        TaskStatus::Done,
    ),
    (
        0,
        "Draw the start page",
        Priority::High,
        Some(7),
        Some(2),
        TaskStatus::InProgress,
    ),
    (
        0,
        "Move the blog posts over",
        Priority::Medium,
        Some(14),
        Some(3),
        TaskStatus::Todo,
    ),
    (
        0,
        "Check contrast and keyboard use",
        Priority::Medium,
        Some(21),
        None,
        TaskStatus::Todo,
    ),
    (
        0,
        "Redirect the old addresses",
        Priority::Low,
        None,
        Some(1),
        TaskStatus::Todo,
    ),
    (
        1,
        "Keep edits while offline",
        Priority::Urgent,
        Some(5),
        Some(0),
        TaskStatus::InProgress,
    ),
    (
        1,
        "Ask for notification permission late",
        Priority::Medium,
        Some(10),
        Some(2),
        TaskStatus::Todo,
    ),
    (
        1,
        "Reproduce the crash on start",
        Priority::Urgent,
        Some(1),
        Some(3),
        TaskStatus::Done,
    ),
    (
        1,
        "Translate the store page",
        Priority::Low,
        Some(30),
        None,
        TaskStatus::Todo,
    ),
    (
        1,
        "Measure battery use",
        Priority::Medium,
        None,
        Some(0),
        TaskStatus::Todo,
    ),
    (
        2,
        "Count the desks",
        Priority::Low,
        Some(2),
        Some(3),
        TaskStatus::Done,
    ),
    (
        2,
        "Order network cabling",
        Priority::High,
        Some(12),
        Some(1),
        TaskStatus::InProgress,
    ),
    (
        2,
        "Label the boxes",
        Priority::Low,
        Some(20),
        None,
        TaskStatus::Todo,
    ),
    (
        2,
        "Send customers the new address",
        Priority::Medium,
        Some(25),
        Some(0),
        TaskStatus::Todo,
    ),
    (
        2,
        "Plan the opening party",
        Priority::Medium,
        Some(40),
        Some(2),
        TaskStatus::Todo,
    ),
];

const LABELS: [(&str, &str); 3] = [
    ("bug", "#d73a4a"),
    ("design", "#a371f7"),
    ("chore", "#57606a"),
];

const COMMENTS: [&str; 6] = [
    "I had a first look: it is more than we thought, but nothing we cannot do.",
    "Can someone review this before Thursday?",
    "Done on my side. Over to you!",
    "Let us keep this small for now and see how it works out.",
    "The numbers are in the shared folder.",
    "Thanks, that was quick.",
];

/// Fills an empty database and returns the password of the demo users.
///
/// Refuses a database with users, because the new admin has a publicly known password.
pub async fn fill(app: &App) -> Result<&'static str> {
    if user::exists_any(&mut app.db.conn().await?).await? {
        let message = "The database is not empty. Set DATABASE_URL to another one.";
        return Err(Error::refused(Code::Forbidden, message));
    }
    let wrong = |fault| Error::UserErrors(vec![fault]);
    let now = app.clock.now();
    let password =
        Password::parse("password", PASSWORD, app.config.password_policy, &[]).map_err(wrong)?;
    let password_hash = app.credentials.hash(&password).await?;
    let mut people = Vec::new();
    for (username, display_name, role) in PEOPLE {
        let new = user::NewUser {
            email: Email::parse("email", &format!("{username}@example.org")).map_err(wrong)?,
            username: Username::parse("username", username).map_err(wrong)?,
            display_name: DisplayName::parse("displayName", display_name).map_err(wrong)?,
            password_hash: password_hash.clone(),
            role,
            email_verified: true,
        };
        let user = user::create(&app.db, now, &new, &ClientInfo::default()).await?;
        people.push(sign_in(app, now, user.id, role, &password_hash).await?);
    }
    let mut projects = Vec::new();
    for (owner, name, about) in PROJECTS {
        let (owner, name) = (
            people[owner],
            ProjectName::parse("name", name).map_err(wrong)?,
        );
        let about = Description::parse("description", about).map_err(wrong)?;
        let project = project::create(&app.db, now, &owner, &name, Some(&about)).await?;
        let mut labels = Vec::new();
        for (name, color) in LABELS {
            let (name, color) = (
                LabelName::parse("name", name).map_err(wrong)?,
                Color::parse("color", color).map_err(wrong)?,
            );
            labels.push(
                label::create(&app.db, now, &owner, project.id, &name, &color)
                    .await?
                    .id,
            );
        }
        projects.push((owner, project.id, labels));
    }
    for (index, (project, title, priority, days, assignee, status)) in TASKS.into_iter().enumerate()
    {
        let (owner, project_id, labels) = &projects[project];
        let new = NewTask {
            project_id: *project_id,
            title: Title::parse("title", title).map_err(wrong)?,
            description: None,
            priority,
            due_at: days.map(|days| now.plus(Duration::from_secs(days * 86_400))),
            assignee_id: assignee.map(|person| people[person].id),
            label_ids: vec![labels[index % labels.len()]],
        };
        let made = task::create(&app.db, now, owner, &new).await?;
        for step in [TaskStatus::InProgress, TaskStatus::Done] {
            if status.code() >= step.code() {
                let changes = TaskChanges {
                    status: Some(step),
                    ..TaskChanges::default()
                };
                task::update(&app.db, now, owner, made.id, &changes).await?;
            }
        }
        let authors = [Some(*owner), assignee.map(|person| people[person])];
        for (turn, author) in authors.into_iter().flatten().enumerate() {
            let body = CommentBody::parse("body", COMMENTS[(index + turn) % COMMENTS.len()])
                .map_err(wrong)?;
            comment::create(&app.db, now, &author, made.id, &body).await?;
        }
    }
    for person in &people {
        session::revoke(
            &app.db,
            now,
            person,
            person.session_id,
            &ClientInfo::default(),
        )
        .await?;
    }
    Ok(PASSWORD)
}

/// Creates a session for a user, because every write needs one.
async fn sign_in(
    app: &App,
    now: Timestamp,
    user_id: Id,
    role: Role,
    password_hash: &str,
) -> Result<Viewer> {
    let session = Session {
        id: Id::new(),
        user_id,
        seed: credential::random()?.to_vec(),
        generation: 0,
        rotated_at: now,
        created_at: now,
        last_used_at: now,
        expires_at: now.plus(Duration::from_secs(3_600)),
        revoked_at: None,
        ip_address: None,
        user_agent: None,
        last_ip_address: None,
    };
    let viewer = Viewer {
        id: user_id,
        session_id: session.id,
        role,
    };
    let (password, attempt) = (
        VerifiedPassword {
            hash: password_hash,
            rehashed: None,
        },
        PasswordAttempt::session(&viewer),
    );
    match session::create(
        &app.db,
        &session,
        &password,
        &attempt,
        true,
        app.config.lockout,
    )
    .await?
    {
        LoginOutcome::Created => Ok(viewer),
        _ => Err(Error::internal(
            "an account that was just created cannot sign in",
        )),
    }
}
