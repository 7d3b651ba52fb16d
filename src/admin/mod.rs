//! Operator commands: backup, move to PostgreSQL, and checks of settings and environment.
//!
//! Errors are shown to the operator in full, so they are
//! [`Error::Internal`](crate::error::Error::Internal) with their text.

pub mod backup;
pub mod doctor;
pub mod relocate;
pub mod report;
pub mod settings;
