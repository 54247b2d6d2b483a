//! [`members`]: what a manifest says that its repository contains.

use crate::facts::Part;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::HashMap;

/// The longest manifest that is read, in bytes: what registries accept (OCI distribution-spec, "Pushing Manifests").
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// Digests that are taken from one manifest. An image has at most 127 layers; an index names a few dozen manifests.
const MAX_MEMBERS: usize = 1024;

/// The parts of a manifest that name other content of the same repository: those of an image manifest and an index (OCI
/// image-spec), and of Docker's schema 2 manifest and manifest list. A registry checks these when a manifest is pushed; a
/// list that it does not know (an artifact's `blobs`, say) it may have let pass.
#[derive(Deserialize)]
struct Manifest {
    /// Of all manifests; of hardly anything else.
    #[serde(rename = "schemaVersion")]
    schema_version: u8,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    #[serde(flatten)]
    rest: HashMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    /// A foreign layer: the repository names it, but need not contain it.
    #[serde(default)]
    urls: Vec<IgnoredAny>,
    /// Read, so that a second spelling of it is left over.
    #[serde(rename = "mediaType", default)]
    _media_type: IgnoredAny,
    #[serde(flatten)]
    rest: HashMap<String, IgnoredAny>,
}

/// The types of manifests (OCI image-spec, Docker's schema 2), and whether each is of an index.
const TYPES: [(&str, bool); 4] = [
    ("application/vnd.oci.image.manifest.v1+json", false),
    ("application/vnd.oci.image.index.v1+json", true),
    ("application/vnd.docker.distribution.manifest.v2+json", false),
    ("application/vnd.docker.distribution.manifest.list.v2+json", true),
];

/// Whether that is the type of an index, or of an image manifest; `None`: of something else, of which nobody knows what its registry
/// has looked at.
fn is_index(media_type: &str) -> Option<bool> {
    let bare = media_type.split(';').next().unwrap_or_default().trim();
    TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(bare)).map(|(_, is_index)| *is_index)
}

/// Whether a reader that does not mind the case of keys, as Go's JSON, may have understood something else: the registry
/// would then have checked other digests than stand here. Every key that this module reads stands there, and so do those of a
/// descriptor by which registries decide whether they look at it.
fn is_ambiguous(rest: &HashMap<String, IgnoredAny>) -> bool {
    const KEYS: [&str; 7] = ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "urls"];
    rest.keys().any(|key| !key.is_ascii() || KEYS.iter().any(|known| known.eq_ignore_ascii_case(key)))
}

/// What `manifest` says is in its repository: of an image its configuration and layers, which are blobs, of an index manifests.
/// `None` for what is no manifest.
pub fn members(content_type: Option<&str>, manifest: &[u8]) -> Option<Vec<Part>> {
    let manifest = serde_json::from_slice::<Manifest>(manifest).ok()?;
    let Manifest { schema_version, config, layers, manifests, media_type, rest } = manifest;
    if !matches!(schema_version, 1 | 2) {
        return None;
    }
    // A registry looks at the list of what it takes the body for, and whoever pushed it says which that is: the other list is not
    // known to be there.
    let is_image = config.is_some() || layers.is_some();
    let fits = [content_type, media_type.as_deref()].into_iter().flatten().all(|said| match is_index(said) {
        Some(true) => !is_image,
        Some(false) => manifests.is_none(),
        None => false,
    });
    if !fits || is_image && manifests.is_some() {
        return Some(Vec::new());
    }
    let lists = layers.into_iter().chain(manifests).flatten();
    let all: Vec<Descriptor> = config.into_iter().chain(lists).collect();
    if is_ambiguous(&rest) || all.iter().any(|descriptor| is_ambiguous(&descriptor.rest)) {
        return Some(Vec::new());
    }
    let contained = all
        .into_iter()
        .filter(|descriptor| descriptor.urls.is_empty())
        .map(|descriptor| descriptor.digest)
        .filter(|digest| digest.len() <= 160)
        .map(if is_image { Part::Blob } else { Part::Manifest })
        .take(MAX_MEMBERS);
    Some(contained.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_manifest_names_its_config_and_layers() {
        let manifest = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{"mediaType":"a","digest":"sha256:c","size":1},
            "layers":[{"digest":"sha256:l1","size":2},{"digest":"sha256:l2"},{"digest":"sha256:f","urls":["https://x/"]}],
            "annotations":{"k":"v"}}"#;
        assert_eq!(
            members(None, manifest).unwrap(),
            ["sha256:c", "sha256:l1", "sha256:l2"].map(|it| Part::Blob(it.into()))
        );
    }

    #[test]
    fn an_index_names_its_manifests() {
        let index = br#"{"schemaVersion":2,"manifests":[{"digest":"sha256:m1"},{"digest":"sha256:m2"}]}"#;
        assert_eq!(
            members(None, index).unwrap(),
            ["sha256:m1", "sha256:m2"].map(|it| Part::Manifest(it.into()))
        );
    }

    #[test]
    fn what_a_registry_may_have_read_otherwise_names_nothing() {
        for manifest in [
            r#""layers":[{"digest":"sha256:victim"}],"Layers":[{"digest":"sha256:own"}]"#,
            r#""layers":[{"digest":"sha256:victim","Digest":"sha256:own"}]"#,
            r#""layers":[{"digest":"sha256:victim"}],"layers":[{"digest":"sha256:own"}]"#,
            r#""layers":[{"digest":"sha256:victim"}],"schemaversion":1"#,
            // What it was looked at as.
            r#""mediaType":"application/vnd.oci.image.manifest.v1+json","MediaType":"application/vnd.oci.image.index.v1+json","layers":[{"digest":"sha256:victim"}]"#,
            r#""mediatype":"application/vnd.oci.image.index.v1+json","layers":[{"digest":"sha256:victim"}]"#,
            r#""MEDIATYPE":"application/vnd.oci.image.manifest.v1+json","manifests":[{"digest":"sha256:victim"}]"#,
            r#""mediaType":"","mediaType":"application/vnd.oci.image.index.v1+json","layers":[{"digest":"sha256:victim"}]"#,
            r#""layers":[{"mediaType":"a","MediaType":"b","digest":"sha256:victim"}]"#,
            r#""blobs":[{"digest":"sha256:victim"}]"#,
            r#""layers":[{"digest":"sha256:own"}],"manifests":[{"digest":"sha256:victim"}]"#,
            r#""config":{"digest":"sha256:victim"},"manifests":[]"#,
            r#""mediaType":"application/vnd.oci.image.index.v1+json","layers":[{"digest":"sha256:victim"}]"#,
            r#""mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[{"digest":"sha256:victim"}]"#,
        ] {
            let manifest = format!(r#"{{"schemaVersion":2,{manifest}}}"#);
            assert!(members(None, manifest.as_bytes()).unwrap_or_default().is_empty(), "{manifest}");
        }
    }

    #[test]
    fn what_a_registry_calls_it_says_which_list_it_has_looked_at() {
        let (layers, manifests) =
            (r#""layers":[{"digest":"sha256:a"}]"#, r#""manifests":[{"digest":"sha256:a"}]"#);
        let image = "application/vnd.docker.distribution.manifest.v2+json";
        let list = "application/vnd.docker.distribution.manifest.list.v2+json; charset=utf-8";
        for (said, body, named) in [
            (image, layers, 1),
            (list, manifests, 1),
            (image, manifests, 0),
            (list, layers, 0),
            // It may have taken these without a look.
            ("application/x.image.manifest.y", layers, 0),
            ("application/vnd.oci.image.manifest.v1+json.gz", layers, 0),
            ("application/json", manifests, 0),
        ] {
            let body = format!(r#"{{"schemaVersion":2,{body}}}"#);
            assert_eq!(members(Some(said), body.as_bytes()).unwrap().len(), named, "{said} {body}");
        }
    }

    #[test]
    fn what_is_no_manifest_names_nothing() {
        for bytes in [
            "",
            "[]",
            "<html>",
            r#"{"schemaVersion":2,"layers":7}"#,
            r#"{"schemaVersion":2,"config":{}}"#,
            r#"{"schemaVersion":3}"#,
            r#"{"layers":[{"digest":"sha256:a"}]}"#,
            r#"{"error":"who are you?"}"#,
            "{}",
            "null",
        ] {
            assert_eq!(members(None, bytes.as_bytes()), None, "{bytes}");
        }
    }
}
