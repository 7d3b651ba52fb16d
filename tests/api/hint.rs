//! Hints between instances, by each of the ways there are.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use fasttrack::db::{Db, Location};
use fasttrack::events::hint::Hints;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{Database, PATIENCE, is_postgres};

/// What one instance says another hears, and does not hear itself.
async fn carried(redis: Option<&str>) {
    let database = Database::fresh().await;
    let db = Db::open(&Location::parse(database.url()).expect("a database"), 4).expect("pools");
    let redis = redis.map(|url| redis::Client::open(url).expect("a URL"));
    let instance = || Arc::new(Hints::new(redis.clone()));
    let (one, other, stop) = (instance(), instance(), CancellationToken::new());
    let carrying = [&one, &other].map(|hints| tokio::spawn(Arc::clone(hints).carry(db.clone(), stop.clone())));
    // What is said before anybody listens is lost, as it may be: said again, it arrives.
    let heard = async {
        loop {
            one.tell();
            if timeout(PATIENCE / 100, other.heard()).await.is_ok() {
                break;
            }
        }
    };
    timeout(PATIENCE, heard).await.expect("a hint");
    assert!(timeout(PATIENCE / 100, one.heard()).await.is_err(), "nobody is told what they said themselves");
    stop.cancel();
    for carried in carrying {
        carried.await.expect("an end");
    }
    db.close().await;
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_carries_hints() {
    // SQLite has one instance, which needs none.
    if is_postgres() {
        carried(None).await;
    }
}

/// A Redis that ends with its test.
struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        self.0.kill().expect("a process that runs");
        self.0.wait().expect("its end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_carries_hints() {
    // Needs `redis-server`, as what TEST_REDIS_URL names does. All servers on a Redis hear one another, so it is another.
    if std::env::var("TEST_REDIS_URL").is_err() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("redis");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket).stdout(Stdio::null());
    let _redis = Redis(command.spawn().expect("redis-server on the path"));
    carried(Some(&format!("redis+unix://{}", socket.display()))).await;
}
