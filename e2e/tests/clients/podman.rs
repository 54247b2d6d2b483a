//! podman and buildah in ways of their own: mirrors by registries.conf, and layers in zstd, of which podman fetches only the
//! parts that it does not have yet.

use crate::{Cluster, MIB};
use anyhow::{Context, Result, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::image::{Access, Blob, skopeo_copy};
use darter_e2e::node::Node;
use darter_e2e::podman::{Podman, Setup};
use darter_e2e::registry::OPEN;
use std::path::{Path, PathBuf};

/// In this form the registry is a part of the repository's name: `/v2/ns/HOST/REPO/...`.
pub(crate) fn mirrors_of_registries_conf(cluster: &Cluster) -> Result<()> {
    for (seed, tool) in (30..).zip(["podman", "buildah"]) {
        let reference = &format!("{OPEN}/team/mirrored-by-{tool}:1");
        let image = cluster.registry.publish(reference, seed, 2, 10 * MIB)?;
        for node in cluster.cold_warm_second() {
            let tools = Podman::new(&node.host, mirrored(node))?;
            tools.run(tool, &["pull", "--quiet", reference])?.ok()?;
            tools.check(reference, &image)?;
            cluster.registry.check_copies(&image, 1)?;
        }
    }
    let node = &cluster.nodes[0];
    let absent = ["pull", "--quiet", &format!("{OPEN}/no/such:1")];
    let said = Podman::new(&node.host, mirrored(node))?.run("podman", &absent)?.failed()?.stderr;
    let ours = format!("{}/ns/{OPEN}/no/such:1: reading manifest 1 in", node.host.port(65001));
    ensure!(said.contains(&ours) && said.contains("manifest unknown"), "{said}");
    Ok(())
}

/// The registry itself is out of reach: its authority is not known there.
fn mirrored(node: &Node) -> Setup {
    let mirror = format!("location = '{}/ns/{OPEN}'\ninsecure = true\n", node.host.port(65001));
    let registries = format!("[[registry]]\nlocation = '{OPEN}'\n[[registry.mirror]]\n{mirror}");
    Setup { registries, ..Setup::default() }
}

pub(crate) fn zstd(cluster: &Cluster) -> Result<()> {
    let reference = &format!("{OPEN}/team/zstd:1");
    let files = files(40, |_| 0);
    let blobs = publish(cluster, reference, "zstd", &files)?;
    for node in cluster.cold_warm_second() {
        let tools = Podman::new(&node.host, through(node))?;
        tools.run("podman", &["pull", "--quiet", reference])?.ok()?;
        check_files(&tools.store(), &files)?;
        let to = node.host.new_folder("copied")?;
        let certificates = node.ca.parent().context("it stands in a folder")?;
        skopeo_copy(&node.host, &node.proxy(), &Access { reference, certificates, credentials: None }, &to)?;
        for blob in &blobs {
            let copied = std::fs::File::open(to.join(blob.digest.trim_start_matches("sha256:")))?;
            ensure!(digest_of(copied)? == blob.digest, "{} has other bytes", blob.digest);
        }
        cluster.registry.check_copies_of(&blobs, 1)?;
    }
    Ok(())
}

/// The second version shares every other file with the first, so what it lacks are many ranges of one layer, which podman asks
/// for at once. With one of them podman could do nothing, and all of the layer it would take from a server that knows no
/// ranges.
pub(crate) fn fetches_the_missing_parts_of_a_layer(cluster: &Cluster) -> Result<()> {
    let versions = [files(50, |_| 0), files(50, |index| index % 2 * 100)];
    let references = [1, 2].map(|version| format!("{OPEN}/team/chunked:{version}"));
    let mut blobs = Vec::new();
    for (reference, files) in references.iter().zip(&versions) {
        blobs.push(publish(cluster, reference, "zstd:chunked", files)?);
    }
    let mut left = None;
    for node in cluster.cold_warm_second() {
        let tools = Podman::new(&node.host, Setup { partial: true, ..through(node) })?;
        for (reference, files) in references.iter().zip(&versions) {
            let said =
                tools.run("podman", &["--log-level=debug", "pull", "--quiet", reference])?.ok()?.stderr;
            ensure!(said.contains("Retrieved partial blob"), "{said}");
            check_files(&tools.store(), files)?;
        }
        let layer = blobs[1].last().context("no layer")?;
        let log = node.daemon.process.log();
        let answers =
            log.lines().filter(|line| line.contains("way=intercepted") && line.contains(&layer.digest));
        let sent_to_podman: Vec<u64> = answers.filter_map(sent).collect();
        let too_much = sent_to_podman.iter().find(|sent| **sent > layer.size * 3 / 4);
        ensure!(!sent_to_podman.is_empty() && too_much.is_none(), "{sent_to_podman:?} of {layer:?}");
        for blobs in &blobs {
            let bytes = cluster.registry.bytes_of(blobs)?;
            let too_many = blobs.iter().find(|blob| bytes[&blob.digest] > blob.size);
            ensure!(too_many.is_none(), "more than {too_many:?} left: {bytes:?}");
        }
        let now = cluster.registry.bytes_of(&blobs.concat())?;
        ensure!(*left.get_or_insert_with(|| now.clone()) == now, "more left: {left:?}, {now:?}");
    }
    Ok(())
}

/// How many bytes of a body a line of the access log tells of.
fn sent(line: &str) -> Option<u64> {
    line.split(' ').find_map(|word| word.strip_prefix("sent=")?.parse().ok())
}

fn through(node: &Node) -> Setup {
    Setup { proxy: Some(node.proxy()), system_trust: Some(node.ca.clone()), ..Setup::default() }
}

/// Names and contents of the files of an image. `version` tells how the content differs.
fn files(seed: u64, version: impl Fn(u64) -> u64) -> Vec<(String, Content)> {
    let file =
        |index| (format!("part-{index:02}"), Content::new(seed * 1000 + index + version(index), 700_000));
    (0..12).map(file).collect()
}

/// Makes an image of files and pushes it, straight, with its layer in this format; its blobs.
fn publish(
    cluster: &Cluster,
    reference: &str,
    format: &str,
    files: &[(String, Content)],
) -> Result<Vec<Blob>> {
    let host = cluster.registry.host();
    let folder = host.new_folder("files")?;
    for (name, content) in files {
        std::io::copy(&mut content.reader(0), &mut std::fs::File::create(folder.join(name))?)?;
    }
    let certs = vec![(OPEN, cluster.registry.ca_file())];
    let tools = Podman::new(host, Setup { certs, ..Setup::default() })?;
    let source = folder.display().to_string();
    for command in [
        &["from", "--name", "made", "scratch"][..],
        &["copy", "made", &source, "/"],
        &["commit", "--quiet", "made", reference],
        &["push", "--quiet", "--compression-format", format, reference],
    ] {
        tools.run("buildah", command)?.ok().with_context(|| command.join(" "))?;
    }
    std::fs::remove_dir_all(folder)?;
    cluster.registry.blobs(reference)
}

/// Fails unless each of the files lies somewhere in the store as it was made.
fn check_files(store: &Path, files: &[(String, Content)]) -> Result<()> {
    for (name, content) in files {
        let mut found = Vec::new();
        find(store, name, &mut found)?;
        let same = |file: &PathBuf| digest_of(std::fs::File::open(file)?).map(|it| it == content.digest());
        let any = found.iter().map(same).collect::<Result<Vec<bool>>>()?.contains(&true);
        ensure!(any, "no {name} among {found:?} is what it was");
    }
    Ok(())
}

fn find(folder: &Path, name: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), name, found)?;
        } else if entry.file_name() == name {
            found.push(entry.path());
        }
    }
    Ok(())
}
