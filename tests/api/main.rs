//! Integration tests of the whole server through its real router, sockets and database.
//!
//! They run on SQLite, or on PostgreSQL when `TEST_DATABASE_URL=postgres://…` names a server where
//! databases can be created. Each test has its own server and database; see [`harness`].

mod harness;

mod account;
mod account_deletion;
mod backup;
mod batch_execution;
mod canceled_statements;
mod comment;
mod concurrent_writes;
mod config;
mod connections;
mod consistency;
mod demo;
mod distributed_guessing;
mod doctor;
mod email_change;
mod end_to_end;
mod event;
mod event_hints;
mod event_log;
mod execution;
mod fair_share;
mod fragmented_bodies;
mod history;
mod http;
mod http_2;
mod label;
mod limits;
mod login;
mod mail;
mod memory;
mod metrics;
mod migrations;
mod move_to_postgres;
mod notification;
mod openapi;
mod operations;
mod pagination;
mod permission_races;
mod permissions;
mod project;
mod purge;
mod quota;
mod recovery;
mod search;
mod session;
mod slow_readers;
mod statements;
mod subscription;
mod task;
mod tls;
mod traces;
mod user;
mod websocket;
