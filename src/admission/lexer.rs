//! The lexical scan: one pass over the bytes of a document, before it is parsed.
//!
//! The parser recurses once per bracket and checks its limit only afterwards, so a few kilobytes of
//! `[` overflow its stack. Nothing else in its grammar nests: strings, comments, names and numbers
//! are loops. So this pass follows the GraphQL lexical grammar (September 2025) just far enough to
//! recognize brackets outside strings and comments. It counts them and the tokens, and refuses what
//! no GraphQL document can contain. It allocates nothing and never backtracks, so its cost is
//! linear in the length of the document.
//!
//! The parser is laxer in places (it reads `01` as two numbers and `truefalse` as two booleans),
//! but it ends strings and comments where this pass does, so it cannot see a bracket that was not
//! counted.

use super::{AdmissionError, DocumentLimits};
use crate::error::Code;

/// Upper bound of `DocumentLimits::nesting`: the size of the scan's stack.
const MAX_NESTING: usize = 64;

/// A finite double needs 309 digits before its point and never more than 17 significant ones.
const MAX_NUMBER_BYTES: usize = 400;

/// Maximum length of a name. Each error message repeats names, so this bounds the response.
const MAX_NAME_BYTES: usize = 128;

/// Checks the tokens of `source`, their number, and the nesting of brackets.
pub(super) fn scan(source: &str, limits: &DocumentLimits) -> Result<(), AdmissionError> {
    let mut scanner = Scanner {
        source,
        bytes: source.as_bytes(),
        offset: 0,
    };
    let mut brackets = Brackets::new(limits.nesting);
    let mut tokens = 0;
    while scanner.skip_ignored() {
        tokens += 1;
        if tokens > limits.tokens {
            let message = format!(
                "The document is too long: at most {} tokens are allowed",
                limits.tokens
            );
            return Err(scanner.too_large(message));
        }
        scanner.token(&mut brackets)?;
    }
    match brackets.innermost() {
        Some(open) => Err(scanner.malformed(format!("Expected \"{}\"", closing(open)))),
        None if tokens == 0 => Err(scanner.malformed("The document is empty")),
        None => Ok(()),
    }
}

/// A fixed-size stack of open brackets.
struct Brackets {
    open: [char; MAX_NESTING],
    depth: usize,
    limit: usize,
}

impl Brackets {
    fn new(limit: usize) -> Self {
        Self {
            open: ['\0'; MAX_NESTING],
            depth: 0,
            limit: limit.min(MAX_NESTING),
        }
    }

    /// Returns false if the limit is reached.
    fn push(&mut self, bracket: char) -> bool {
        let room = self.depth < self.limit;
        if room {
            self.open[self.depth] = bracket;
            self.depth += 1;
        }
        room
    }

    fn innermost(&self) -> Option<char> {
        self.open[..self.depth].last().copied()
    }

    /// Returns whether `bracket` closes the innermost open one, and if so, pops it.
    fn pop(&mut self, bracket: char) -> bool {
        let matches = self.innermost().map(closing) == Some(bracket);
        if matches {
            self.depth -= 1;
        }
        matches
    }
}

fn closing(open: char) -> char {
    match open {
        '{' => '}',
        '[' => ']',
        _ => ')',
    }
}

struct Scanner<'a> {
    source: &'a str,
    bytes: &'a [u8],
    /// The offset of the next unread byte, on a character boundary except inside strings.
    offset: usize,
}

impl Scanner<'_> {
    /// Skips white space, commas, byte order marks and comments. Returns whether a token follows.
    fn skip_ignored(&mut self) -> bool {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | b',' => self.offset += 1,
                b'#' => self.take_while(|byte| byte != b'\n' && byte != b'\r'),
                _ if self.starts_with("\u{feff}") => self.offset += "\u{feff}".len(),
                _ => return true,
            }
        }
        false
    }

    fn token(&mut self, brackets: &mut Brackets) -> Result<(), AdmissionError> {
        let Some(character) = self
            .source
            .get(self.offset..)
            .and_then(|rest| rest.chars().next())
        else {
            return Ok(());
        };
        match character {
            '{' | '[' | '(' => {
                if !brackets.push(character) {
                    let message = format!(
                        "The document nests too deeply: at most {} brackets may be open at once",
                        brackets.limit
                    );
                    return Err(self.too_large(message));
                }
                self.offset += 1;
            }
            '}' | ']' | ')' => {
                if !brackets.pop(character) {
                    return Err(self.unexpected(character));
                }
                self.offset += 1;
            }
            '!' | '$' | '&' | ':' | '=' | '@' | '|' => self.offset += 1,
            '.' if self.starts_with("...") => self.offset += 3,
            '"' if self.starts_with("\"\"\"") => self.block_string()?,
            '"' => self.string()?,
            'A'..='Z' | 'a'..='z' | '_' => self.name()?,
            '0'..='9' | '-' => self.number()?,
            _ => return Err(self.unexpected(character)),
        }
        Ok(())
    }

    fn name(&mut self) -> Result<(), AdmissionError> {
        let start = self.offset;
        self.take_while(is_name);
        if self.offset - start > MAX_NAME_BYTES {
            self.offset = start;
            return Err(self.too_large(format!(
                "A name is too long: at most {MAX_NAME_BYTES} characters are allowed"
            )));
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), AdmissionError> {
        let start = self.offset;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _sign = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        if self.offset - start > MAX_NUMBER_BYTES {
            self.offset = start;
            return Err(self.too_large(format!(
                "A number is too long: at most {MAX_NUMBER_BYTES} characters are allowed"
            )));
        }
        // `1.2.3`, `0x1f` and `01` are mistakes, not two tokens.
        if self
            .peek()
            .is_some_and(|byte| byte == b'.' || is_name(byte))
        {
            return Err(self.malformed("Invalid number"));
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), AdmissionError> {
        let start = self.offset;
        self.take_while(|byte| byte.is_ascii_digit());
        if self.offset == start {
            return Err(self.malformed("Invalid number"));
        }
        Ok(())
    }

    /// Escape sequences are checked by the parser. Here `\` only keeps `"` from ending the string.
    fn string(&mut self) -> Result<(), AdmissionError> {
        let start = self.offset;
        self.offset += 1;
        loop {
            self.take_while(|byte| !matches!(byte, b'"' | b'\\' | b'\n' | b'\r'));
            match self.peek() {
                Some(b'"') => {
                    self.offset += 1;
                    return Ok(());
                }
                Some(b'\\')
                    if self
                        .bytes
                        .get(self.offset + 1)
                        .is_some_and(u8::is_ascii_graphic) =>
                {
                    self.offset += 2;
                }
                _ => {
                    self.offset = start;
                    return Err(self.malformed("Unterminated string"));
                }
            }
        }
    }

    fn block_string(&mut self) -> Result<(), AdmissionError> {
        let start = self.offset;
        self.offset += 3;
        while self.offset < self.bytes.len() {
            if self.starts_with("\"\"\"") {
                self.offset += 3;
                return Ok(());
            }
            self.offset += if self.starts_with("\\\"\"\"") { 4 } else { 1 };
        }
        self.offset = start;
        Err(self.malformed("Unterminated string"))
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.offset).copied()
    }

    fn starts_with(&self, text: &str) -> bool {
        self.bytes
            .get(self.offset..)
            .is_some_and(|rest| rest.starts_with(text.as_bytes()))
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.offset += usize::from(found);
        found
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&wanted) {
            self.offset += 1;
        }
    }

    fn unexpected(&self, character: char) -> AdmissionError {
        if character.is_ascii_graphic() {
            self.malformed(format!("Unexpected \"{character}\""))
        } else {
            self.malformed(format!(
                "Unexpected character U+{:04X}",
                u32::from(character)
            ))
        }
    }

    fn malformed(&self, message: impl Into<String>) -> AdmissionError {
        self.refusal(Code::ParseFailed, message)
    }

    fn too_large(&self, message: impl Into<String>) -> AdmissionError {
        self.refusal(Code::DocumentTooLarge, message)
    }

    fn refusal(&self, code: Code, message: impl Into<String>) -> AdmissionError {
        AdmissionError::new(code, message).at(location(self.source, self.offset))
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The line and column of a byte offset, both counted from one, columns in characters.
fn location(source: &str, offset: usize) -> (usize, usize) {
    let before = source.get(..offset).unwrap_or(source);
    let (mut line, mut column, mut previous) = (1, 1, '\0');
    for character in before.chars() {
        match character {
            '\n' if previous == '\r' => {}
            '\n' | '\r' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
        previous = character;
    }
    (line, column)
}
