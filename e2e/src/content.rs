//! [`Content`]: bytes that look random, differ everywhere, and need no memory.

use aws_lc_rs::digest::{Context, SHA256};
use std::io::{Read, Result};

/// `length` bytes that follow from `seed` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, std::hash::Hash)]
pub struct Content {
    /// Which bytes.
    pub seed: u64,
    /// How many.
    pub length: u64,
}

impl Content {
    /// The bytes of `seed`.
    pub fn new(seed: u64, length: u64) -> Self {
        Self { seed, length }
    }

    /// Reads from `offset` to the end.
    pub fn reader(self, offset: u64) -> Reader {
        Reader { content: self, at: offset }
    }

    /// `sha256:` and the hash of all bytes, as registries write it.
    pub fn digest(self) -> String {
        digest_of(self.reader(0)).expect("neither side can fail")
    }

    /// A validator that is cheaper than the digest.
    pub fn validator(self) -> String {
        format!("{}-{}", self.seed, self.length)
    }

    /// Fills `out` with the bytes from `offset` on.
    fn fill(self, offset: u64, out: &mut [u8]) {
        let mut word_index = offset / 8;
        let mut skip = (offset % 8) as usize;
        let mut rest = out;
        while !rest.is_empty() {
            let word = mix(self.seed, word_index).to_le_bytes();
            let count = (8 - skip).min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            head.copy_from_slice(&word[skip..skip + count]);
            rest = tail;
            skip = 0;
            word_index += 1;
        }
    }
}

/// SplitMix64's finaliser over a counter: cheap, and no two words of one content are alike.
fn mix(seed: u64, index: u64) -> u64 {
    let mut z =
        seed.wrapping_add(1).wrapping_mul(0xd1b5_4a32_d192_ed03) ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Reads a [`Content`].
#[derive(Debug)]
pub struct Reader {
    content: Content,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let left = self.content.length.saturating_sub(self.at);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        self.content.fill(self.at, &mut out[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

/// A SHA-256 that is written to.
pub struct Hash {
    context: Context,
    length: u64,
}

impl Hash {
    /// Of nothing yet.
    #[expect(clippy::new_without_default, reason = "there is no default hash")]
    pub fn new() -> Self {
        Self { context: Context::new(&SHA256), length: 0 }
    }

    /// How many bytes were written.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// `sha256:` and lower-case hex.
    pub fn digest(self) -> String {
        let mut text = String::from("sha256:");
        for byte in self.context.finish().as_ref() {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }
}

impl std::io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.context.update(bytes);
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// `sha256:` and the hash of all that can be read.
pub fn digest_of(mut from: impl Read) -> anyhow::Result<String> {
    let mut hash = Hash::new();
    std::io::copy(&mut from, &mut hash)?;
    Ok(hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_from_an_offset_gives_the_same_bytes_as_reading_from_the_start() {
        let content = Content::new(7, 1000);
        let mut whole = Vec::new();
        content.reader(0).read_to_end(&mut whole).unwrap();
        assert_eq!(whole.len(), 1000);
        for offset in [0, 1, 7, 8, 13, 999, 1000, 2000] {
            let mut part = Vec::new();
            content.reader(offset).read_to_end(&mut part).unwrap();
            assert_eq!(part, whole[whole.len().min(offset as usize)..], "{offset}");
        }
    }

    #[test]
    fn seeds_give_different_bytes() {
        assert_ne!(Content::new(1, 64).digest(), Content::new(2, 64).digest());
        assert_eq!(
            digest_of(std::io::empty()).unwrap(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
