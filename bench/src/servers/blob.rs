//! [`Blob`]: a file that an origin serves.

use anyhow::{Context, Result};
use darter_e2e::content::Content;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What becomes of a request for it at a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A registry's blob: its name says its digest.
    Named,
    /// Kept, too, but nobody knows its digest.
    Unnamed,
    /// Passed through.
    Direct,
}

/// A file that an origin serves, removed when this is dropped.
pub(crate) struct Blob {
    path: String,
    file: PathBuf,
    length: u64,
}

impl Blob {
    /// Writes the content of `seed` below an origin's root.
    pub(crate) fn write(root: &Path, kind: Kind, seed: u64, length: u64) -> Result<Self> {
        let content = Content::new(seed, length);
        let path = match kind {
            Kind::Named => format!("/v2/bench/blobs/{}", content.digest()),
            Kind::Unnamed => format!("/files/{seed}"),
            Kind::Direct => format!("/direct/{seed}"),
        };
        let file = root.join(&path[1..]);
        std::fs::create_dir_all(file.parent().context("a file has a folder")?)?;
        std::io::copy(&mut content.reader(0), &mut File::create(&file)?).context("writing a blob")?;
        Ok(Self { path, file, length })
    }

    /// Its path in a URL.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        // The folder goes at the end in any case.
        let _ = std::fs::remove_file(&self.file);
    }
}
