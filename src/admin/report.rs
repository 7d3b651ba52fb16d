//! What a command found: one line each, with what to do about it.

use std::fmt;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but somebody should know.
    Warn,
    /// It does not work.
    Fail,
}

/// Findings, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Report(Vec<(Level, String)>);

impl Report {
    /// Notes that something is as it should be.
    pub fn ok(&mut self, what: impl Into<String>) {
        self.0.push((Level::Ok, what.into()));
    }

    /// Notes what somebody should know.
    pub fn warn(&mut self, what: impl Into<String>) {
        self.0.push((Level::Warn, what.into()));
    }

    /// Notes what does not work.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.0.push((Level::Fail, what.into()));
    }

    /// Notes one of two things: that it holds, or what to do about it.
    pub fn expect(&mut self, holds: bool, ok: impl Into<String>, warn: impl Into<String>) {
        if holds { self.ok(ok) } else { self.warn(warn) }
    }

    /// How bad the worst of it is.
    pub fn worst(&self) -> Level {
        self.0.iter().map(|(level, _)| *level).max().unwrap_or(Level::Ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (level, text) in &self.0 {
            let level = match level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "fail",
            };
            writeln!(f, "{level:<5} {text}")?;
        }
        Ok(())
    }
}
