//! npm: a registry of packuments, which are asked for each time, and of tarballs, which leave it once for all nodes.

use crate::{Depot, check_file, fails_with, works};
use anyhow::{Context, Result};
use darter_e2e::content::Content;
use darter_e2e::node::Node;
use darter_e2e::site::{NODE, Site};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name, and what is in it.
const PACKAGES: [(&str, Content); 2] = [
    ("lab-package", Content { seed: 200, length: 5_000_789 }),
    ("@lab/scoped", Content { seed: 201, length: 1000 }),
];

/// Puts a package on the registry; its tarball's path.
fn publish(depot: &Depot, name: &str, payload: Content) -> Result<PathBuf> {
    let work = depot.nodes[0].host.new_folder("package")?;
    let description = serde_json::json!({ "name": name, "version": "1.0.0", "license": "Apache-2.0" });
    std::fs::write(work.join("package.json"), description.to_string())?;
    std::io::copy(&mut payload.reader(0), &mut std::fs::File::create(work.join("payload"))?)?;
    let mut command = Command::new("npm");
    // Its log, which grows, is no part of the package.
    let home = depot.nodes[0].host.new_folder("home")?;
    let packed = works(command.current_dir(&work).env("HOME", &home).args(["pack", "--json"]))?.stdout;
    let packed: serde_json::Value = serde_json::from_str(&packed)?;
    let integrity = packed[0]["integrity"].as_str().context("no integrity")?;
    let mut made = std::fs::read_dir(&work)?.flatten().map(|entry| entry.path());
    let made = made.find(|file| file.extension().is_some_and(|end| end == "tgz"));
    let tarball =
        Path::new(name).join("-").join(format!("{}-1.0.0.tgz", name.rsplit('/').next().unwrap_or(name)));
    let top = depot.site.www(NODE);
    std::fs::create_dir_all(top.join(name).join("-"))?;
    std::fs::copy(made.context("no tarball")?, top.join(&tarball))?;
    let packument = serde_json::json!({
        "name": name, "dist-tags": { "latest": "1.0.0" },
        "versions": { "1.0.0": { "name": name, "version": "1.0.0", "dist": {
            "tarball": format!("https://{NODE}/{}", tarball.display()), "integrity": integrity,
        } } },
    });
    std::fs::write(top.join(name).join(Site::PACKUMENT), packument.to_string())?;
    std::fs::remove_dir_all(work)?;
    Ok(tarball)
}

fn npm(node: &Node, folder: &Path, registry: &str) -> Command {
    let mut command = node.host.command("npm");
    command.env("HOME", folder).current_dir(folder).args(["install", "--no-audit", "--no-fund"]);
    command.args(["--fetch-retries=0", "--registry", registry, "--https-proxy", &node.proxy()]);
    command.args(["--proxy", &node.proxy(), "--cache"]).arg(folder.join("cache"));
    // The machine's own settings may name a CA file, which comes before node's own variable.
    command.arg("--globalconfig").arg(folder.join("none"));
    command
}

pub(crate) fn installs(depot: &Depot) -> Result<()> {
    let tarballs = PACKAGES.map(|(name, payload)| publish(depot, name, payload));
    let tarballs = tarballs.into_iter().collect::<Result<Vec<_>>>()?;
    let registry = format!("https://{NODE}/");
    let check = |folder: &Path| {
        let file = |name| folder.join("node_modules").join(name).join("payload");
        PACKAGES.iter().try_for_each(|(name, payload)| check_file(&file(name), *payload))
    };
    depot.three_times(NODE, &tarballs, |node, folder| {
        let mut command = npm(node, folder, &registry);
        works(command.arg("--cafile").arg(&node.ca).args(PACKAGES.map(|(name, _)| name)))?;
        check(folder)
    })?;

    // The same by the environment: node has its own authorities and does not look at the system's store.
    let node = &depot.nodes[1];
    let folder = node.host.new_folder("home")?;
    let mut command = npm(node, &folder, &registry);
    works(command.env("NODE_EXTRA_CA_CERTS", &node.ca).args(PACKAGES.map(|(name, _)| name)))?;
    check(&folder)?;
    depot.site.check_copies(NODE, &tarballs, 1)
}

pub(crate) fn shows_what_is_wrong(depot: &Depot) -> Result<()> {
    publish(depot, "lab-wrong", Content::new(202, 100))?;
    let node = &depot.nodes[0];
    let folder = node.host.new_folder("home")?;
    let install = |registry: &str| {
        let mut command = npm(node, &folder, registry);
        command.arg("lab-wrong");
        command
    };
    let no_ca = &mut install(&format!("https://{NODE}/"));
    fails_with(no_ca, &["UNABLE_TO_VERIFY_LEAF_SIGNATURE"])?;
    fails_with(&mut install("http://localhost:9/"), &["403", "localhost is a loopback address"])?;
    fails_with(&mut install("https://localhost:9/"), &["403"])?;
    fails_with(&mut install(&format!("http://{NODE}:9/")), &["502", "cannot connect"])?;
    fails_with(&mut install(&format!("https://{NODE}:9/")), &["502"])
}
