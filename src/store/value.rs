//! Validated input values. Each type is constructed by its `parse`, so its values need no further
//! checks. Lengths are in Unicode code points.

use std::fmt;
use std::ops::Deref;

use crate::error::{Error, Result, UserError, UserErrorCode};

/// Collects the user errors of an input, so that the client gets all of them at once.
#[derive(Debug, Default)]
pub struct UserErrors(Vec<UserError>);

impl UserErrors {
    /// Returns the value, or records its error.
    pub fn take<T>(&mut self, checked: std::result::Result<T, UserError>) -> Option<T> {
        checked.map_err(|fault| self.0.push(fault)).ok()
    }

    pub fn push(&mut self, fault: UserError) {
        self.0.push(fault);
    }

    /// Fails with all recorded errors if there are any.
    pub fn check(self) -> Result<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::UserErrors(self.0))
        }
    }
}

/// Text of `MIN` to `MAX` code points, without surrounding white space and NUL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BoundedText<const MIN: usize, const MAX: usize>(String);

pub type Title = BoundedText<1, 200>;
/// Description of a project or task.
pub type Description = BoundedText<0, 10_000>;
pub type CommentBody = BoundedText<1, 5_000>;
pub type ProjectName = BoundedText<1, 120>;
pub type LabelName = BoundedText<1, 50>;

impl<const MIN: usize, const MAX: usize> BoundedText<MIN, MAX> {
    /// Trims and validates a text.
    pub fn parse(field: &'static str, raw: &str) -> std::result::Result<Self, UserError> {
        // Cheap limit before anything is scanned; a code point has at most four bytes.
        if raw.len() > (MAX + 1_000) * 4 {
            return Err(too_long(field, MAX));
        }
        let text = raw.trim();
        if text.contains('\0') {
            return Err(UserError::new(
                field,
                UserErrorCode::Invalid,
                "NUL characters are not allowed.",
            ));
        }
        let length = text.chars().count();
        if length == 0 && MIN > 0 {
            return Err(UserError::new(
                field,
                UserErrorCode::Blank,
                "Must not be blank.",
            ));
        }
        if length < MIN {
            return Err(UserError::new(
                field,
                UserErrorCode::TooShort,
                format!("Must have at least {MIN} characters."),
            ));
        }
        if length > MAX {
            return Err(too_long(field, MAX));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Display for BoundedText<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MIN: usize, const MAX: usize> Deref for BoundedText<MIN, MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

fn too_long(field: &'static str, max: usize) -> UserError {
    UserError::new(
        field,
        UserErrorCode::TooLong,
        format!("Must have at most {max} characters."),
    )
}

/// Display name of a user: 1–100 characters, none of which hides or reorders the text around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisplayName(String);

impl DisplayName {
    /// Trims and validates a display name.
    pub fn parse(field: &'static str, raw: &str) -> std::result::Result<Self, UserError> {
        let text = BoundedText::<1, 100>::parse(field, raw)?;
        if text.chars().any(is_deceptive) || text.chars().all(is_blank) {
            let message = "Control, direction and invisible characters are not allowed.";
            return Err(UserError::new(field, UserErrorCode::Invalid, message));
        }
        Ok(Self(text.into_string()))
    }
}

impl Deref for DisplayName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// Whether a character can disguise text: control characters, directional formatting (Unicode's
/// `Bidi_Control`), line and paragraph separators, and invisible format characters. Joiners and
/// variation selectors are allowed, because some scripts and emoji need them.
pub const fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether a character is invisible by itself.
fn is_blank(c: char) -> bool {
    let fillers = [
        '\u{200c}', '\u{200d}', '\u{115f}', '\u{1160}', '\u{2800}', '\u{3164}', '\u{ffa0}',
    ];
    c.is_whitespace() || fillers.contains(&c) || ('\u{fe00}'..='\u{fe0f}').contains(&c)
}

/// Username: 3–50 of `A–Z a–z 0–9 _ -`, unique ignoring case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username(String);

impl Username {
    /// Trims and validates a username.
    pub fn parse(field: &'static str, raw: &str) -> std::result::Result<Self, UserError> {
        let text = BoundedText::<3, 50>::parse(field, raw)?;
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        {
            return Err(UserError::new(
                field,
                UserErrorCode::Invalid,
                "Only letters A–Z, digits, _ and - are allowed.",
            ));
        }
        Ok(Self(text.into_string()))
    }

    /// Whether the name could be mistaken for the server or its operators, who alone can assign
    /// such names. Separators are ignored.
    pub fn is_reserved(&self) -> bool {
        let is_separator = |c: char| matches!(c, '_' | '-');
        let folded = fold(&self.0);
        // Deleted accounts are renamed to `deleted` followed by an id.
        let rest = folded
            .trim_start_matches(is_separator)
            .strip_prefix("deleted");
        let bare: String = folded.chars().filter(|c| !is_separator(*c)).collect();
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
            || RESERVED.contains(&&*bare)
    }

    /// The user error for a reserved username.
    pub fn reserved(field: &'static str) -> UserError {
        UserError::new(field, UserErrorCode::Invalid, "This username is reserved.")
    }
}

/// Case-folded, without separators.
const RESERVED: [&str; 32] = [
    "abuse",
    "admin",
    "administration",
    "administrator",
    "admins",
    "all",
    "anonymous",
    "daemon",
    "everyone",
    "fasttrack",
    "help",
    "helpdesk",
    "hostmaster",
    "mailerdaemon",
    "moderator",
    "noreply",
    "null",
    "official",
    "operator",
    "postmaster",
    "root",
    "security",
    "server",
    "staff",
    "superuser",
    "support",
    "sysadmin",
    "system",
    "team",
    "undefined",
    "viewer",
    "webmaster",
];

impl Deref for Username {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// E-mail address that mail can be sent to (RFC 5321), unique ignoring case.
#[derive(Clone, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    /// Validates the syntax. Whether the mailbox exists is verified by mail.
    pub fn parse(field: &'static str, raw: &str) -> std::result::Result<Self, UserError> {
        let text = BoundedText::<1, 254>::parse(field, raw)?;
        let invalid =
            || UserError::new(field, UserErrorCode::Invalid, "Not a valid e-mail address.");
        let (local, domain) = text.rsplit_once('@').ok_or_else(invalid)?;
        let fits = local.len() <= 64
            && domain.contains('.')
            && !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if !fits || text.parse::<lettre::Address>().is_err() {
            return Err(invalid());
        }
        Ok(Self(text.into_string()))
    }
}

impl Deref for Email {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// Redacted, because addresses must not appear in logs.
impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email(…)")
    }
}

/// Color as `#rrggbb`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Color(String);

impl Color {
    /// Default color of labels.
    pub fn grey() -> Self {
        Self("#808080".to_owned())
    }

    /// Validates and normalizes a color.
    pub fn parse(field: &'static str, raw: &str) -> std::result::Result<Self, UserError> {
        let digits = raw.strip_prefix('#').filter(|digits| digits.len() == 6);
        match digits {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Ok(Self(raw.to_ascii_lowercase()))
            }
            _ => Err(UserError::new(
                field,
                UserErrorCode::Invalid,
                "Must be a color such as #1f6feb.",
            )),
        }
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

/// Case-folds a text (full Unicode case folding), for keys and searches.
pub fn fold(text: &str) -> String {
    unicase::UniCase::unicode(text).to_folded_case()
}

/// Search terms: every word must occur, in any order, ignoring case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Search(Vec<String>);

impl Search {
    const MAX_LENGTH: usize = 200;
    const MAX_WORDS: usize = 10;

    /// Validates and splits a search text. An empty one matches everything.
    pub fn parse(raw: &str) -> Result<Self> {
        if raw.contains('\0') {
            return Err(Error::bad_input(
                "A search must not contain NUL characters.",
            ));
        }
        if raw.chars().take(Self::MAX_LENGTH + 1).count() > Self::MAX_LENGTH {
            return Err(Error::bad_input(
                "A search must have at most 200 characters.",
            ));
        }
        let words: Vec<String> = fold(raw)
            .split_whitespace()
            .map(ToOwned::to_owned)
            .collect();
        if words.len() > Self::MAX_WORDS {
            return Err(Error::bad_input("A search must have at most 10 words."));
        }
        Ok(Self(words))
    }

    /// The case-folded words. A row matches if its folded text contains all of them.
    pub fn words(&self) -> &[String] {
        &self.0
    }

    /// Whether the search matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_code_points_after_trimming() {
        assert_eq!(
            Title::parse("title", &format!("  {}  ", "ü".repeat(200)))
                .map(|title| title.chars().count()),
            Ok(200)
        );
        assert_eq!(
            Title::parse("title", &"ü".repeat(201)).map_err(|fault| fault.code),
            Err(UserErrorCode::TooLong)
        );
        assert_eq!(
            Title::parse("title", " \t\n ").map_err(|fault| fault.code),
            Err(UserErrorCode::Blank)
        );
        assert_eq!(
            Title::parse("title", "a\0b").map_err(|fault| fault.code),
            Err(UserErrorCode::Invalid)
        );
    }

    #[test]
    fn an_email_needs_a_mailbox_and_a_domain() {
        for good in [
            "a@b.co",
            "first.last+tag@sub.example.org",
            "üser@example.org",
            " a@b.co\n",
        ] {
            assert_eq!(Email::parse("email", good).as_deref(), Ok(good.trim()));
        }
        for bad in [
            "",
            "a",
            "a@",
            "@b.co",
            "a@b",
            "a b@c.de",
            "a\n@b.co",
            "a@b\n.co",
            "a@@b.co",
            &format!("{}@b.co", "a".repeat(65)),
        ] {
            assert!(Email::parse("email", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reserved_names_are_folded_and_bare() {
        let is_reserved = |name: &str| Username::parse("username", name).unwrap().is_reserved();
        for name in RESERVED {
            assert_eq!(name, fold(name), "as it is compared");
            assert!(
                is_reserved(name)
                    && is_reserved(&name.to_uppercase())
                    && is_reserved(&format!("-{name}_"))
            );
        }
        for name in [
            "deleted",
            "Deleted-user",
            "deleted-ada",
            "deleted_1",
            "deleted7",
            "_deleted-x",
        ] {
            assert!(is_reserved(name), "{name}");
        }
        for name in [
            "admiral",
            "rootkit",
            "deletedalice",
            "undeleted",
            "ada-admin",
        ] {
            assert!(!is_reserved(name), "{name}");
        }
    }

    #[test]
    fn no_character_that_sets_a_direction_or_controls_is_in_a_display_name() {
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            let name = format!("a{c}b");
            let refused = DisplayName::parse("displayName", &name).is_err();
            let direction = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || direction {
                assert!(refused, "{c:?}");
            }
            if c.is_alphanumeric() || c.is_ascii_punctuation() {
                assert!(!refused, "{c:?}");
            }
        }
    }

    #[test]
    fn folding_goes_beyond_ascii() {
        assert_eq!(fold("STRASSE"), fold("straße"));
        assert_eq!(fold("ΣΊΣΥΦΟΣ"), fold("σίσυφος"));
        assert_eq!(fold("ÄRGER"), fold("ärger"));
    }

    #[test]
    fn a_search_is_split_into_folded_words() {
        let search = Search::parse(" 100%  A_b c\\d ").unwrap();
        assert_eq!(search.words(), ["100%", "a_b", "c\\d"]);
    }
}
