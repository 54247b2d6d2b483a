//! [`CatalogError`]: what went wrong, and what is still possible after it.

use std::io;

/// What went wrong with the catalog.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct CatalogError(#[from] pub(in crate::store) redb::Error);

impl CatalogError {
    /// The database must be opened anew.
    pub(super) fn is_final(&self) -> bool {
        let closed = matches!(self.0, redb::Error::PreviousIo | redb::Error::DatabaseClosed);
        closed || matches!(self.0, redb::Error::Io(_) | redb::Error::Corrupted(_))
    }

    /// What stands in the file is no catalog, whoever opens it. That a file is shorter than it says, redb calls an error of
    /// the disk.
    pub(in crate::store) fn is_damage(&self) -> bool {
        match &self.0 {
            redb::Error::Io(error) => {
                matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
            }
            redb::Error::Corrupted(_) => true,
            // Another version's format or tables, or what passes: all that can be read by whoever knows how.
            _ => false,
        }
    }
}

/// As the disk said it, where it did.
impl From<CatalogError> for io::Error {
    fn from(error: CatalogError) -> Self {
        let is_damage = error.is_damage();
        match error.0 {
            redb::Error::Io(error) => error,
            redb::Error::DatabaseAlreadyOpen => Self::other("another process uses it"),
            other if is_damage => {
                Self::other(format!("{other}; `darter store repair` takes away what is damaged"))
            }
            other => Self::other(other),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for CatalogError {
            fn from(error: redb::$error) -> Self {
                Self(error.into())
            }
        })*
    };
}
impl From<io::Error> for CatalogError {
    fn from(error: io::Error) -> Self {
        Self(redb::Error::Io(error))
    }
}
from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);

/// A page of the file is none of redb's.
pub(super) fn no_page() -> CatalogError {
    redb::Error::Corrupted("a page of it is none".to_owned()).into()
}
