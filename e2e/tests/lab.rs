//! The laboratory itself, without us: what the other tests take for granted about engines, registry and network.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use darter_e2e::containerd::Containerd;
use darter_e2e::docker::{Dockerd, Setup};
use darter_e2e::image::{Access, check_copied, skopeo_copy};
use darter_e2e::net::{Host, Lab};
use darter_e2e::origin::{Origin, Page};
use darter_e2e::process::run;
use darter_e2e::registry::{CREDENTIALS, OPEN, PRIVATE, Registry};
use darter_e2e::suite::{self, Scene};
use std::process::ExitCode;
use std::time::Duration;

const MIB: u64 = 1 << 20;

struct Bench {
    registry: Registry,
    client: Host,
    _lab: Lab,
}

fn main() -> ExitCode {
    suite::run(
        Bench::start,
        &[
            ("every_pull_without_us_costs_one_copy", every_pull_without_us_costs_one_copy),
            ("containerd_and_skopeo_pull_without_us", containerd_and_skopeo_pull_without_us),
            ("the_private_registry_asks_for_its_password", the_private_registry_asks_for_its_password),
            ("hosts_reach_each_other_by_name", hosts_reach_each_other_by_name),
        ],
    )
}

impl Bench {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let registry = Registry::start(&lab.host(&Registry::NAMES)?)?;
        Ok(Self { registry, client: lab.host(&["client"])?, _lab: lab })
    }

    fn dockerd(&self) -> Result<Dockerd> {
        let ca = self.registry.ca_file();
        Dockerd::start(
            &self.client,
            &Setup { certs: vec![(OPEN, ca.clone()), (PRIVATE, ca)], ..Setup::default() },
        )
    }
}

impl Scene for Bench {
    fn logs(&self) -> String {
        String::new()
    }
}

fn every_pull_without_us_costs_one_copy(bench: &Bench) -> Result<()> {
    let reference = &format!("{OPEN}/straight:1");
    let image = bench.registry.publish(reference, 1, 2, 8 * MIB)?;
    for copies in 1..=2 {
        let engine = bench.dockerd()?;
        engine.pull(reference)?;
        engine.check(reference, &image)?;
        bench.registry.check_copies(&image, copies)?;
    }
    Ok(())
}

fn containerd_and_skopeo_pull_without_us(bench: &Bench) -> Result<()> {
    let reference = &format!("{OPEN}/others:1");
    let image = bench.registry.publish(reference, 2, 2, 8 * MIB)?;
    let engine = Containerd::start(&bench.client)?;
    let trust = bench.registry.ca_file();
    engine.set_hosts(OPEN, &format!("[host.'https://{OPEN}']\nca = '{}'\n", trust.display()))?;
    engine.pull(reference)?.ok()?;
    ensure!(engine.manifest(reference)? == image.manifest, "another image came");
    let to = bench.client.new_folder("copied")?;
    skopeo_copy(
        &bench.client,
        "",
        &Access { reference, certificates: &bench.registry.trust(), credentials: None },
        &to,
    )?;
    check_copied(&image, &to)
}

fn the_private_registry_asks_for_its_password(bench: &Bench) -> Result<()> {
    let reference = &format!("{PRIVATE}/secret:1");
    let image = bench.registry.publish(reference, 3, 1, MIB)?;
    let trust = bench.registry.trust();
    let to = bench.client.new_folder("copied")?;
    for (credentials, works) in [(None, false), (Some("somebody:wrong"), false), (Some(CREDENTIALS), true)] {
        let copied =
            skopeo_copy(&bench.client, "", &Access { reference, certificates: &trust, credentials }, &to);
        ensure!(copied.is_ok() == works, "{credentials:?}: {copied:?}");
    }
    check_copied(&image, &to)
}

fn hosts_reach_each_other_by_name(bench: &Bench) -> Result<()> {
    let origin = Origin::start_on(bench.registry.host().listen(8000)?, None)?;
    origin.put("/page", Page::Fixed { status: 200, headers: Vec::new(), body: "there".into() });
    let ask = |url: &str| run(bench.client.command("curl").args(["--silent", url]), Duration::from_secs(20));
    ensure!(ask("http://registry.example:8000/page")?.ok()?.stdout == "there", "no page");
    ask("http://elsewhere.example:8000/page")?.failed()?;
    Ok(())
}
