//! [`Tokens`]: the join tokens that are good, hashed, in a file beside the CA.
//!
//! The file is read at every use and changed under a lock, so that the command that makes or revokes one and the scheduler
//! that takes one need not know each other.

use crate::file::{self, FileError};
use crate::token::{Token, hash};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// Tokens that have ended are shown for so long, and forgotten then.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);

/// Tokens at once, and hosts that are remembered of each: to show, and so that the same host may ask again.
const MAX_TOKENS: usize = 1000;
const MAX_HOSTS: usize = 1000;

/// How a token may be used.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// For how long.
    pub ttl: Duration,
    /// By how many hosts; `None`: any number.
    pub uses: Option<u32>,
    /// Whether they become seeds.
    pub seed: bool,
}

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its public part.
    pub id: String,
    /// The SHA-256 of its secret part.
    hash: String,
    /// Hosts that may still join by it; absent: any number.
    pub uses_left: Option<u32>,
    /// Whether they become seeds.
    pub seed: bool,
    /// Seconds since 1970: when it was made, and when it ends.
    pub made: u64,
    /// See `made`.
    pub ends: u64,
    /// The hosts that joined by it last: at most 1,000.
    pub hosts: Vec<String>,
}

impl Kept {
    /// Whether somebody could join by it at `now`.
    pub fn is_good(&self, now: SystemTime) -> bool {
        seconds(now) < self.ends && self.uses_left != Some(0)
    }
}

/// Why a token was not taken: a sentence for people that says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// There is none of that id, or its secret is another.
    #[error(
        "this scheduler does not know the join token (it was revoked, made for another cluster, or mistyped): make one with `darter token create` on its host"
    )]
    Unknown,
    /// Its time is over.
    #[error("the join token has expired: make another with `darter token create` on a scheduler's host")]
    Expired,
    /// As many hosts have joined by it as may.
    #[error(
        "the join token is used up: make another with `darter token create` on a scheduler's host, with --uses for several nodes"
    )]
    UsedUp,
}

/// The file of tokens.
#[derive(Debug, Clone)]
pub struct Tokens {
    folder: PathBuf,
}

impl Tokens {
    /// Those in this folder; nothing is looked at yet.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Makes a token of the cluster whose CA has this SHA-256.
    ///
    /// # Errors
    /// When the file cannot be read or written, or there are too many.
    pub fn create(&self, terms: Terms, ca: [u8; 32], now: SystemTime) -> Result<Token, FileError> {
        let mut random = Zeroizing::new([0; 20]);
        aws_lc_rs::rand::fill(&mut *random)
            .map_err(|_| FileError::new(&self.path(), "the system gives no random numbers"))?;
        let token = Token::new(&random, ca);
        self.change(|kept| {
            kept.retain(|token| seconds(now) < token.ends.saturating_add(REMEMBERED.as_secs()));
            if kept.len() >= MAX_TOKENS {
                return Err(FileError::new(
                    &self.path(),
                    format!("it holds {MAX_TOKENS} tokens already: revoke some"),
                ));
            }
            kept.push(Kept {
                id: token.id().to_owned(),
                hash: hash(token.secret()),
                uses_left: terms.uses,
                seed: terms.seed,
                made: seconds(now),
                ends: seconds(now).saturating_add(terms.ttl.as_secs()),
                hosts: Vec::new(),
            });
            Ok(())
        })??;
        Ok(token)
    }

    /// All of them, also those that have ended.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn list(&self) -> Result<Vec<Kept>, FileError> {
        let path = self.path();
        let Some(text) = file::read(&path)? else { return Ok(Vec::new()) };
        serde_json::from_str(&text).map_err(|error| FileError::new(&path, format!("is damaged: {error}")))
    }

    /// Forgets the token of this id. Gives whether there was one.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn revoke(&self, id: &str) -> Result<bool, FileError> {
        self.change(|kept| {
            let before = kept.len();
            kept.retain(|token| token.id != id);
            kept.len() < before
        })
    }

    /// Whether the token lets `host` in: what is asked before anything is signed or written for somebody who may be anybody.
    ///
    /// # Errors
    /// When the file cannot be read; within, why the token is not taken.
    pub(crate) fn look(
        &self,
        id: &str,
        secret: &str,
        host: &str,
        now: SystemTime,
    ) -> Result<Result<bool, TokenRefused>, FileError> {
        Ok(admit(&mut self.list()?, (id, secret), host, now))
    }

    /// Lets `host` in by a token, once for each host, however often it asks. Gives whether it is to be a seed.
    ///
    /// # Errors
    /// When the file cannot be used; within, why the token is not taken.
    pub(crate) fn take(
        &self,
        id: &str,
        secret: &str,
        host: &str,
        now: SystemTime,
    ) -> Result<Result<bool, TokenRefused>, FileError> {
        self.change(|kept| admit(kept, (id, secret), host, now))
    }

    fn path(&self) -> PathBuf {
        self.folder.join("tokens.json")
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<Kept>) -> T) -> Result<T, FileError> {
        let _lock = file::lock(&self.folder, "tokens.lock")?;
        let before = self.list()?;
        let mut kept = before.clone();
        let result = change(&mut kept);
        if kept == before {
            return Ok(result);
        }
        let text =
            serde_json::to_string_pretty(&kept).map_err(|error| FileError::new(&self.path(), error))?;
        file::write(&self.path(), &text)?;
        Ok(result)
    }
}

/// Lets `host` in, if a token of this id and secret does. Gives whether it is to be a seed.
fn admit(
    kept: &mut [Kept],
    (id, secret): (&str, &str),
    host: &str,
    now: SystemTime,
) -> Result<bool, TokenRefused> {
    let hash = hash(secret);
    let same = |kept: &Kept| verify_slices_are_equal(kept.hash.as_bytes(), hash.as_bytes()).is_ok();
    let token = kept.iter_mut().find(|token| token.id == id && same(token));
    let token = token.ok_or(TokenRefused::Unknown)?;
    if seconds(now) >= token.ends {
        return Err(TokenRefused::Expired);
    }
    if token.hosts.iter().any(|known| known == host) {
        return Ok(token.seed);
    }
    token.uses_left = match token.uses_left {
        Some(0) => return Err(TokenRefused::UsedUp),
        left => left.map(|left| left - 1),
    };
    if token.hosts.len() >= MAX_HOSTS {
        token.hosts.remove(0);
    }
    token.hosts.push(host.to_owned());
    Ok(token.seed)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const HOUR: Duration = Duration::from_secs(3600);

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(folder.path());
        (folder, tokens)
    }

    fn take(tokens: &Tokens, token: &Token, host: &str, now: SystemTime) -> Result<bool, TokenRefused> {
        tokens.take(token.id(), token.secret(), host, now).unwrap()
    }

    #[test]
    fn what_changes_nothing_writes_nothing() {
        use std::os::unix::fs::MetadataExt as _;
        let (_folder, tokens) = tokens();
        let now = SystemTime::now();
        let token = tokens.create(Terms { ttl: HOUR, uses: None, seed: false }, [1; 32], now).unwrap();
        // A file that was written is another one.
        let file = |tokens: &Tokens| std::fs::metadata(tokens.path()).unwrap().ino();
        let before = file(&tokens);
        assert_eq!(tokens.take(token.id(), "wrong", "a", now).unwrap(), Err(TokenRefused::Unknown));
        assert!(!tokens.revoke("00000000").unwrap());
        assert_eq!(tokens.look(token.id(), token.secret(), "a", now).unwrap(), Ok(false));
        assert_eq!((file(&tokens), tokens.list().unwrap()[0].hosts.len()), (before, 0));
        assert_eq!(take(&tokens, &token, "a", now), Ok(false));
        assert_ne!(file(&tokens), before);
    }

    #[test]
    fn a_token_lets_in_as_many_hosts_as_it_says_and_the_same_host_again() {
        let (_folder, tokens) = tokens();
        let now = SystemTime::now();
        let terms = Terms { ttl: HOUR, uses: Some(2), seed: true };
        let token = tokens.create(terms, [1; 32], now).unwrap();
        assert_eq!(take(&tokens, &token, "a", now), Ok(true));
        assert_eq!(take(&tokens, &token, "a", now), Ok(true), "it lost the answer and asks again");
        assert_eq!(take(&tokens, &token, "b", now), Ok(true));
        assert_eq!(take(&tokens, &token, "c", now), Err(TokenRefused::UsedUp));
        assert_eq!(take(&tokens, &token, "a", now + HOUR), Err(TokenRefused::Expired));
        assert_eq!(tokens.list().unwrap()[0].hosts, ["a", "b"]);
    }

    #[test]
    fn a_wrong_secret_and_a_revoked_token_are_unknown() {
        let (_folder, tokens) = tokens();
        let now = SystemTime::now();
        let token = tokens.create(Terms { ttl: HOUR, uses: None, seed: false }, [1; 32], now).unwrap();
        let wrong = Token::new(&[0; 20], [1; 32]);
        assert_eq!(tokens.take(token.id(), wrong.secret(), "a", now).unwrap(), Err(TokenRefused::Unknown));
        assert_eq!(take(&tokens, &wrong, "a", now), Err(TokenRefused::Unknown));
        assert_eq!(take(&tokens, &token, "a", now), Ok(false));
        assert!(tokens.revoke(token.id()).unwrap());
        assert!(!tokens.revoke(token.id()).unwrap());
        assert_eq!(take(&tokens, &token, "a", now), Err(TokenRefused::Unknown));
    }

    #[test]
    fn secrets_are_not_in_the_file_and_it_is_its_owners_alone() {
        let (folder, tokens) = tokens();
        let terms = Terms { ttl: HOUR, uses: Some(1), seed: false };
        let token = tokens.create(terms, [1; 32], SystemTime::now()).unwrap();
        let path = folder.path().join("tokens.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(token.id()) && !text.contains(token.secret()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays_as_it_is() {
        let (folder, tokens) = tokens();
        let path = folder.path().join("tokens.json");
        std::fs::write(&path, "[{").unwrap();
        let terms = Terms { ttl: HOUR, uses: Some(1), seed: false };
        assert!(tokens.create(terms, [1; 32], SystemTime::now()).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[{");
    }
}
