//! The folders that are used when nothing is configured.

use std::env;
use std::path::{Path, PathBuf};

/// The folder of content in `work_home`.
pub(crate) fn content(work_home: &Path) -> PathBuf {
    work_home.join("data")
}

/// The folder of the CA that we make for ourselves.
pub(crate) fn ca(work_home: &Path) -> PathBuf {
    work_home.join("ca")
}

/// The folder of the cluster's CA, on a scheduler's host.
pub(crate) fn cluster(work_home: &Path) -> PathBuf {
    work_home.join("cluster")
}

/// The folder of what this host is in its cluster.
pub(crate) fn node(work_home: &Path) -> PathBuf {
    work_home.join("node")
}

/// `/var/lib/darter` for root, otherwise the user's own data folder (XDG Base Directory specification).
pub(crate) fn work_home() -> PathBuf {
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
}
