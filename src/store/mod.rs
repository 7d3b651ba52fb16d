//! Queries and transactions, one module per domain object. A read is one query; a write is one
//! transaction that changes the rows and appends the events. Permissions are checked with `access`
//! on the row that was read, in the same transaction.

pub mod account;
pub mod audit;
pub mod comment;
pub mod email_change;
pub mod event;
pub mod export;
pub mod history;
pub mod label;
pub mod lockout;
pub mod mail;
pub mod mail_quota;
pub mod mention;
pub mod notification;
pub mod password;
pub mod project;
pub mod quota;
pub mod search;
pub mod session;
pub mod task;
pub mod task_list;
pub mod token;
pub mod user;
pub mod username_change;
pub mod value;

/// Rows deleted per transaction of a purge, approximately. Small, so that other writers do not wait
/// long.
pub const PURGE_BATCH: usize = 1_000;
