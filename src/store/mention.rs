//! `@username` mentions in comments, resolved to the users who may see the task.

use std::collections::{HashMap, HashSet};

use diesel::prelude::*;

use super::task::Task;
use super::value::fold;
use crate::access::{Action, Role, Viewer};
use crate::db::rows::RunQueryDsl;
use crate::db::schema::users;
use crate::db::{Conn, Lock};
use crate::error::Result;
use crate::id::Id;
use crate::select_locked;

/// Handles per comment that are resolved; further ones remain plain text.
const MAX_MENTIONS: usize = 20;
const MAX_LENGTH: usize = 50;

/// Returns the distinct handles mentioned in a text, case-folded. An `@` inside a word, as in an
/// e-mail address, is not a mention.
pub fn parse_handles(text: &str) -> Vec<String> {
    let glued = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '@');
    let mut pieces = text.split('@').peekable();
    let mut before = pieces.next().and_then(|piece| piece.chars().next_back());
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    while let Some(piece) = pieces.next() {
        let end = piece
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
            .unwrap_or(piece.len());
        let (name, rest) = piece.split_at(end);
        let after = rest.chars().next().or_else(|| pieces.peek().map(|_| '@'));
        if !glued(before)
            && !glued(after)
            && (1..=MAX_LENGTH).contains(&name.len())
            && seen.insert(fold(name))
        {
            found.push(fold(name));
        }
        before = piece.chars().next_back().or(Some('@'));
    }
    found
}

/// Returns the handles mentioned in the new text but not in the old one.
pub fn added_handles(old: &str, new: &str) -> Vec<String> {
    let old: HashSet<String> = parse_handles(old).into_iter().collect();
    parse_handles(new)
        .into_iter()
        .filter(|name| !old.contains(name))
        .collect()
}

/// Locked users by folded username.
pub struct MentionedUsers(HashMap<String, (Id, Role)>);

/// Locks the users with these handles until the transaction ends, because their roles decide
/// whether they may see the task. The viewer is locked in the same statement, so that all locks are
/// taken in one order. The result is not filtered by permission; see
/// [`MentionedUsers::with_access_to`].
pub async fn lock(tx: &mut Conn, viewer: &Viewer, names: &[String]) -> Result<MentionedUsers> {
    if names.is_empty() {
        return Ok(MentionedUsers(HashMap::new()));
    }
    let names = &names[..names.len().min(MAX_MENTIONS)];
    let keys: Vec<&str> = names
        .iter()
        .flat_map(|name| [name.as_str(), trim_handle(name)])
        .collect();
    let people = users::table
        .filter(
            users::username_key
                .eq_any(&keys)
                .or(users::id.eq(viewer.id)),
        )
        .filter(users::deleted_at.is_null())
        .order_by(users::id)
        .select((users::username_key, users::id, users::role));
    let people: Vec<(String, Id, Role)> = select_locked!(tx, people, Lock::Share)?;
    Ok(MentionedUsers(
        people
            .into_iter()
            .map(|(key, id, role)| (key, (id, role)))
            .collect(),
    ))
}

/// A handle may end in `-` or `_`. If nobody has that handle, the one without the suffix is used:
/// `_@ada_` in Markdown mentions `ada`.
fn trim_handle(name: &str) -> &str {
    name.trim_end_matches(['-', '_'])
}

impl MentionedUsers {
    /// Returns the users with these handles who may see the task.
    pub fn with_access_to(&self, task: &Task, names: &[String]) -> Vec<Id> {
        let mut people = Vec::new();
        for name in names.iter().take(MAX_MENTIONS) {
            let Some((id, role)) = self
                .0
                .get(name)
                .or_else(|| self.0.get(trim_handle(name)))
                .copied()
            else {
                continue;
            };
            // The permission check needs a viewer, but ignores the session.
            let person = Viewer {
                id,
                session_id: id,
                role,
            };
            if person.may(Action::SeeTask, task) && !people.contains(&id) {
                people.push(id);
            }
        }
        people
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mention_stands_by_itself() {
        assert_eq!(
            parse_handles("@Ada, could you ask @bob-2? (@CAROL_)"),
            ["ada", "bob-2", "carol_"]
        );
        assert_eq!(parse_handles("**@ada** and @ada and @ADA."), ["ada"]);
        assert_eq!(parse_handles("ü @ada\n@bob"), ["ada", "bob"]);
        for text in [
            "ada",
            "@",
            "@ ada",
            "me@ada.org",
            "é@ada",
            "@adaé",
            "@@ada",
            "@ada@social",
            "a@b@c",
        ] {
            assert_eq!(parse_handles(text), [""; 0], "{text}");
        }
        assert_eq!(parse_handles(&format!("@{}", "x".repeat(51))), [""; 0]);
    }

    #[test]
    fn only_what_is_new_in_a_text_counts() {
        assert_eq!(added_handles("@ada", "@Ada and @bob"), ["bob"]);
        assert_eq!(added_handles("@ada @bob", "@bob"), [""; 0]);
    }
}
