//! What proves who somebody is: passwords and tokens.
//!
//! An access token is a JWT (RFC 7519, HS256 pinned, `typ` `at+jwt` as RFC 9068 has it) that names a user and a session
//! and no right. A refresh token is an HMAC over the session's seed, id and generation under a key of its own: nothing
//! that is stored can be used as one.

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
const TYPE: &str = "at+jwt";
/// Seconds that the clock of the instance that made a token may be ahead of this one's.
const LEEWAY: i64 = 5;
/// How long a device is known after its last login.
pub const DEVICE_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// Hashes that may run or wait at once; each takes the configured memory only while it runs.
const HASH_QUEUE: usize = 64;
/// Access tokens that are remembered, some 400 bytes each.
const KNOWN_TOKENS: usize = 10_000;

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

/// What an access token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The user that it was issued to.
    pub user_id: Id,
    /// The session that it was given out for.
    pub session_id: Id,
    /// When it is no longer good.
    pub expires_at: Timestamp,
}

/// The tokens of a login or a refresh, as RFC 6749 section 5.1 answers them.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tokens {
    /// What to send with requests, as `Authorization: Bearer …`.
    access_token: String,
    /// What gets the next pair, once.
    refresh_token: String,
    /// Always `bearer`.
    token_type: &'static str,
    /// Seconds that the access token is good.
    expires_in: u64,
    /// Only after a login: what proves at later logins that the account's owner has logged in on this device before, so
    /// that strangers who guess passwords do not keep it out. Browsers get the same as a cookie. It is no credential,
    /// and is good for a year or until the password changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_token: Option<String>,
}

/// Makes and checks passwords and tokens; cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    refresh: hmac::Key,
    device: hmac::Key,
    email_change: hmac::Key,
    access_lifetime: Duration,
    argon2: Argon2<'static>,
    /// What a password is compared with where there is no account.
    decoy: String,
    running: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    cores: usize,
    refused: Counter,
    seconds: Histogram,
    /// Access tokens that were found genuine lately, so that this is not asked anew for each request.
    genuine: Mutex<HashMap<Box<str>, Claimed>>,
}

/// What a genuine token claims: whether it is good now is asked each time.
#[derive(Clone, Copy)]
struct Claimed {
    user_id: Id,
    session_id: Id,
    not_before: i64,
    expires: i64,
}

impl Claimed {
    const fn is_good(&self, now: i64) -> bool {
        self.not_before - LEEWAY <= now && now < self.expires
    }
}

impl Credentials {
    /// Sets the keys and the hash up.
    pub fn new(config: &Config) -> Result<Self> {
        let HashCost { memory_kib, passes, lanes } = config.hash_cost;
        let params =
            Params::new(memory_kib, passes, lanes, None).map_err(|error| Error::internal(error.to_string()))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let decoy = decoy(argon2.params())?;
        let mut validation = Validation::new(jsonwebtoken::Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        // Asked below, of the server's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let refresh = hmac::Key::new(hmac::HMAC_SHA256, config.refresh_secret_key.expose());
        let derived = |use_: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&refresh, use_).as_ref());
        // Half of the cores: a burst of logins leaves the other half to everything else.
        let cores = (std::thread::available_parallelism().map_or(2, usize::from) / 2).max(1);
        Ok(Self(Arc::new(Inner {
            encoding: EncodingKey::from_secret(config.secret_key.expose()),
            decoding: DecodingKey::from_secret(config.secret_key.expose()),
            validation,
            device: derived(b"device tokens"),
            email_change: derived(b"links that take an e-mail change back"),
            refresh,
            access_lifetime: config.access_lifetime,
            argon2,
            decoy,
            running: Arc::new(Semaphore::new(cores)),
            queue: Arc::new(Semaphore::new(HASH_QUEUE)),
            cores,
            refused: Counter::default(),
            seconds: metrics::seconds(),
            genuine: Mutex::default(),
        })))
    }

    /// Hashes a new password.
    pub async fn hash(&self, password: &Password) -> Result<String> {
        let password = password.to_string();
        self.run(move |inner| hash(&inner.argon2, &password)).await?
    }

    /// Whether the password is the one that was hashed. Without a hash the answer is no and takes as long.
    pub async fn verify(&self, password: &str, hash: Option<&str>) -> Result<bool> {
        if password.chars().take(MAX_LENGTH + 1).count() > MAX_LENGTH {
            return Ok(false);
        }
        let (password, hash) = (password.to_owned(), hash.map(ToOwned::to_owned));
        self.run(move |inner| {
            let parsed = PasswordHash::new(hash.as_deref().unwrap_or(&inner.decoy));
            let parsed = parsed.map_err(|error| Error::internal(error.to_string()))?;
            Ok(inner.argon2.verify_password(password.as_bytes(), &parsed).is_ok() && hash.is_some())
        })
        .await?
    }

    /// Whether a hash was made at a lower cost than is configured now.
    pub fn is_outdated(&self, hash: &str) -> bool {
        let params = PasswordHash::new(hash).ok().and_then(|parsed| Params::try_from(&parsed).ok());
        let now = self.0.argon2.params();
        params.is_some_and(|old| {
            old.m_cost() < now.m_cost() || old.t_cost() < now.t_cost() || old.p_cost() < now.p_cost()
        })
    }

    /// Hashes a right password anew, at the present cost.
    pub async fn rehash(&self, password: &str) -> Result<String> {
        let password = password.to_owned();
        self.run(move |inner| hash(&inner.argon2, &password)).await?
    }

    /// Runs a hash off the event loop, few at once; too many waiting are turned away.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> T + Send + 'static) -> Result<T> {
        let since = Instant::now();
        let queued = Arc::clone(&self.0.queue).try_acquire_owned().map_err(|_| {
            self.0.refused.inc();
            Error::unavailable()
        })?;
        let running = Arc::clone(&self.0.running).acquire_owned().await.map_err(Error::internal)?;
        let inner = Arc::clone(&self.0);
        // The permits go along: a caller who leaves does not make room before the work is done.
        let done = tokio::task::spawn_blocking(move || {
            let _permits = (queued, running);
            work(&inner)
        });
        let done = done.await.map_err(Error::internal);
        self.0.seconds.observe(since.elapsed().as_secs_f64());
        done
    }

    /// How many hashes run, and how many wait.
    pub fn hashing(&self) -> (usize, usize) {
        let running = self.0.cores - self.0.running.available_permits();
        (running, (HASH_QUEUE - self.0.queue.available_permits()).saturating_sub(running))
    }

    /// Hashes that were not begun because too many waited.
    pub fn refused(&self) -> &Counter {
        &self.0.refused
    }

    /// How long hashes took, their wait included.
    pub fn hash_seconds(&self) -> &Histogram {
        &self.0.seconds
    }

    /// The pair of tokens for a session as it stands.
    pub fn tokens(&self, now: Timestamp, session: &Session) -> Result<Tokens> {
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
        let header = Header { typ: Some(TYPE.to_owned()), ..Header::default() };
        Ok(Tokens {
            access_token: jsonwebtoken::encode(&header, &claims, &self.0.encoding).map_err(Error::internal)?,
            refresh_token: self.refresh_token(session),
            token_type: "bearer",
            expires_in: expires_at.since(now).as_secs(),
            device_token: None,
        })
    }

    /// What an access token says, if it is ours and still good.
    pub fn access(&self, now: Timestamp, token: &str) -> Option<Access> {
        let known = self.genuine().get(token).copied();
        let claimed = match known {
            Some(claimed) => claimed,
            None => self.read(now, token)?,
        };
        let expires_at = Timestamp::from_micros(claimed.expires.saturating_mul(1_000_000));
        let Claimed { user_id, session_id, .. } = claimed;
        claimed.is_good(now.seconds()).then_some(Access { user_id, session_id, expires_at })
    }

    fn read(&self, now: Timestamp, token: &str) -> Option<Claimed> {
        let data = jsonwebtoken::decode::<Claims>(token, &self.0.decoding, &self.0.validation).ok()?;
        if data.header.typ.as_deref() != Some(TYPE) {
            return None;
        }
        let Claims { sub, sid, nbf, exp, .. } = data.claims;
        let claimed = Claimed { user_id: sub, session_id: sid, not_before: nbf, expires: exp };
        if claimed.is_good(now.seconds()) {
            let mut genuine = self.genuine();
            if genuine.len() >= KNOWN_TOKENS {
                genuine.clear();
            }
            genuine.insert(token.into(), claimed);
        }
        Some(claimed)
    }

    fn genuine(&self) -> MutexGuard<'_, HashMap<Box<str>, Claimed>> {
        self.0.genuine.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Whether the session's key made this token.
    pub fn refreshes(&self, session: &Session, shown: &Refresh) -> bool {
        let tag = self.refresh_tag(session, shown.generation);
        constant_time::verify_slices_are_equal(tag.as_ref(), &shown.tag).is_ok()
    }
}

impl Credentials {
    /// A hash that no password has: until another is set, nobody gets in by one.
    pub fn unusable_hash(&self) -> Result<String> {
        decoy(self.0.argon2.params())
    }

    /// What proves that the owner of an account has logged in on a device. A new password makes it worthless: whoever
    /// knew the old one may have one, too.
    pub fn device_token(&self, now: Timestamp, device: Id, user_id: Id, password_hash: &str) -> String {
        let mut token = Vec::with_capacity(DEVICE_TOKEN);
        token.extend_from_slice(device.as_bytes());
        token.extend_from_slice(&now.seconds().to_be_bytes());
        token.extend_from_slice(self.device_tag(&token, user_id, password_hash).as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// The device that a token proves to be known to an account.
    pub fn known_device(&self, now: Timestamp, token: &str, user_id: Id, password_hash: &str) -> Option<Id> {
        let token: [u8; DEVICE_TOKEN] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
        let (claims, tag) = token.split_at(24);
        constant_time::verify_slices_are_equal(self.device_tag(claims, user_id, password_hash).as_ref(), tag).ok()?;
        let issued = i64::from_be_bytes(claims[16..].try_into().ok()?);
        let expires = Timestamp::from_micros(issued.saturating_mul(1_000_000)).plus(DEVICE_LIFETIME);
        (now < expires).then_some(Id::from_bytes(claims[..16].try_into().ok()?))
    }

    fn device_tag(&self, claims: &[u8], user_id: Id, password_hash: &str) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0.device);
        context.update(claims);
        context.update(user_id.as_bytes());
        context.update(password_hash.as_bytes());
        context.sign()
    }

    /// The token of the link that takes a change of the e-mail address back. It is made and not stored, so that a mail
    /// that is sent again carries the same one.
    pub fn email_change_token(&self, id: Id) -> String {
        let mut token = id.as_bytes().to_vec();
        token.extend_from_slice(hmac::sign(&self.0.email_change, id.as_bytes()).as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// The change that such a token takes back.
    pub fn email_change(&self, token: &str) -> Option<Id> {
        let token: [u8; 48] = URL_SAFE_NO_PAD.decode(token.trim()).ok()?.try_into().ok()?;
        let (id, tag) = token.split_at(16);
        hmac::verify(&self.0.email_change, id, tag).ok()?;
        Some(Id::from_bytes(id.try_into().ok()?))
    }
}

/// Bytes of a device token: the device, when it was made, and the tag.
const DEVICE_TOKEN: usize = 16 + 8 + 32;

/// A refresh token taken apart; whether it is genuine, its session tells.
#[derive(Debug)]
pub struct Refresh {
    /// The session it claims to be of.
    pub session_id: Id,
    /// The generation it claims to be of.
    pub generation: i32,
    tag: [u8; 32],
}

impl Refresh {
    /// Takes a token apart.
    pub fn parse(token: &str) -> Option<Self> {
        let bytes: [u8; 52] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
        Some(Self {
            session_id: Id::from_bytes(bytes[..16].try_into().ok()?),
            generation: i32::from_be_bytes(bytes[16..20].try_into().ok()?),
            tag: bytes[20..].try_into().ok()?,
        })
    }
}

/// A token that is mailed: 256 random bits. Only its hash is kept.
pub struct MailToken(String);

impl MailToken {
    /// A new one.
    pub fn new() -> Result<Self> {
        Ok(Self(URL_SAFE_NO_PAD.encode(random()?)))
    }

    /// One that somebody shows.
    pub fn shown(token: &str) -> Self {
        Self(token.trim().to_owned())
    }

    /// What is kept of it.
    pub fn hash(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, self.0.as_bytes()).as_ref().to_vec()
    }

    /// The token itself, for the mail alone.
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

/// A hash that no password has, at the same cost as any other. It is not made of one: that would take the memory of a hash
/// before anybody has asked for any.
fn decoy(params: &Params) -> Result<String> {
    let (salt, hash) = (STANDARD_NO_PAD.encode(&random()?[..16]), STANDARD_NO_PAD.encode(random()?));
    let (memory, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
    Ok(format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${hash}"))
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String> {
    let hash = argon2.hash_password(password.as_bytes());
    Ok(hash.map_err(|error| Error::internal(error.to_string()))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_account_a_password_is_compared_with_a_hash_of_the_same_cost() {
        let params = Params::new(64, 3, 2, None).expect("a cost");
        let hash = decoy(&params).expect("a hash");
        let parsed = PasswordHash::new(&hash).expect("one that can be read");
        let read = Params::try_from(&parsed).expect("its cost");
        assert_eq!((read.m_cost(), read.t_cost(), read.p_cost()), (64, 3, 2));
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        assert!(argon2.verify_password(b"", &parsed).is_err());
        assert_ne!(hash, decoy(argon2.params()).expect("another"));
    }
}
