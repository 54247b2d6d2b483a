//! The URL shapes of an OCI registry, and which registries are the same one (distribution-spec, "Pulling").

use crate::target::Host;
use regex::Regex;
use std::fmt;
use std::sync::LazyLock;

/// Where docker.io's content is served, whatever the client calls it.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// The names of docker.io: what people write, what the old API was, and what serves.
const DOCKER_HUB_NAMES: [&str; 3] = ["docker.io", "index.docker.io", DOCKER_HUB];
/// "host and repository name together at most 255 characters" is what clients keep to (distribution-spec, note on names).
const MAX_NAME_LEN: usize = 255;

/// Something in a repository that a URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource<'a> {
    /// The repository's name, `library/nginx`.
    pub name: &'a str,
    /// What in it.
    pub kind: Kind<'a>,
}

/// What in a repository a URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// `/v2/<name>/blobs/<digest>`: immutable.
    Blob(Digest<'a>),
    /// `/v2/<name>/manifests/<digest>`: immutable.
    Manifest(Digest<'a>),
    /// `/v2/<name>/manifests/<tag>`: whatever the tag means at the moment.
    Tag(&'a str),
}

/// The digest in a URL: `sha256` and 64 lower-case hexadecimal digits, or `sha512` and 128. Displays as `sha256:<hex>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest<'a> {
    algorithm: &'static str,
    hex: &'a str,
}

impl<'a> Resource<'a> {
    /// What `path` (without its query) names in a repository; `None` for everything else, uploads and lists included.
    pub fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2/")?;
        let (rest, last) = rest.rsplit_once('/')?;
        let (name, collection) = rest.rsplit_once('/')?;
        let kind = match collection {
            "blobs" => Kind::Blob(Digest::parse(last)?),
            "manifests" => match Digest::parse(last) {
                Some(digest) => Kind::Manifest(digest),
                None if is_tag(last) => Kind::Tag(last),
                None => return None,
            },
            _ => return None,
        };
        is_name(name).then_some(Self { name, kind })
    }
}

impl<'a> Digest<'a> {
    /// `sha256:<hex>`. Some clients encode the colon, and registries do not mind.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (algorithm, len) = match text.get(..6)? {
            "sha256" => ("sha256", 64),
            "sha512" => ("sha512", 128),
            _ => return None,
        };
        let rest = text.get(6..)?;
        let hex = [":", "%3A", "%3a"].iter().find_map(|colon| rest.strip_prefix(colon))?;
        let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (digits && hex.len() == len).then_some(Self { algorithm, hex })
    }
}

impl fmt::Display for Digest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex)
    }
}

/// Whether this is a repository's name: `<name>` of distribution-spec, "Pulling manifests".
pub fn is_name(name: &str) -> bool {
    const COMPONENT: &str = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*";
    static NAME: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(&format!("^{COMPONENT}(?:/{COMPONENT})*$")).expect("a constant"));
    name.len() <= MAX_NAME_LEN && NAME.is_match(name)
}

/// distribution-spec, "Pulling manifests": `<reference>` as a tag.
fn is_tag(tag: &str) -> bool {
    static TAG: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$").expect("a constant"));
    TAG.is_match(tag)
}

/// Where the registry `host` is served: one place for all names of docker.io, the host itself otherwise.
pub fn registry_host(host: Host) -> Host {
    if is_docker_hub(&host) { Host::Name(DOCKER_HUB.to_owned()) } else { host }
}

/// The name by which facts about a repository are kept, so that `nginx` and `library/nginx` of docker.io are one.
/// What is sent to the registry stays as the client wrote it.
pub fn repository_identity(host: &Host, name: &str) -> String {
    match (is_docker_hub(host), name.contains('/')) {
        (true, false) => format!("{DOCKER_HUB}/library/{name}"),
        (true, true) => format!("{DOCKER_HUB}/{name}"),
        _ => format!("{host}/{name}"),
    }
}

fn is_docker_hub(host: &Host) -> bool {
    matches!(host, Host::Name(name) if DOCKER_HUB_NAMES.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The grammar, with bounds that keep a name under its 255 characters.
    const NAME: &str = r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,3}(/[a-z0-9]{1,5}((\.|_|__|-)[a-z0-9]{1,5}){0,3}){0,3}";

    fn hex(len: usize) -> String {
        "0a".repeat(len / 2)
    }

    #[test]
    fn blobs_and_manifests_are_recognised() {
        let (short, long) = (format!("sha256:{}", hex(64)), format!("sha512:{}", hex(128)));
        let blob = format!("/v2/library/nginx/blobs/{short}");
        let found = Resource::parse(&blob).unwrap();
        assert_eq!(found.name, "library/nginx");
        assert!(matches!(found.kind, Kind::Blob(digest) if digest.to_string() == short));

        let manifest = format!("/v2/a/manifests/{long}");
        assert!(
            matches!(Resource::parse(&manifest).unwrap().kind, Kind::Manifest(digest) if digest.to_string() == long)
        );
        assert_eq!(Resource::parse("/v2/a/b/c/manifests/v1.2_3-rc").unwrap().kind, Kind::Tag("v1.2_3-rc"));
    }

    #[test]
    fn a_colon_may_be_encoded() {
        let path = format!("/v2/a/blobs/sha256%3A{}", hex(64));
        assert!(matches!(Resource::parse(&path).unwrap().kind,
            Kind::Blob(digest) if digest.to_string() == format!("sha256:{}", hex(64))));
    }

    #[test]
    fn a_repository_may_be_called_like_a_collection() {
        let path = format!("/v2/blobs/manifests/blobs/sha256:{}", hex(64));
        assert_eq!(Resource::parse(&path).unwrap().name, "blobs/manifests");
    }

    #[test]
    fn other_paths_are_not() {
        let digest = format!("sha256:{}", hex(64));
        for path in [
            "/v2/".to_owned(),
            "/v2/_catalog".to_owned(),
            "/v2/a/tags/list".to_owned(),
            "/v2/a/blobs/uploads/".to_owned(),
            "/v2/a/manifests/".to_owned(),
            "/v2/a/manifests/-x".to_owned(),
            format!("/v2/a/manifests/{}", "t".repeat(129)),
            format!("/v2/blobs/{digest}"),
            format!("/v2//blobs/{digest}"),
            format!("/v2/../blobs/{digest}"),
            format!("/v2/A/blobs/{digest}"),
            format!("/v2/a-/blobs/{digest}"),
            format!("/v2/a___b/blobs/{digest}"),
            format!("/v2/a..b/blobs/{digest}"),
            format!("/v2/{}/blobs/{digest}", "a".repeat(256)),
            format!("/v2/a/blobs/{digest}0"),
            format!("/v2/a/blobs/{digest}/"),
            format!("/v2/a/blobs/{}", digest.to_uppercase()),
            format!("/v2/a/blobs/sha512:{}", hex(64)),
            format!("/v2/a/blobs/md5:{}", hex(32)),
            format!("/v2/a/referrers/{digest}"),
            format!("/prefix/v2/a/blobs/{digest}"),
            format!("v2/a/blobs/{digest}"),
        ] {
            assert_eq!(Resource::parse(&path), None, "{path}");
        }
    }

    #[test]
    fn names_keep_to_the_grammar() {
        for good in ["a", "0", "a.b", "a_b", "a__b", "a-b", "a---b", "a/b-c/d.e", "a.b_c--d"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", ".a", "a.", "a..b", "a___b", "a._b", "-a", "A", "a b", "a\n",
            "\u{e9}",
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn docker_io_is_one_registry() {
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            let host: Host = name.parse().unwrap();
            assert_eq!(repository_identity(&host, "nginx"), "registry-1.docker.io/library/nginx");
            assert_eq!(repository_identity(&host, "bitnami/redis"), "registry-1.docker.io/bitnami/redis");
            assert_eq!(registry_host(host).to_string(), "registry-1.docker.io");
        }
        let other: Host = "quay.io".parse().unwrap();
        assert_eq!(repository_identity(&other, "nginx"), "quay.io/nginx");
        assert_eq!(registry_host(other.clone()), other);
    }

    proptest! {
        #[test]
        fn every_specified_name_is_taken(name in NAME) {
            let path = format!("/v2/{name}/blobs/sha256:{}", hex(64));
            prop_assert_eq!(Resource::parse(&path).map(|found| found.name), Some(&*name));
        }

        #[test]
        fn no_path_panics(path in "(/v2/)?\\PC{0,40}(/blobs/|/manifests/)?(sha256|sha512)?\\PC{0,10}") {
            let _ = Resource::parse(&path);
        }
    }
}
