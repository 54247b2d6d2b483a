//! The folders that are used when nothing is configured.

use std::env;
use std::path::{Path, PathBuf};

/// Where this host keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directories {
    /// Our own small things: the CA, the host's identity.
    pub(crate) work: PathBuf,
    /// The content.
    pub(crate) data: PathBuf,
}

impl Directories {
    /// `work` or the built-in place; `data` or `data` in it.
    pub(crate) fn new(work: Option<PathBuf>, data: Option<PathBuf>) -> Self {
        let work = work.unwrap_or_else(built_in);
        let data = data.unwrap_or_else(|| work.join("data"));
        Self { work, data }
    }

    /// The folder of the CA that we make for ourselves.
    pub(crate) fn ca(&self) -> PathBuf {
        self.work.join("ca")
    }
}

/// `/var/lib/darter` for root, otherwise the user's own data folder (XDG Base Directory specification).
fn built_in() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/darter");
    }
    for_user(env::var_os("XDG_DATA_HOME").map(PathBuf::from), env::home_dir())
}

/// The specification: a relative `XDG_DATA_HOME` is to be ignored. Without a home there is only the working directory.
fn for_user(data_home: Option<PathBuf>, home: Option<PathBuf>) -> PathBuf {
    let data_home = data_home.filter(|path| path.is_absolute());
    let share = || home.filter(|path| path.is_absolute()).map(|home| home.join(".local/share"));
    data_home.or_else(share).map_or_else(|| Path::new(".").join("darter-data"), |share| share.join("darter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_data_folder() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(for_user(path("/x"), path("/home/a")), Path::new("/x/darter"));
        assert_eq!(for_user(path("x"), path("/home/a")), Path::new("/home/a/.local/share/darter"));
        assert_eq!(for_user(None, path("/home/a")), Path::new("/home/a/.local/share/darter"));
        assert_eq!(for_user(None, None), Path::new("./darter-data"));
    }

    #[test]
    fn content_stands_under_the_work_folder_unless_it_has_its_own() {
        let directories = Directories::new(Some("/w".into()), None);
        assert_eq!((directories.data.as_path(), directories.ca()), (Path::new("/w/data"), "/w/ca".into()));
        assert_eq!(Directories::new(Some("/w".into()), Some("/d".into())).data, Path::new("/d"));
    }
}
