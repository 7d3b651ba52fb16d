//! The tests of the whole server, through its real router, sockets and database.
//!
//! They run on SQLite, and on PostgreSQL when `TEST_DATABASE_URL=postgres://…` names a server on which databases may be
//! made. Each test has a server and a database of its own; see [`harness`].

mod harness;

mod http;
mod journey;
mod leaving;
mod limits;
mod login;
mod recovery;
mod relay;
mod session;
mod websocket;
