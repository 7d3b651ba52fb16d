//! Password hashes and tokens.
//!
//! An access token is a JWT (RFC 7519, only HS256, `typ` `at+jwt` per RFC 9068) that names a user
//! and a session, but no permission. A refresh token is an HMAC over the seed, id and generation of
//! its session under a separate key, so nothing stored in the database can be used as one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::{constant_time, digest, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::ToSchema;

use crate::config::{Config, HashCost};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::metrics;
use crate::store::password::{MAX_LENGTH, Password};
use crate::store::session::Session;
use crate::time::Timestamp;

const ISSUER: &str = "fasttrack";
const TOKEN_TYPE: &str = "at+jwt";
/// Seconds that the clock of the issuing instance may be ahead.
const CLOCK_LEEWAY_SECONDS: i64 = 5;
/// How long a device token is valid after the last login.
pub const DEVICE_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// Password hashes that may run or wait at once. Only a running hash uses the configured memory.
const MAX_QUEUED_HASHES: usize = 64;
/// Capacity of the cache of verified access tokens, at about 400 bytes each.
const MAX_CACHED_TOKENS: usize = 10_000;

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: Id,
    sid: Id,
    jti: Id,
    iat: i64,
    nbf: i64,
    exp: i64,
}

/// The content of an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessClaims {
    pub user_id: Id,
    pub session_id: Id,
    pub expires_at: Timestamp,
}

/// The tokens of a session, in the format of RFC 6749 section 5.1.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tokens {
    /// The access token. Send it as `Authorization: Bearer <token>`.
    access_token: String,
    /// The refresh token. It can be exchanged once for a new pair of tokens.
    refresh_token: String,
    /// Always `bearer`.
    token_type: &'static str,
    /// Lifetime of the access token, in seconds.
    expires_in: u64,
    /// Returned by login, not by refresh. Sent with later logins, it proves that the owner of the
    /// account has logged in on this device before, so that failed logins by others cannot lock the
    /// device out. Browsers receive it as a cookie too. It is not a credential. It is valid for one
    /// year or until the password changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_token: Option<String>,
}

/// Hashes and verifies passwords, issues and verifies tokens. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<CredentialsInner>);

struct CredentialsInner {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    refresh: hmac::Key,
    device: hmac::Key,
    email_change: hmac::Key,
    access_lifetime: Duration,
    argon2: Argon2<'static>,
    /// Compared with the password if there is no account, to take the same time.
    dummy_hash: String,
    hash_permits: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    cores: usize,
    refused: Counter,
    seconds: Histogram,
    /// Cache of access tokens with a verified signature.
    verified_tokens: Mutex<HashMap<Box<str>, CachedClaims>>,
}

/// The claims of a token with a verified signature. The validity period is checked on every use.
#[derive(Clone, Copy)]
struct CachedClaims {
    user_id: Id,
    session_id: Id,
    not_before: i64,
    expires: i64,
}

impl CachedClaims {
    const fn is_valid_at(&self, now: i64) -> bool {
        self.not_before - CLOCK_LEEWAY_SECONDS <= now && now < self.expires
    }
}

impl Credentials {
    /// Derives the keys and configures the password hash.
    pub fn new(config: &Config) -> Result<Self> {
        let HashCost {
            memory_kib,
            passes,
            lanes,
        } = config.hash_cost;
        let params = Params::new(memory_kib, passes, lanes, None)
            .map_err(|error| Error::internal(error.to_string()))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let decoy = dummy_hash(argon2.params())?;
        let mut validation = Validation::new(jsonwebtoken::Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        // Checked in `CachedClaims::is_valid_at` against the clock of the server.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let refresh = hmac::Key::new(hmac::HMAC_SHA256, config.refresh_secret_key.expose());
        let derived =
            |use_: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&refresh, use_).as_ref());
        // Half of the cores, so that a burst of logins leaves the other half to other work.
        let cores = (std::thread::available_parallelism().map_or(2, usize::from) / 2).max(1);
        Ok(Self(Arc::new(CredentialsInner {
            encoding: EncodingKey::from_secret(config.secret_key.expose()),
            decoding: DecodingKey::from_secret(config.secret_key.expose()),
            validation,
            device: derived(b"device tokens"),
            email_change: derived(b"links that take an e-mail change back"),
            refresh,
            access_lifetime: config.access_lifetime,
            argon2,
            dummy_hash: decoy,
            hash_permits: Arc::new(Semaphore::new(cores)),
            queue: Arc::new(Semaphore::new(MAX_QUEUED_HASHES)),
            cores,
            refused: Counter::default(),
            seconds: metrics::duration_histogram(),
            verified_tokens: Mutex::default(),
        })))
    }

    pub async fn hash(&self, password: &Password) -> Result<String> {
        let password = password.to_string();
        self.run(move |inner| hash(&inner.argon2, &password))
            .await?
    }

    /// Verifies a password. Without a hash, or with one of a lower cost, it takes the same time.
    pub async fn verify(&self, password: &str, hash: Option<&str>) -> Result<bool> {
        if password.chars().take(MAX_LENGTH + 1).count() > MAX_LENGTH {
            return Ok(false);
        }
        let (password, hash) = (password.to_owned(), hash.map(ToOwned::to_owned));
        self.run(move |inner| {
            let parsed = PasswordHash::new(hash.as_deref().unwrap_or(&inner.dummy_hash));
            let parsed = parsed.map_err(|error| Error::internal(error.to_string()))?;
            let is_right = inner
                .argon2
                .verify_password(password.as_bytes(), &parsed)
                .is_ok()
                && hash.is_some();
            // Otherwise a quick answer would reveal an account that is older than the current cost.
            // Also after a right password, because not every one of them is admitted.
            let stored = Params::try_from(&parsed).ok();
            if let Some(rest) =
                stored.and_then(|stored| remaining_work(&stored, inner.argon2.params()))
            {
                let decoy = dummy_hash(&rest)?;
                let decoy = PasswordHash::new(&decoy)
                    .map_err(|error| Error::internal(error.to_string()))?;
                let _ = inner.argon2.verify_password(password.as_bytes(), &decoy);
            }
            Ok(is_right)
        })
        .await?
    }

    /// Whether a hash has lower cost parameters than configured now.
    pub fn is_outdated(&self, hash: &str) -> bool {
        let params = PasswordHash::new(hash)
            .ok()
            .and_then(|parsed| Params::try_from(&parsed).ok());
        let now = self.0.argon2.params();
        params.is_some_and(|old| {
            old.m_cost() < now.m_cost()
                || old.t_cost() < now.t_cost()
                || old.p_cost() < now.p_cost()
        })
    }

    /// Hashes a verified password again, with the current cost parameters.
    pub async fn rehash(&self, password: &str) -> Result<String> {
        let password = password.to_owned();
        self.run(move |inner| hash(&inner.argon2, &password))
            .await?
    }

    /// Runs a hash on a blocking thread, with limited concurrency. Fails at once if too many are
    /// waiting.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&CredentialsInner) -> T + Send + 'static,
    ) -> Result<T> {
        let since = Instant::now();
        let queued = Arc::clone(&self.0.queue).try_acquire_owned().map_err(|_| {
            self.0.refused.inc();
            Error::unavailable()
        })?;
        let running = Arc::clone(&self.0.hash_permits)
            .acquire_owned()
            .await
            .map_err(Error::internal)?;
        let inner = Arc::clone(&self.0);
        // The permits move into the closure, so that a cancelled caller does not free them before
        // the work is done.
        let done = tokio::task::spawn_blocking(move || {
            let _permits = (queued, running);
            work(&inner)
        });
        let done = done.await.map_err(Error::internal);
        self.0.seconds.observe(since.elapsed().as_secs_f64());
        done
    }

    /// Number of hashes that run, and that wait.
    pub fn hash_load(&self) -> (usize, usize) {
        let running = self.0.cores - self.0.hash_permits.available_permits();
        (
            running,
            (MAX_QUEUED_HASHES - self.0.queue.available_permits()).saturating_sub(running),
        )
    }

    /// Hashes rejected because too many were waiting.
    pub fn refused(&self) -> &Counter {
        &self.0.refused
    }

    /// Duration of hashes, including their wait.
    pub fn hash_seconds(&self) -> &Histogram {
        &self.0.seconds
    }

    /// Issues the tokens for the current generation of a session.
    pub fn issue_tokens(&self, now: Timestamp, session: &Session) -> Result<Tokens> {
        let expires_at = now.plus(self.0.access_lifetime).min(session.expires_at);
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: ISSUER.to_owned(),
            sub: session.user_id,
            sid: session.id,
            jti: Id::new(),
            iat: now.seconds(),
            nbf: now.seconds(),
            exp: expires_at.seconds(),
        };
        let header = Header {
            typ: Some(TOKEN_TYPE.to_owned()),
            ..Header::default()
        };
        Ok(Tokens {
            access_token: jsonwebtoken::encode(&header, &claims, &self.0.encoding)
                .map_err(Error::internal)?,
            refresh_token: self.refresh_token(session),
            token_type: "bearer",
            expires_in: expires_at.since(now).as_secs(),
            device_token: None,
        })
    }

    /// The content of an access token, if it is genuine and within its validity period.
    pub fn verify_access(&self, now: Timestamp, token: &str) -> Option<AccessClaims> {
        let known = self.verified_tokens().get(token).copied();
        let claimed = match known {
            Some(claimed) => claimed,
            None => self.verify_jwt(now, token)?,
        };
        let expires_at = Timestamp::from_micros(claimed.expires.saturating_mul(1_000_000));
        let CachedClaims {
            user_id,
            session_id,
            ..
        } = claimed;
        claimed.is_valid_at(now.seconds()).then_some(AccessClaims {
            user_id,
            session_id,
            expires_at,
        })
    }

    fn verify_jwt(&self, now: Timestamp, token: &str) -> Option<CachedClaims> {
        let data =
            jsonwebtoken::decode::<Claims>(token, &self.0.decoding, &self.0.validation).ok()?;
        if data.header.typ.as_deref() != Some(TOKEN_TYPE) {
            return None;
        }
        let Claims {
            sub, sid, nbf, exp, ..
        } = data.claims;
        let claimed = CachedClaims {
            user_id: sub,
            session_id: sid,
            not_before: nbf,
            expires: exp,
        };
        if claimed.is_valid_at(now.seconds()) {
            let mut genuine = self.verified_tokens();
            if genuine.len() >= MAX_CACHED_TOKENS {
                genuine.clear();
            }
            genuine.insert(token.into(), claimed);
        }
        Some(claimed)
    }

    fn verified_tokens(&self) -> MutexGuard<'_, HashMap<Box<str>, CachedClaims>> {
        self.0
            .verified_tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn refresh_token(&self, session: &Session) -> String {
        let mut token = Vec::with_capacity(52);
        token.extend_from_slice(session.id.as_bytes());
        token.extend_from_slice(&session.generation.to_be_bytes());
        token.extend_from_slice(self.refresh_tag(session, session.generation).as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    fn refresh_tag(&self, session: &Session, generation: i32) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0.refresh);
        context.update(&session.seed);
        context.update(session.id.as_bytes());
        context.update(&generation.to_be_bytes());
        context.sign()
    }

    /// Whether a refresh token was issued for this session.
    pub fn verify_refresh(&self, session: &Session, token: &RefreshToken) -> bool {
        let tag = self.refresh_tag(session, token.generation);
        constant_time::verify_slices_are_equal(tag.as_ref(), &token.tag).is_ok()
    }
}

impl Credentials {
    /// A hash that no password matches. It disables login until a password is set.
    pub fn unusable_hash(&self) -> Result<String> {
        dummy_hash(self.0.argon2.params())
    }

    /// Issues a device token, which proves that the owner of an account has logged in on a device.
    /// A password change invalidates it, because others who knew the old password may have one too.
    pub fn device_token(
        &self,
        now: Timestamp,
        device: Id,
        user_id: Id,
        password_hash: &str,
    ) -> String {
        let mut token = Vec::with_capacity(DEVICE_TOKEN_BYTES);
        token.extend_from_slice(device.as_bytes());
        token.extend_from_slice(&now.seconds().to_be_bytes());
        token.extend_from_slice(self.device_tag(&token, user_id, password_hash).as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// The device of a valid device token for this account.
    pub fn known_device(
        &self,
        now: Timestamp,
        token: &str,
        user_id: Id,
        password_hash: &str,
    ) -> Option<Id> {
        let token: [u8; DEVICE_TOKEN_BYTES] =
            URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
        let (claims, tag) = token.split_at(24);
        constant_time::verify_slices_are_equal(
            self.device_tag(claims, user_id, password_hash).as_ref(),
            tag,
        )
        .ok()?;
        let issued = i64::from_be_bytes(claims[16..].try_into().ok()?);
        let expires =
            Timestamp::from_micros(issued.saturating_mul(1_000_000)).plus(DEVICE_LIFETIME);
        (now < expires).then_some(Id::from_bytes(claims[..16].try_into().ok()?))
    }

    fn device_tag(&self, claims: &[u8], user_id: Id, password_hash: &str) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0.device);
        context.update(claims);
        context.update(user_id.as_bytes());
        context.update(password_hash.as_bytes());
        context.sign()
    }

    /// Token of the link that cancels an e-mail address change. It is derived and not stored, so
    /// that a mail that is sent again contains the same token.
    pub fn email_change_token(&self, id: Id) -> String {
        let mut token = id.as_bytes().to_vec();
        token.extend_from_slice(hmac::sign(&self.0.email_change, id.as_bytes()).as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// The address change that a token cancels, if it is genuine.
    pub fn verify_email_change(&self, token: &str) -> Option<Id> {
        let token: [u8; 48] = URL_SAFE_NO_PAD.decode(token.trim()).ok()?.try_into().ok()?;
        let (id, tag) = token.split_at(16);
        hmac::verify(&self.0.email_change, id, tag).ok()?;
        Some(Id::from_bytes(id.try_into().ok()?))
    }
}

/// Size of a device token, in bytes: device id, issue time and tag.
const DEVICE_TOKEN_BYTES: usize = 16 + 8 + 32;

/// A parsed refresh token, not verified yet.
#[derive(Debug)]
pub struct RefreshToken {
    pub session_id: Id,
    pub generation: i32,
    tag: [u8; 32],
}

impl RefreshToken {
    /// Parses a token.
    pub fn parse(token: &str) -> Option<Self> {
        let bytes: [u8; 52] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
        Some(Self {
            session_id: Id::from_bytes(bytes[..16].try_into().ok()?),
            generation: i32::from_be_bytes(bytes[16..20].try_into().ok()?),
            tag: bytes[20..].try_into().ok()?,
        })
    }
}

/// A mailed token: 256 random bits. Only its hash is stored.
pub struct MailToken(String);

impl MailToken {
    /// Generates a token.
    pub fn new() -> Result<Self> {
        Ok(Self(URL_SAFE_NO_PAD.encode(random()?)))
    }

    /// A token from a request.
    pub fn from_input(token: &str) -> Self {
        Self(token.trim().to_owned())
    }

    /// The hash to store.
    pub fn hash(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, self.0.as_bytes())
            .as_ref()
            .to_vec()
    }

    /// The token itself, for the mail only.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// 32 random bytes.
pub fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(Error::internal)?;
    Ok(bytes)
}

/// A hash that no password matches, with the same cost parameters as any other. It is random
/// instead of computed, because hashing at startup would take its full memory.
fn dummy_hash(params: &Params) -> Result<String> {
    let (salt, hash) = (
        STANDARD_NO_PAD.encode(&random()?[..16]),
        STANDARD_NO_PAD.encode(random()?),
    );
    let (memory, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
    Ok(format!(
        "$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${hash}"
    ))
}

/// Parameters of a hash that costs as much as the current ones do beyond the stored ones; `None` if
/// that is nothing. The time of argon2 is proportional to memory times passes.
fn remaining_work(stored: &Params, current: &Params) -> Option<Params> {
    let blocks = |params: &Params| u64::from(params.m_cost()) * u64::from(params.t_cost());
    let remaining = blocks(current).checked_sub(blocks(stored))?;
    let memory = u32::try_from(remaining / u64::from(current.t_cost())).ok()?;
    Params::new(memory, current.t_cost(), current.p_cost(), None).ok()
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String> {
    let hash = argon2.hash_password(password.as_bytes());
    Ok(hash
        .map_err(|error| Error::internal(error.to_string()))?
        .to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outdated_hash_costs_as_much_as_a_current_one() {
        let params = |memory, passes| Params::new(memory, passes, 1, None).expect("a cost");
        let work = |params: &Params| params.m_cost() * params.t_cost();
        let current = params(64 * 1024, 3);
        for stored in [
            params(8, 1),
            params(19 * 1024, 2),
            params(64 * 1024, 2),
            params(100_001, 1),
        ] {
            let rest = remaining_work(&stored, &current).expect("more work");
            let sum = work(&stored) + work(&rest);
            assert!(
                work(&current) - sum < current.t_cost(),
                "{sum} of {}",
                work(&current)
            );
        }
        for stored in [
            params(64 * 1024, 3),
            params(64 * 1024, 4),
            params(512 * 1024, 1),
        ] {
            assert!(
                remaining_work(&stored, &current).is_none(),
                "the stored hash alone takes as long, or longer"
            );
        }
    }

    #[test]
    fn where_there_is_no_account_a_password_is_compared_with_a_hash_of_the_same_cost() {
        let params = Params::new(64, 3, 2, None).expect("a cost");
        let hash = dummy_hash(&params).expect("a hash");
        let parsed = PasswordHash::new(&hash).expect("one that can be read");
        let read = Params::try_from(&parsed).expect("its cost");
        assert_eq!((read.m_cost(), read.t_cost(), read.p_cost()), (64, 3, 2));
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        assert!(argon2.verify_password(b"", &parsed).is_err());
        assert_ne!(hash, dummy_hash(argon2.params()).expect("another"));
    }
}
