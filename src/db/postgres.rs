//! Connections to PostgreSQL. TLS follows `sslmode` and `sslrootcert` in the URL, as in libpq.

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

/// Timeout for establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection whose peer is silent for this long is considered dead.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connection parameters of a database.
#[derive(Clone)]
pub struct PgConnector {
    config: Config,
    tls: MakeRustlsConnect,
    verified: bool,
}

impl PgConnector {
    /// Parses a connection URL. `sslmode` is one of
    ///
    /// - `disable`: no TLS
    /// - `prefer`: TLS if the server offers it, with any certificate
    /// - `require`: TLS required, with any certificate
    /// - `verify-full`: TLS with a certificate for the host's name, signed by an authority that the
    ///   system trusts, or by one in the PEM file `sslrootcert`
    ///
    /// The default is `disable` for a loopback address or a socket, and `prefer` elsewhere.
    pub fn parse(url: &str) -> Result<Self, BoxError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut authorities, mut rest) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match form_urlencoded::parse(pair.as_bytes()).next() {
                Some((name, value)) if name == "sslmode" => mode = Some(value.into_owned()),
                Some((name, value)) if name == "sslrootcert" => {
                    authorities = Some(value.into_owned())
                }
                _ => rest.push(pair),
            }
        }
        let mut config: Config = format!("{base}?{}", rest.join("&"))
            .parse()
            .map_err(|error| error_with_source(&error))?;
        // Detects a server that vanished: the time that sent data may stay unacknowledged.
        config
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(PEER_TIMEOUT)
            .keepalives_idle(PEER_TIMEOUT)
            .keepalives_interval(PEER_TIMEOUT / 5);
        let verified = mode.as_deref() == Some("verify-full");
        config.ssl_mode(match mode.as_deref() {
            None if is_local(&config) => SslMode::Disable,
            None | Some("prefer") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require" | "verify-full") => SslMode::Require,
            Some(other) => {
                return Err(format!(
                    "sslmode must be disable, prefer, require or verify-full, not {other:?}"
                )
                .into());
            }
        });
        if authorities.is_some() && !verified {
            return Err("sslrootcert requires sslmode=verify-full".into());
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = if verified {
            builder.with_root_certificates(roots(authorities.as_deref())?)
        } else {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
        };
        Ok(Self {
            config,
            tls: MakeRustlsConnect::new(builder.with_no_client_auth()),
            verified,
        })
    }

    /// Connects for diesel.
    pub async fn connect(&self) -> ConnectionResult<AsyncPgConnection> {
        let (client, connection) = self
            .open()
            .await
            .map_err(|error| ConnectionError::BadConnection(error_with_source(&error)))?;
        AsyncPgConnection::try_from_client_and_connection(client, connection).await
    }

    /// Connects for diesel, and returns a token that is cancelled when the connection ends.
    pub async fn connect_with_end_token(
        &self,
    ) -> ConnectionResult<(AsyncPgConnection, CancellationToken)> {
        let (client, connection) = self
            .open()
            .await
            .map_err(|error| ConnectionError::BadConnection(error_with_source(&error)))?;
        let ended = spawn_driver(connection);
        Ok((AsyncPgConnection::try_from(client).await?, ended))
    }

    /// Connects with the plain driver, for features that diesel lacks, such as COPY.
    pub async fn client(&self) -> Result<Client, BoxError> {
        let (client, connection) = self
            .open()
            .await
            .map_err(|error| error_with_source(&error))?;
        spawn_driver(connection);
        Ok(client)
    }

    /// Whether traffic leaves the machine without a verified certificate.
    pub fn is_unverified(&self) -> bool {
        !self.verified && !is_local(&self.config)
    }

    async fn open(&self) -> Result<(Client, Connection<Socket, TlsStream>), tokio_postgres::Error> {
        self.config.connect(self.tls.clone()).await
    }
}

type TlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// Drives a connection until it ends.
fn spawn_driver(connection: Connection<Socket, TlsStream>) -> CancellationToken {
    let ended = CancellationToken::new();
    let end = ended.clone().drop_guard();
    tokio::spawn(async move {
        let _end = end;
        if let Err(error) = connection.await {
            tracing::warn!(cause = %error, "PostgreSQL connection lost");
        }
    });
    ended
}

/// The message of a driver error with its cause, which the driver keeps in `source`.
fn error_with_source(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) if !error.to_string().contains(&cause.to_string()) => {
            format!("{error}: {cause}")
        }
        _ => error.to_string(),
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::internal(error_with_source(&error))
    }
}

/// Whether every host is local.
fn is_local(config: &Config) -> bool {
    config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => {
            name == "localhost"
                || name
                    .parse()
                    .is_ok_and(|address: IpAddr| address.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    })
}

/// The root certificates of a file, or of the system.
fn roots(file: Option<&str>) -> Result<RootCertStore, BoxError> {
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
        return Err("sslmode=verify-full found no root certificate: set sslrootcert".into());
    }
    Ok(roots)
}

/// Accepts any certificate: protects against eavesdroppers, not against an active attacker.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
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
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
