//! fasttrack

pub mod access;
pub mod admission;
pub mod auth;
pub mod config;
pub mod db;
pub mod demo;
pub mod error;
pub mod events;
pub mod graphql;
pub mod http;
pub mod id;
pub mod jobs;
pub mod limits;
pub mod mail;
pub mod network;
pub mod store;
pub mod time;

use std::sync::Arc;

use auth::credential::Credentials;
use config::Config;
use db::Db;
use error::Result;
use events::hub::Hub;
use limits::Limits;
use time::Clock;

/// Everything that a running server shares.
pub struct App {
    /// The settings.
    pub config: Config,
    /// The present.
    pub clock: Clock,
    /// The database.
    pub db: Db,
    /// The live side of the event log.
    pub hub: Hub<store::event::Objects>,
    /// Passwords and tokens.
    pub credentials: Credentials,
    /// Rate limits.
    pub limits: Limits,
}

impl App {
    /// Opens the database and sets everything up; nothing runs yet.
    pub fn open(config: Config, clock: Clock) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            db: Db::open(&config.database, config.database_connections)?,
            hub: Hub::default(),
            credentials: Credentials::new(&config)?,
            limits: Limits::new(config.rate_limits),
            clock,
            config,
        }))
    }
}
