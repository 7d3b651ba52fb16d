//! The keys that sign tokens: configured, or generated on the first start and stored in a file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{InvalidSetting, Lookup, Secret, SettingsReader};
use crate::db::Location;

pub(super) fn keys(
    source: &SettingsReader<'_>,
    database: &Location,
) -> Result<(Secret, Secret), InvalidSetting> {
    let given = |name| match source.text(name) {
        Some(key) if key.len() < Secret::MIN_LENGTH => {
            Err(InvalidSetting::new(name, "must have at least 32 bytes"))
        }
        key => Ok(key.map(Secret::new)),
    };
    let keys = match (given("SECRET_KEY")?, given("REFRESH_SECRET_KEY")?) {
        (Some(access), Some(refresh)) => (access, refresh),
        (access, refresh) => {
            let path = secrets_file(source, database);
            let stored = load_or_create_keys(&path).map_err(|error| {
                InvalidSetting::new("SECRETS_FILE", format!("{}: {error}", path.display()))
            })?;
            (access.unwrap_or(stored.0), refresh.unwrap_or(stored.1))
        }
    };
    if keys.0 == keys.1 {
        return Err(InvalidSetting::new(
            "REFRESH_SECRET_KEY",
            "must differ from SECRET_KEY",
        ));
    }
    Ok(keys)
}

fn secrets_file(source: &SettingsReader<'_>, database: &Location) -> PathBuf {
    let beside = match database {
        Location::Sqlite(path) => path.with_extension("secrets"),
        Location::Postgres(_) => PathBuf::from("fasttrack.secrets"),
    };
    source
        .text_or("SECRETS_FILE", || beside.display().to_string())
        .into()
}

/// The file that stores the keys of a server on this database; `None` when both are configured.
pub fn keys_file(lookup: Lookup<'_>, database: &Location) -> Option<PathBuf> {
    let source = SettingsReader::new(lookup);
    let given = source.text("SECRET_KEY").is_some() && source.text("REFRESH_SECRET_KEY").is_some();
    (!given).then(|| secrets_file(&source, database))
}

/// Reads the two keys from their file, which the first start creates.
fn load_or_create_keys(path: &Path) -> io::Result<(Secret, Secret)> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("{}\n{}\n", random_key()?, random_key()?);
            match create_private_file(path, text.as_bytes()) {
                // Another process has created it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    std::fs::read_to_string(path)?
                }
                written => written.map(|()| text)?,
            }
        }
        read => read?,
    };
    let mut keys = text
        .split_whitespace()
        .filter(|key| key.len() >= Secret::MIN_LENGTH);
    match (keys.next(), keys.next()) {
        (Some(access), Some(refresh)) => Ok((Secret::new(access), Secret::new(refresh))),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "must contain two keys of at least 32 bytes, one per line",
        )),
    }
}

/// Creates a file atomically, readable by its owner only. Fails if it exists.
pub fn create_private_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut draft = NamedTempFile::new_in(directory)?;
    draft.write_all(content)?;
    draft.as_file().sync_all()?;
    draft.persist_noclobber(path)?;
    // Makes the new directory entry durable.
    #[cfg(unix)]
    std::fs::File::open(directory)?.sync_all()?;
    Ok(())
}

fn random_key() -> io::Result<String> {
    use base64::Engine;
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| io::Error::other("the random number generator failed"))?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}
