//! [`Image`]: a container image made of files, without an engine to build it.

use crate::content::{Content, Hash, digest_of};
use crate::net::Host;
use crate::process::run;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long copying an image may take.
const COPY_LIMIT: Duration = Duration::from_secs(180);

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Not compressed: random bytes do not get smaller, and the tests need no compressor.
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image in the OCI layout on disk.
pub struct Image {
    folder: PathBuf,
    /// The configuration's digest: what Docker calls the image's id.
    pub id: String,
    /// The manifest's digest.
    pub manifest: String,
    /// Configuration and layers.
    pub blobs: Vec<Blob>,
    /// The layers' digests, which are their diff ids too.
    pub layers: Vec<String>,
}

/// A blob of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:...`
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

/// Where and as whom to talk to a registry.
pub struct Access<'a> {
    /// `registry.example/app:1`
    pub reference: &'a str,
    /// A folder with `*.crt` of authorities to trust.
    pub certificates: &'a Path,
    /// `user:password`
    pub credentials: Option<&'a str>,
}

impl Image {
    /// Writes an image of so many layers of so many bytes each into the new folder `folder`.
    pub fn build(folder: &Path, seed: u64, layers: u64, layer_size: u64) -> Result<Self> {
        let blob_folder = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blob_folder)?;
        let layers = (0..layers)
            .map(|index| write_layer(&blob_folder, index, Content::new(seed * 1000 + index, layer_size)))
            .collect::<Result<Vec<Blob>>>()?;
        let digests: Vec<String> = layers.iter().map(|layer| layer.digest.clone()).collect();

        let config = write_json(
            &blob_folder,
            &json!({
                "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
                "config": { "Cmd": ["/file-0"], "Labels": { "seed": seed.to_string() } },
                "rootfs": { "type": "layers", "diff_ids": digests },
            }),
        )?;
        let manifest = write_json(
            &blob_folder,
            &json!({
                "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
                "config": descriptor(CONFIG_TYPE, &config),
                "layers": layers.iter().map(|layer| descriptor(LAYER_TYPE, layer)).collect::<Vec<_>>(),
            }),
        )?;
        let mut entry = descriptor(MANIFEST_TYPE, &manifest);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        std::fs::write(folder.join("index.json"), index.to_string())?;
        std::fs::write(folder.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;

        let id = config.digest.clone();
        let blobs = std::iter::once(config).chain(layers).collect();
        Ok(Self { folder: folder.to_owned(), id, manifest: manifest.digest, blobs, layers: digests })
    }

    /// Pushes it from `host`, straight to the registry, byte for byte.
    pub fn push(&self, host: &Host, to: &Access<'_>) -> Result<()> {
        let mut command = host.command("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-cert-dir"]);
        command.arg(to.certificates);
        command.args(to.credentials.map(|credentials| format!("--dest-creds={credentials}")));
        command.arg(self.source()).arg(format!("docker://{}", to.reference));
        run(&mut command, COPY_LIMIT)?.ok().with_context(|| format!("cannot push {}", to.reference))?;
        Ok(())
    }

    /// Writes it as an archive that `docker load` takes, under the name `reference`.
    pub fn archive(&self, archive: &Path, reference: &str) -> Result<()> {
        let mut command = std::process::Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet"]).arg(self.source());
        command.arg(format!("docker-archive:{}:{reference}", archive.display()));
        run(&mut command, COPY_LIMIT)?.ok().map(drop)
    }

    /// Bytes of all blobs.
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    fn source(&self) -> String {
        format!("oci:{}:latest", self.folder.display())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Images are large; the lab's folder goes at the end in any case.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Copies an image with skopeo on `host` through a proxy into the new folder `to`.
pub fn skopeo_copy(host: &Host, proxy: &str, from: &Access<'_>, to: &Path) -> Result<()> {
    let mut command = host.command("skopeo");
    command.env("HTTPS_PROXY", proxy);
    command.args(["--insecure-policy", "copy", "--quiet", "--src-cert-dir"]).arg(from.certificates);
    command.args(from.credentials.map(|credentials| format!("--src-creds={credentials}")));
    command.arg(format!("docker://{}", from.reference)).arg(format!("dir:{}", to.display()));
    run(&mut command, COPY_LIMIT)?.ok().with_context(|| format!("skopeo cannot copy {}", from.reference))?;
    Ok(())
}

/// Whether the folder that skopeo wrote has every blob, with the right bytes.
pub fn check_copied(image: &Image, folder: &Path) -> Result<()> {
    for blob in &image.blobs {
        let name = blob.digest.trim_start_matches("sha256:");
        let found = digest_of(std::fs::File::open(folder.join(name))?)?;
        anyhow::ensure!(found == blob.digest, "{} has the bytes of {found}", blob.digest);
    }
    Ok(())
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

fn write_json(folder: &Path, value: &Value) -> Result<Blob> {
    let bytes = value.to_string().into_bytes();
    let digest = digest_of(bytes.as_slice())?;
    std::fs::write(folder.join(digest.trim_start_matches("sha256:")), &bytes)?;
    Ok(Blob { digest, size: bytes.len() as u64 })
}

/// A tar archive with one file.
fn write_layer(folder: &Path, index: u64, content: Content) -> Result<Blob> {
    let unnamed = folder.join(format!("layer-{index}"));
    let mut file = BufWriter::new(std::fs::File::create(&unnamed)?);
    let mut hash = Hash::new();
    let padding = (512 - content.length % 512) % 512 + 1024;
    let header = tar_header(&format!("file-{index}"), content.length);
    let mut archive = header.as_slice().chain(content.reader(0)).chain(std::io::repeat(0).take(padding));
    let mut block = vec![0; 256 << 10];
    loop {
        let count = archive.read(&mut block)?;
        if count == 0 {
            break;
        }
        hash.write_all(&block[..count])?;
        file.write_all(&block[..count])?;
    }
    file.flush()?;
    let size = hash.length();
    let digest = hash.digest();
    std::fs::rename(unnamed, folder.join(digest.trim_start_matches("sha256:")))?;
    Ok(Blob { digest, size })
}

/// A file's header in the ustar format (POSIX.1-1988, pax "ustar Interchange Format").
fn tar_header(name: &str, size: u64) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    // The checksum counts itself as spaces.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
