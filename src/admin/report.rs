//! The report of a check: one finding per line, with a remedy.

use std::fmt;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Ok,
    /// It works, but with a risk.
    Warn,
    /// It does not work.
    Fail,
}

/// Findings in order of discovery.
#[derive(Debug, Default)]
pub struct Report(Vec<(Severity, String)>);

impl Report {
    pub fn ok(&mut self, what: impl Into<String>) {
        self.0.push((Severity::Ok, what.into()));
    }

    pub fn warn(&mut self, what: impl Into<String>) {
        self.0.push((Severity::Warn, what.into()));
    }

    pub fn fail(&mut self, what: impl Into<String>) {
        self.0.push((Severity::Fail, what.into()));
    }

    /// Adds `ok` if the condition holds, otherwise the warning.
    pub fn check(&mut self, holds: bool, ok: impl Into<String>, warn: impl Into<String>) {
        if holds { self.ok(ok) } else { self.warn(warn) }
    }

    /// The highest severity of all findings.
    pub fn worst(&self) -> Severity {
        self.0
            .iter()
            .map(|(level, _)| *level)
            .max()
            .unwrap_or(Severity::Ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (level, text) in &self.0 {
            let level = match level {
                Severity::Ok => "ok",
                Severity::Warn => "warn",
                Severity::Fail => "fail",
            };
            writeln!(f, "{level:<5} {text}")?;
        }
        Ok(())
    }
}
