//! [`Record`]: what is known of a stored task, and its form on disk.

use crate::ContentInfo;
use darter_protocol::{Digest, PieceHash, PieceLayout};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is known of a task that is stored, complete or in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) info: ContentInfo,
    /// What the whole must hash to, where that is known.
    pub(crate) digest: Option<Digest>,
    /// When its first byte was stored, to the second.
    pub(crate) created: SystemTime,
}

/// The form on disk: JSON, so that a person with `strings` can see what a file is.
#[derive(Serialize, Deserialize)]
struct Stored {
    length: u64,
    digest: Option<String>,
    created: u64,
    headers: Vec<(String, String)>,
}

impl Record {
    /// The longest form on disk that is read back, in bytes. An honest one is a few hundred.
    pub(crate) const MAX_ENCODED: usize = 64 << 10;

    pub(crate) fn new(info: ContentInfo, digest: Option<Digest>) -> Self {
        let now = seconds(SystemTime::now());
        Self { info, digest, created: UNIX_EPOCH + Duration::from_secs(now) }
    }

    /// How the content is cut; `None` for a length that no content has.
    pub(crate) fn layout(&self) -> Option<PieceLayout> {
        PieceLayout::new(self.info.length)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        };
        let stored = Stored {
            length: self.info.length,
            digest: self.digest.map(|digest| digest.to_string()),
            created: seconds(self.created),
            headers: self.info.headers.iter().filter_map(text).collect(),
        };
        serde_json::to_vec(&stored).expect("strings and numbers have a JSON form")
    }

    /// `None` for bytes that no version of this program wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let stored: Stored = serde_json::from_slice(bytes).ok()?;
        PieceLayout::new(stored.length)?;
        let mut headers = HeaderMap::new();
        for (name, value) in stored.headers {
            headers.append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
        }
        Some(Self {
            info: ContentInfo { length: stored.length, headers },
            digest: stored.digest.map(|digest| digest.parse()).transpose().ok()?,
            created: UNIX_EPOCH.checked_add(Duration::from_secs(stored.created))?,
        })
    }
}

/// Seconds since 1970; 0 for a clock that stands before it.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Piece hashes, one after the other, as they are stored and as they travel between daemons.
pub(crate) fn encode_hashes(hashes: &[PieceHash]) -> Vec<u8> {
    hashes.iter().flat_map(PieceHash::as_bytes).copied().collect()
}

/// The hashes of all pieces of `layout`; `None` when the bytes are too many or too few.
pub(crate) fn decode_hashes(layout: &PieceLayout, bytes: &[u8]) -> Option<Vec<PieceHash>> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    (rest.is_empty() && hashes.len() == layout.pieces() as usize)
        .then(|| hashes.iter().map(|hash| PieceHash::from(*hash)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_from_its_bytes() {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/octet-stream"));
        headers.append("x-checksum", HeaderValue::from_static("a"));
        headers.append("x-checksum", HeaderValue::from_static("b"));
        let digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        let record = Record::new(ContentInfo { length: 5 << 20, headers }, Some(digest));
        assert_eq!(Record::decode(&record.encode()), Some(record));
    }

    #[test]
    fn foreign_bytes_are_no_record() {
        for bytes in [
            "",
            "{}",
            "nonsense",
            r#"{"length":18446744073709551615,"digest":null,"created":0,"headers":[]}"#,
        ] {
            assert_eq!(Record::decode(bytes.as_bytes()), None, "{bytes}");
        }
    }
}
