//! The policy for new passwords. Hashing is in `auth`.

use std::ops::Deref;

use super::value::fold;
use crate::config::PasswordPolicy;
use crate::error::{UserError, UserErrorCode};

/// A password that satisfies the policy.
#[derive(Clone)]
pub struct Password(String);

/// Maximum length in code points.
pub const MAX_LENGTH: usize = 256;

impl Password {
    /// Checks a new password against the policy. `personal` lists values that it must not equal.
    pub fn parse(
        field: &'static str,
        raw: &str,
        policy: PasswordPolicy,
        personal: &[&str],
    ) -> std::result::Result<Self, UserError> {
        let length = raw.chars().take(MAX_LENGTH + 1).count();
        let weak = |message: &'static str| {
            Err(UserError::new(field, UserErrorCode::WeakPassword, message))
        };
        if length > MAX_LENGTH {
            return Err(UserError::new(
                field,
                UserErrorCode::TooLong,
                "Must have at most 256 characters.",
            ));
        }
        if raw.contains('\0') {
            return Err(UserError::new(
                field,
                UserErrorCode::Invalid,
                "NUL characters are not allowed.",
            ));
        }
        match policy {
            PasswordPolicy::Composition => {
                let mixed = raw.chars().any(char::is_uppercase)
                    && raw.chars().any(char::is_lowercase)
                    && raw.chars().any(char::is_numeric)
                    && raw.chars().any(|c| !c.is_alphanumeric());
                if length < 8 || !mixed {
                    return weak(
                        "Use at least 8 characters with upper and lower case, a digit and a special character.",
                    );
                }
            }
            PasswordPolicy::Length if length < 15 => return weak("Use at least 15 characters."),
            PasswordPolicy::Length => {}
        }
        if is_common(raw) {
            return weak("This password is too common.");
        }
        if personal.iter().any(|text| fold(text) == fold(raw)) {
            return weak("Must not be your username or e-mail address.");
        }
        Ok(Self(raw.to_owned()))
    }
}

impl Deref for Password {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// Common passwords and the words that most of them are based on, one per line in lower case.
const COMMON: &str = include_str!("common.txt");

/// Whether a password is common, or a common word with substitutions and affixes: `P@ssw0rd1!` is
/// `password` with what a composition policy requires.
fn is_common(password: &str) -> bool {
    let plain = password.to_lowercase();
    let undressed: String = plain
        .chars()
        .map(|c| match c {
            '@' | '4' => 'a',
            '0' => 'o',
            '1' | '!' => 'i',
            '3' => 'e',
            '$' | '5' => 's',
            '7' => 't',
            other => other,
        })
        .collect();
    let bare = |text: &str| text.trim_matches(|c: char| !c.is_alphabetic()).to_owned();
    // Digits at the end are affixes, but digits inside a word stand for letters.
    let core = undressed
        .get(..bare(&plain).len())
        .map(ToOwned::to_owned)
        .unwrap_or_default();
    let candidates = [plain.clone(), bare(&plain), core, undressed];
    COMMON
        .lines()
        .any(|common| candidates.iter().any(|candidate| candidate == common))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(policy: PasswordPolicy, password: &str) -> Option<UserErrorCode> {
        Password::parse(
            "password",
            password,
            policy,
            &["alice", "alice@example.org"],
        )
        .err()
        .map(|fault| fault.code)
    }

    #[test]
    fn a_password_needs_what_the_policy_asks_for() {
        use PasswordPolicy::{Composition, Length};
        for weak in [
            "",
            "Ab1-xyz",
            "lowercase-1",
            "UPPERCASE-1",
            "No-Digits",
            "NoSpecial1",
        ] {
            assert_eq!(
                code(Composition, weak),
                Some(UserErrorCode::WeakPassword),
                "{weak}"
            );
        }
        assert_eq!(code(Composition, "Gr0ße-Wörter"), None);
        assert_eq!(
            code(Length, "fourteen chars"),
            Some(UserErrorCode::WeakPassword)
        );
        assert_eq!(code(Length, "correct horse battery"), None);
        assert_eq!(
            code(Composition, &format!("Aa1-{}", "x".repeat(253))),
            Some(UserErrorCode::TooLong)
        );
        assert_eq!(
            code(Composition, "Abcd-123\0"),
            Some(UserErrorCode::Invalid)
        );
    }

    #[test]
    fn a_common_password_is_refused_however_it_is_dressed_up() {
        for common in [
            "Password1!",
            "P@ssw0rd",
            "P@ssw0rd123!",
            "Qwerty123!",
            "Welcome1!",
            "LetMeIn!2026",
            "Admin123!",
            "Iloveyou1!",
        ] {
            assert_eq!(
                code(PasswordPolicy::Composition, common),
                Some(UserErrorCode::WeakPassword),
                "{common}"
            );
        }
        for fine in ["Passwort-Regal-7", "Secret-1234", "Tr0ub4dor&3"] {
            assert_eq!(code(PasswordPolicy::Composition, fine), None, "{fine}");
        }
        assert_eq!(
            code(PasswordPolicy::Length, "ALICE@example.org"),
            Some(UserErrorCode::WeakPassword)
        );
    }
}
