//! What the database does about each noun: a read is one query, a write is one transaction that changes rows *and*
//! appends its event. Rights are asked of `access` where the row is read, inside the same transaction.

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

/// So many rows are cleared away at once, or a few more: others who write are not kept waiting.
pub const PURGE_BATCH: usize = 1_000;
