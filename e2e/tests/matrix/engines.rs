//! Real engines: what a warm pull asks of whom, and passwords.

use crate::grid::Kind;
use crate::{MIB, Matrix};
use anyhow::{Result, ensure};
use darter_e2e::containerd::Containerd;
use darter_e2e::docker::{Dockerd, Setup, forget};
use darter_e2e::image::{Access, check_copied, skopeo_copy};
use darter_e2e::nginx::Hit;
use darter_e2e::registry::{CREDENTIALS, PRIVATE};
use darter_e2e::tokens::SERVICE;

/// A pull of what is here costs the registry and its token service what the client itself asks them, and nothing for a layer.
pub(crate) fn a_warm_pull(scene: &Matrix) -> Result<()> {
    let reference = &format!("{SERVICE}/team/warm:1");
    let image = scene.registry.publish(reference, 5, 3, 6 * MIB)?;
    let (node, ca) = (&scene.nodes[0], scene.registry.ca_file());
    let certs = vec![(SERVICE, node.ca.clone())];
    let through =
        Dockerd::start(&node.host, &Setup { proxy: Some(node.proxy()), certs, ..Setup::default() })?;
    let straight =
        Dockerd::start(&scene.stranger, &Setup { certs: vec![(SERVICE, ca)], ..Setup::default() })?;
    let (user, password) = CREDENTIALS.split_once(':').expect("it has a colon");
    let said = through.docker(&["pull", reference])?.failed()?.stderr;
    ensure!(said == straight.docker(&["pull", reference])?.failed()?.stderr, "without a password: {said}");
    for engine in [&through, &straight] {
        engine.docker(&["login", "--username", user, "--password", password, SERVICE])?.ok()?;
    }
    let pull = |engine: &Dockerd| -> Result<(Vec<Hit>, Vec<String>)> {
        let (hits, tokens) = (scene.registry.log()?.len(), scene.tokens.asked().len());
        engine.pull(reference)?;
        engine.check(reference, &image)?;
        Ok((scene.registry.log()?.split_off(hits), scene.tokens.asked().split_off(tokens)))
    };
    pull(&through)?;
    forget(&through, reference)?;
    let (asked, tokens) = pull(&through)?;
    let (expected, expected_tokens) = pull(&straight)?;
    let lines = |hits: &[Hit], blobs: bool| -> Vec<String> {
        let wanted = hits.iter().filter(|hit| blobs || !hit.path.contains("/blobs/"));
        wanted.map(|hit| format!("{} {} {}", hit.method, hit.path, hit.status)).collect()
    };
    ensure!(
        lines(&expected, true).len() > lines(&expected, false).len(),
        "no layer was pulled: {expected:?}"
    );
    let (asked, mut expected) = (lines(&asked, true), lines(&expected, false));
    // The engine may still have the manifest, and then it asks for nothing but its name.
    if !asked.iter().any(|line| line.contains("/manifests/sha256:")) {
        expected.retain(|line| !line.contains("/manifests/sha256:"));
    }
    ensure!(asked == expected && !asked.is_empty(), "{asked:?}, and straight {expected:?}");
    ensure!(tokens == expected_tokens && !tokens.is_empty(), "{tokens:?}, and straight {expected_tokens:?}");
    Ok(())
}

/// An engine behind its node's proxy, for content that is nowhere, here, and at a peer; with a token registry and with a password.
pub(crate) fn dockerd(scene: &Matrix) -> Result<()> {
    for kind in Kind::ALL {
        let reference = &format!("{}/team/docker:1", kind.registry());
        let image = scene.registry.publish(reference, 8 + kind as u64, 2, MIB)?;
        for (node, before) in kind.nodes(scene).into_iter().zip([0, 1]) {
            let certs = vec![(kind.registry(), node.ca.clone())];
            let engine =
                Dockerd::start(&node.host, &Setup { proxy: Some(node.proxy()), certs, ..Setup::default() })?;
            let refuses_others = |copies| -> Result<()> {
                for wrong in [None, Some("somebody:wrong-horse")] {
                    engine.show(kind.registry(), wrong)?;
                    let said = engine.docker(&["pull", reference])?.failed()?.stderr;
                    let words =
                        ["unauthorized", "access to the resource is denied", "no basic auth credentials"];
                    ensure!(words.iter().any(|it| said.contains(it)), "{kind:?} {wrong:?}: {said}");
                    ensure!(
                        !engine.docker(&["image", "inspect", reference])?.status.success(),
                        "it is there"
                    );
                }
                scene.registry.check_copies(&image, copies)
            };
            refuses_others(before)?;
            engine.show(kind.registry(), Some(CREDENTIALS))?;
            engine.pull(reference)?;
            engine.check(reference, &image)?;
            scene.registry.check_copies(&image, 1)?;
            forget(&engine, reference)?;
            refuses_others(1)?;
        }
    }
    Ok(())
}

pub(crate) fn containerd_and_skopeo(scene: &Matrix) -> Result<()> {
    let reference = &format!("{PRIVATE}/team/engines:1");
    let image = scene.registry.publish(reference, 6, 2, MIB)?;
    for node in Kind::Basic.nodes(scene) {
        let engine = Containerd::start(&node.host)?;
        // The registry itself is out of reach: its authority is not known there.
        let mirror = format!(
            "server = 'https://{PRIVATE}'\n[host.'{}']\ncapabilities = ['pull', 'resolve']\n",
            node.proxy()
        );
        engine.set_hosts(PRIVATE, &mirror)?;
        for wrong in [None, Some("somebody:wrong-horse")] {
            let said = engine.pull_as(reference, wrong)?.failed()?.stderr;
            ensure!(said.contains("401") || said.contains("authorization failed"), "{said}");
        }
        engine.pull_as(reference, Some(CREDENTIALS))?.ok()?;
        ensure!(engine.manifest(reference)? == image.manifest, "another image came");
        scene.registry.check_copies(&image, 1)?;
    }
    let reference = &format!("{SERVICE}/team/engines:1");
    let image = scene.registry.publish(reference, 7, 2, MIB)?;
    for node in Kind::Token.nodes(scene) {
        let copy = |credentials| -> Result<()> {
            let to = node.host.new_folder("copied")?;
            let certificates = node.ca.parent().expect("it stands in a folder");
            skopeo_copy(&node.host, &node.proxy(), &Access { reference, certificates, credentials }, &to)?;
            check_copied(&image, &to)
        };
        for wrong in [None, Some("somebody:wrong-horse")] {
            let said = format!("{:#}", copy(wrong).expect_err("it is not for everybody"));
            ensure!(said.contains("unauthorized") || said.contains("authentication required"), "{said}");
        }
        copy(Some(CREDENTIALS))?;
        scene.registry.check_copies(&image, 1)?;
    }
    Ok(())
}
