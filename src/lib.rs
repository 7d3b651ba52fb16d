//! fasttrack

pub mod db;
pub mod access;
pub mod error;
pub mod events;
pub mod id;
pub mod mail;
pub mod store;
pub mod time;
