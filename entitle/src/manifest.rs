//! [`members`]: what a manifest says that its repository contains.

use serde::Deserialize;

/// The longest manifest that is read, in bytes: what registries accept (OCI distribution-spec, "Pushing Manifests").
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// Digests that are taken from one manifest. An image has at most 127 layers; an index names a few dozen manifests.
const MAX_MEMBERS: usize = 1024;

/// The parts of a manifest that name other content of the same repository: those of an image manifest and an index (OCI
/// image-spec), of Docker's schema 2 manifest and manifest list, and of an artifact.
#[derive(Deserialize)]
struct Manifest {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    blobs: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    /// A foreign layer: the repository names it, but need not contain it.
    #[serde(default)]
    urls: Vec<serde::de::IgnoredAny>,
}

/// The digests that `manifest` says are in its repository, as `algorithm:hex`. Nothing for what is no manifest.
pub fn members(manifest: &[u8]) -> Vec<String> {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else { return Vec::new() };
    let Manifest { config, layers, manifests, blobs } = manifest;
    let all = config.into_iter().chain(layers).chain(manifests).chain(blobs);
    all.filter(|descriptor| descriptor.urls.is_empty())
        .map(|descriptor| descriptor.digest)
        .filter(|digest| digest.len() <= 160)
        .take(MAX_MEMBERS)
        .collect()
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
        assert_eq!(members(manifest), ["sha256:c", "sha256:l1", "sha256:l2"]);
    }

    #[test]
    fn an_index_names_its_manifests() {
        assert_eq!(
            members(br#"{"manifests":[{"digest":"sha256:m1"},{"digest":"sha256:m2"}]}"#),
            ["sha256:m1", "sha256:m2"]
        );
    }

    #[test]
    fn what_is_no_manifest_names_nothing() {
        for bytes in ["", "[]", "<html>", "{\"layers\":7}", "{\"config\":{}}", "{}", "null"] {
            assert!(members(bytes.as_bytes()).is_empty(), "{bytes}");
        }
    }
}
