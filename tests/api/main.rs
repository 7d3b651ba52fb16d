//! Integration tests of the whole server through its real router, sockets and database.
//!
//! They run on SQLite, or on PostgreSQL when `TEST_DATABASE_URL=postgres://…` names a server where
//! databases can be created. Each test has its own server and database; see [`harness`].

mod harness;

mod access;
mod account;
mod account_deletion;
mod backup;
mod batch;
mod bodies;
mod cancelled_statements;
mod comment;
mod config;
mod connections;
mod demo;
mod docs;
mod doctor;
mod document;
mod email_change;
mod event;
mod event_hints;
mod fair_share;
mod feed;
mod guessing;
mod history;
mod http;
mod http_2;
mod journey;
mod label;
mod limits;
mod login;
mod mail;
mod memory;
mod metrics;
mod notification;
mod operations;
mod paging;
mod project;
mod purge;
mod quota;
mod race;
mod recovery;
mod relocate;
mod rights_race;
mod schema;
mod search;
mod session;
mod statements;
mod subscription;
mod task;
mod tls;
mod traces;
mod unread;
mod upgrade;
mod user;
mod websocket;
