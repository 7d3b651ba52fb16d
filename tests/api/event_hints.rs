//! Hints between instances about new events, over Redis and over PostgreSQL.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use fasttrack::db::{Db, Location};
use fasttrack::events::hint::Hints;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{Database, PATIENCE, is_postgres};

/// Asserts that a hint of one instance reaches the other but not itself.
async fn hints_are_delivered(redis: Option<&str>) {
    let database = Database::fresh().await;
    let db = Db::open(&Location::parse(database.url()).expect("a database"), 4).expect("pools");
    let redis = redis.map(|url| redis::Client::open(url).expect("a URL"));
    let instance = || Arc::new(Hints::new(redis.clone()));
    let (one, other, stop) = (instance(), instance(), CancellationToken::new());
    let carrying =
        [&one, &other].map(|hints| tokio::spawn(Arc::clone(hints).run(db.clone(), stop.clone())));
    // Hints are best effort: one sent before the other instance listens is lost. Repeat until one
    // arrives.
    let heard = async {
        loop {
            one.send();
            if timeout(PATIENCE / 100, other.received()).await.is_ok() {
                break;
            }
        }
    };
    timeout(PATIENCE, heard).await.expect("a hint");
    assert!(
        timeout(PATIENCE / 100, one.received()).await.is_err(),
        "an instance does not receive its own hints"
    );
    stop.cancel();
    for carried in carrying {
        carried.await.expect("an end");
    }
    db.close().await;
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_travel_through_postgresql_notify() {
    // SQLite supports one instance only, which needs no hints.
    if is_postgres() {
        hints_are_delivered(None).await;
    }
}

/// A Redis server that is stopped at the end of the test.
struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        self.0.kill().expect("a process that runs");
        self.0.wait().expect("its end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_travel_through_redis() {
    // Runs where TEST_REDIS_URL is set, which implies that `redis-server` is installed. Uses a
    // server of its own, because all instances on a Redis receive each other's hints.
    if std::env::var("TEST_REDIS_URL").is_err() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("redis");
    let mut command = Command::new("redis-server");
    command
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(&socket)
        .stdout(Stdio::null());
    let _redis = Redis(command.spawn().expect("redis-server on the path"));
    hints_are_delivered(Some(&format!("redis+unix://{}", socket.display()))).await;
}
