//! PostgreSQL and Redis over TLS. A TLS-terminating proxy in front of the test's PostgreSQL
//! presents the test's own certificate.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fasttrack::db::{Db, Location, postgres};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use url::Url;

use crate::harness::{Database, Program, fasttrack};

/// PostgreSQL's SSLRequest message, which precedes the TLS handshake.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

struct Front {
    port: u16,
    /// The self-signed certificate in PEM.
    certificate: String,
    handshakes: Arc<AtomicUsize>,
}

impl Front {
    /// Starts a proxy in front of a server. Without `tls` it answers SSLRequest with a refusal.
    async fn before(server: &Url, tls: bool) -> Self {
        let behind = (
            server.host_str().expect("a host").to_owned(),
            server.port().unwrap_or(5432),
        );
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a certificate and its key");
        let acceptor = tls.then(|| TlsAcceptor::from(Arc::new(config)));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let handshakes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&handshakes);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, behind, counted) =
                    (acceptor.clone(), behind.clone(), Arc::clone(&counted));
                tokio::spawn(async move { pass_on(client, acceptor, behind, &counted).await });
            }
        });
        Self {
            port,
            certificate: made.cert.pem(),
            handshakes,
        }
    }
}

async fn pass_on(
    mut client: TcpStream,
    acceptor: Option<TlsAcceptor>,
    behind: (String, u16),
    handshakes: &AtomicUsize,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(behind).await?;
    let mut begin = [0; 8];
    client.read_exact(&mut begin).await?;
    match acceptor {
        Some(acceptor) if begin == SSL_REQUEST => {
            client.write_all(b"S").await?;
            let mut client = acceptor.accept(client).await?;
            handshakes.fetch_add(1, Ordering::SeqCst);
            copy_bidirectional(&mut client, &mut server).await?;
        }
        _ => {
            if begin == SSL_REQUEST {
                client.write_all(b"N").await?;
            } else {
                server.write_all(&begin).await?;
            }
            copy_bidirectional(&mut client, &mut server).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn sslmode_controls_tls_to_postgresql() {
    let Some(database) = Database::bare().await else {
        return;
    };
    let server: Url = database.url().parse().expect("a URL");
    let (front, plain) = (
        Front::before(&server, true).await,
        Front::before(&server, false).await,
    );
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pem = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let (ours, other) = (
        pem("ours.pem", &front.certificate),
        pem("other.pem", &plain.certificate),
    );
    let reach = async |port: u16, host: &str, words: &str| {
        let mut url = server.clone();
        url.set_host(Some(host)).expect("a host");
        url.set_port(Some(port)).expect("a port");
        let url = format!("{url}&{words}");
        let before = front.handshakes.load(Ordering::SeqCst);
        let client = match postgres::PgConnector::parse(&url)
            .expect("a URL")
            .client()
            .await
        {
            Err(error) => return error.to_string(),
            Ok(client) => client,
        };
        let told = if front.handshakes.load(Ordering::SeqCst) > before {
            "TLS"
        } else {
            "plain"
        };
        let answer: String = client
            .query_one("SELECT current_database()::text", &[])
            .await
            .expect("an answer")
            .get(0);
        assert_eq!(format!("/{answer}"), server.path());
        let pool = Db::open(&Location::Postgres(url), 1).expect("a database");
        drop(pool.conn().await.expect("a connection through the pool"));
        told.to_owned()
    };
    let verified = |file: &str| format!("sslmode=verify-full&sslrootcert={file}");

    assert_eq!(
        reach(front.port, "localhost", "").await,
        "plain",
        "loopback needs no TLS"
    );
    assert_eq!(
        reach(front.port, "localhost", "sslmode=disable").await,
        "plain"
    );
    assert_eq!(
        reach(front.port, "localhost", "sslmode=prefer").await,
        "TLS"
    );
    assert_eq!(
        reach(front.port, "127.0.0.1", "sslmode=require").await,
        "TLS"
    );
    assert_eq!(
        reach(front.port, "localhost", &verified(&ours)).await,
        "TLS"
    );
    assert_eq!(
        reach(plain.port, "localhost", "sslmode=prefer").await,
        "plain"
    );

    let refused = async |port: u16, host: &str, words: &str, why: &str| {
        let told = reach(port, host, words).await;
        assert!(told.contains(why), "{words}: {told}");
    };
    refused(
        plain.port,
        "localhost",
        "sslmode=require",
        "does not support TLS",
    )
    .await;
    refused(
        plain.port,
        "localhost",
        &verified(&other),
        "does not support TLS",
    )
    .await;
    refused(front.port, "localhost", &verified(&other), "certificate").await;
    refused(
        front.port,
        "127.0.0.1",
        &verified(&ours),
        "not valid for name",
    )
    .await;
    refused(
        front.port,
        "localhost",
        "sslmode=verify-full",
        "certificate",
    )
    .await;
    database.remove().await;
}

#[test]
fn invalid_tls_parameters_are_refused() {
    let refused = |words: &str| {
        let parsed =
            postgres::PgConnector::parse(&format!("postgres://u:secret@db.example.org/db?{words}"));
        let told = parsed
            .err()
            .unwrap_or_else(|| panic!("{words} is refused"))
            .to_string();
        assert!(!told.contains("secret"), "{told}");
        told
    };
    assert!(refused("sslmode=verify-ca").contains("verify-full"));
    assert!(refused("sslmode=require&sslrootcert=/ca.pem").contains("verify-full"));
    assert!(
        refused("sslmode=verify-full&sslrootcert=/nothing/here.pem").contains("/nothing/here.pem")
    );
    assert!(refused("unheard=of").contains("unheard"));
    postgres::PgConnector::parse("postgres://db.example.org/db?sslmode=verify-full")
        .map(drop)
        .unwrap_or_else(|told| {
            assert!(
                told.to_string().contains("authority"),
                "a system without root certificates: {told}"
            );
        });
}

#[tokio::test]
async fn rediss_verifies_the_certificate() {
    if std::process::Command::new("redis-server")
        .arg("--version")
        .output()
        .is_err()
    {
        assert!(std::env::var_os("CI").is_none(), "redis-server is missing");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("another");
    let (certificate, key) = (
        write("ours.pem", made.cert.pem()),
        write("key.pem", made.signing_key.serialize_pem()),
    );
    let stranger = write("other.pem", other.cert.pem());
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port")
        .local_addr()
        .expect("it")
        .port();
    let tls = [
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "no",
    ];
    let redis = Program::start(
        std::process::Command::new("redis-server")
            .args([
                "--port",
                "0",
                "--tls-port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ])
            .args([
                "--appendonly",
                "no",
                "--dir",
                &directory.path().display().to_string(),
            ])
            .args(tls),
    );
    redis.line("Ready to accept connections");

    let doctor = |url: String, authority: &str| {
        let settings = [
            ("REDIS_URL", url.as_str()),
            ("SSL_CERT_FILE", authority),
            ("RUST_LOG", "off"),
        ];
        let output = fasttrack(directory.path(), &settings)
            .arg("doctor")
            .output()
            .expect("its output");
        String::from_utf8(output.stdout).expect("text")
    };
    let told = doctor(format!("rediss://localhost:{port}"), &certificate);
    assert!(told.contains("Redis responds"), "{told}");
    for (url, authority) in [
        (format!("rediss://localhost:{port}"), stranger.as_str()),
        (format!("rediss://127.0.0.1:{port}"), &certificate),
        (format!("redis://localhost:{port}"), &certificate),
        (format!("rediss://localhost:{port}/#insecure"), &stranger),
    ] {
        let told = doctor(url.clone(), authority);
        assert!(
            !told.contains("Redis responds") && told.contains("fail"),
            "{url}: {told}"
        );
    }

    // Two instances share rate limits through this Redis.
    let url = format!("rediss://localhost:{port}");
    let settings = [
        ("REDIS_URL", url.as_str()),
        ("SSL_CERT_FILE", &certificate),
        ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", "2"),
    ];
    let mut statuses = Vec::new();
    for name in ["one", "other"] {
        let home = directory.path().join(name);
        std::fs::create_dir(&home).expect("a directory");
        let (_server, address) = Program::server(&home, &settings);
        for _ in 0..2 {
            let login = reqwest::Client::new().post(format!("http://{address}/auth/verify-email"));
            let answer = login
                .json(&serde_json::json!({ "token": "x" }))
                .send()
                .await
                .expect("an answer");
            statuses.push(answer.status().as_u16());
        }
    }
    assert_eq!(statuses, [422, 422, 429, 429]);
}
