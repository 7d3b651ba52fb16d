//! Connections to a PostgreSQL server, over TLS as `sslmode` and `sslrootcert` in the URL say, in the words of libpq.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use diesel::{ConnectionError, ConnectionResult};
use diesel_async::AsyncPgConnection;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

use crate::error::Error;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(2);
/// After so long without a sign of life a connection is taken for dead.
const SILENCE: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A server, a database on it and how to reach it.
#[derive(Clone)]
pub struct Server {
    config: Config,
    tls: MakeRustlsConnect,
    verified: bool,
}

impl Server {
    /// Reads a connection URL. `sslmode` is one of
    ///
    /// - `disable`: no TLS,
    /// - `prefer`: TLS where the server has it, with whatever certificate it shows,
    /// - `require`: TLS or no connection, with whatever certificate it shows,
    /// - `verify-full`: TLS with a certificate in the host's name, by an authority that the system trusts, or of those in
    ///   the PEM file `sslrootcert`.
    ///
    /// Without it, it is `prefer`, but `disable` where nothing leaves the machine.
    pub fn parse(url: &str) -> Result<Self, Failure> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut authorities, mut rest) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match form_urlencoded::parse(pair.as_bytes()).next() {
                Some((name, value)) if name == "sslmode" => mode = Some(value.into_owned()),
                Some((name, value)) if name == "sslrootcert" => authorities = Some(value.into_owned()),
                _ => rest.push(pair),
            }
        }
        let mut config: Config = format!("{base}?{}", rest.join("&")).parse().map_err(|error| told(&error))?;
        // A server that is gone without a word is noticed: so long may what was sent stay unanswered by its kernel.
        config
            .connect_timeout(CONNECT)
            .tcp_user_timeout(SILENCE)
            .keepalives_idle(SILENCE)
            .keepalives_interval(SILENCE / 5);
        let verified = mode.as_deref() == Some("verify-full");
        config.ssl_mode(match mode.as_deref() {
            None if is_here(&config) => SslMode::Disable,
            None | Some("prefer") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require" | "verify-full") => SslMode::Require,
            Some(other) => {
                return Err(format!("sslmode must be disable, prefer, require or verify-full, not {other:?}").into());
            }
        });
        if authorities.is_some() && !verified {
            return Err("sslrootcert goes with sslmode=verify-full".into());
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = if verified {
            builder.with_root_certificates(roots(authorities.as_deref())?)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        };
        Ok(Self { config, tls: MakeRustlsConnect::new(builder.with_no_client_auth()), verified })
    }

    /// A connection for diesel.
    pub async fn connect(&self) -> ConnectionResult<AsyncPgConnection> {
        let (client, connection) = self.open().await.map_err(|error| ConnectionError::BadConnection(told(&error)))?;
        AsyncPgConnection::try_from_client_and_connection(client, connection).await
    }

    /// The same, and when it has ended.
    pub async fn connect_noting_its_end(&self) -> ConnectionResult<(AsyncPgConnection, CancellationToken)> {
        let (client, connection) = self.open().await.map_err(|error| ConnectionError::BadConnection(told(&error)))?;
        let ended = carried(connection);
        Ok((AsyncPgConnection::try_from(client).await?, ended))
    }

    /// A connection for what diesel does not have.
    pub async fn client(&self) -> Result<Client, Failure> {
        let (client, connection) = self.open().await.map_err(|error| told(&error))?;
        carried(connection);
        Ok(client)
    }

    /// Whether what is said leaves the machine, and somebody between could listen or answer.
    pub fn is_exposed(&self) -> bool {
        !self.verified && !is_here(&self.config)
    }

    async fn open(&self) -> Result<(Client, Connection<Socket, Stream>), tokio_postgres::Error> {
        self.config.connect(self.tls.clone()).await
    }
}

type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// Carries what is said on a connection, until it ends.
fn carried(connection: Connection<Socket, Stream>) -> CancellationToken {
    let ended = CancellationToken::new();
    let end = ended.clone().drop_guard();
    tokio::spawn(async move {
        let _end = end;
        if let Err(error) = connection.await {
            tracing::warn!(cause = %error, "lost the connection to PostgreSQL");
        }
    });
    ended
}

/// The driver's errors have their reason in what they come from.
fn told(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) if !error.to_string().contains(&cause.to_string()) => format!("{error}: {cause}"),
        _ => error.to_string(),
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::internal(told(&error))
    }
}

/// Whether every host is this machine.
fn is_here(config: &Config) -> bool {
    config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
        #[cfg(unix)]
        Host::Unix(_) => true,
    })
}

/// The authorities in a file, or those of the system.
fn roots(file: Option<&str>) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(path) => {
            let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
            for certificate in read().map_err(|error| format!("sslrootcert: {path}: {error}"))? {
                roots.add(certificate)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("sslmode=verify-full finds no certificate of an authority: name one by sslrootcert".into());
    }
    Ok(roots)
}

/// Takes any certificate: keeps out who only listens, not who stands between.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
