//! Real container engines pull and push real images through real daemons: hosts with their own addresses, a registry over
//! HTTPS with its own authority, a scheduler, three daemons.
#![forbid(unsafe_code)]

mod podman;

use anyhow::{Context, Result, ensure};
use darter_e2e::containerd::Containerd;
use darter_e2e::darter::Scheduler;
use darter_e2e::docker::{Dockerd, Setup, tail};
use darter_e2e::image::{Access, Image, check_copied, skopeo_copy};
use darter_e2e::net::{Host, Lab};
use darter_e2e::nginx::Hit;
use darter_e2e::node::Node;
use darter_e2e::origin::Origin;
use darter_e2e::podman::{Podman, Setup as PodmanSetup};
use darter_e2e::process::run;
use darter_e2e::registry::{CREDENTIALS, OPEN, PRIVATE, Registry};
use darter_e2e::suite::{self, Scene};
use std::process::ExitCode;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// How long a command that moves next to nothing may take.
const SHORT: Duration = Duration::from_secs(60);

/// The hosts, and what runs on them. What is used by others goes last.
struct Cluster {
    nodes: Vec<Node>,
    scheduler: Scheduler,
    registry: Registry,
    stranger: Host,
    _lab: Lab,
}

fn main() -> ExitCode {
    suite::run(
        Cluster::start,
        &[
            ("the_second_node_costs_the_registry_nothing", the_second_node_costs_the_registry_nothing),
            ("three_cold_nodes_at_once_cost_one_copy", three_cold_nodes_at_once_cost_one_copy),
            ("docker_pulls_through_registry_mirrors", docker_pulls_through_registry_mirrors),
            ("containerd_pulls_through_hosts_toml", containerd_pulls_through_hosts_toml),
            (
                "podman_buildah_and_skopeo_pull_through_the_proxy",
                podman_buildah_and_skopeo_pull_through_the_proxy,
            ),
            ("podman_and_buildah_pull_through_mirrors", podman::mirrors_of_registries_conf),
            ("podman_and_skopeo_pull_zstd", podman::zstd),
            ("podman_fetches_the_missing_parts_of_a_layer", podman::fetches_the_missing_parts_of_a_layer),
            ("podman_pushes", podman_pushes),
            ("docker_pushes", docker_pushes),
            ("a_private_image_needs_the_password", a_private_image_needs_the_password),
            ("docker_sees_what_the_registry_says", docker_sees_what_the_registry_says),
            ("an_unknown_upstream_certificate_is_named", an_unknown_upstream_certificate_is_named),
            ("an_origin_that_demands_a_client_certificate_is_named", a_demand_is_named),
            ("docker_and_podman_show_what_is_wrong", docker_and_podman_show_what_is_wrong),
            ("docker_takes_the_proxy_of_daemon_json", docker_takes_the_proxy_of_daemon_json),
        ],
    )
}

impl Cluster {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let registry = Registry::start(&lab.host(&Registry::NAMES)?)?;
        let scheduler = Scheduler::start_on(&lab.host(&["scheduler"])?)?;
        let stranger = lab.host(&["stranger"])?;
        let nodes =
            ["node1", "node2", "node3"].map(|name| Node::start(lab.host(&[name])?, &proxy(&registry)));
        Ok(Self {
            nodes: nodes.into_iter().collect::<Result<_>>()?,
            scheduler,
            registry,
            stranger,
            _lab: lab,
        })
    }

    /// Cold through the first node, warm through it again, then through the second.
    fn cold_warm_second(&self) -> [&Node; 3] {
        [&self.nodes[0], &self.nodes[0], &self.nodes[1]]
    }

    fn dockerd_through(&self, node: &Node) -> Result<Dockerd> {
        let certs = vec![(OPEN, node.ca.clone()), (PRIVATE, node.ca.clone())];
        Dockerd::start(&node.host, &Setup { proxy: Some(node.proxy()), certs, ..Setup::default() })
    }

    /// An engine that does not know of us.
    fn dockerd_straight(&self) -> Result<Dockerd> {
        let ca = self.registry.ca_file();
        Dockerd::start(
            &self.stranger,
            &Setup { certs: vec![(OPEN, ca.clone()), (PRIVATE, ca)], ..Setup::default() },
        )
    }
}

impl Scene for Cluster {
    fn logs(&self) -> String {
        let part = |name: &str, log: String| format!("--- {name}\n{}\n", tail(&log, 40));
        let nodes = self.nodes.iter().map(|node| part(node.host.name(), node.daemon.process.log()));
        nodes.chain([part("scheduler", self.scheduler.process.log())]).collect()
    }
}

/// What stands under `proxy:` of every node.
fn proxy(registry: &Registry) -> String {
    format!(
        "  registryMirror: {{ dynamic: true, url: 'https://{OPEN}', certs: ['{ca}'] }}
  hijackHTTPS:
    hosts:
      - {{ regx: '^({OPEN}|{PRIVATE}):(443|8443)$', certs: ['{ca}'] }}
      - {{ regx: '^stranger:' }}
",
        ca = registry.ca_file().display(),
    )
}

fn the_second_node_costs_the_registry_nothing(cluster: &Cluster) -> Result<()> {
    let reference = &format!("{OPEN}/team/app:1");
    let image = cluster.registry.publish(reference, 2, 5, 60 * MIB)?;
    for node in cluster.cold_warm_second() {
        let engine = cluster.dockerd_through(node)?;
        engine.pull(reference)?;
        engine.check(reference, &image)?;
        cluster.registry.check_copies(&image, 1)?;
    }
    skopeo_through(&cluster.nodes[2], reference, &image)?;
    cluster.registry.check_copies(&image, 1)
}

fn three_cold_nodes_at_once_cost_one_copy(cluster: &Cluster) -> Result<()> {
    let reference = &format!("{OPEN}/team/rush:1");
    let image = cluster.registry.publish(reference, 3, 5, 100 * MIB)?;
    let engines = [cluster.dockerd_through(&cluster.nodes[0])?, cluster.dockerd_through(&cluster.nodes[1])?];
    std::thread::scope(|scope| {
        let pulls = engines.each_ref().map(|engine| scope.spawn(|| engine.pull(reference)));
        let copy = scope.spawn(|| skopeo_through(&cluster.nodes[2], reference, &image));
        pulls.into_iter().chain([copy]).try_for_each(|thread| thread.join().expect("a pull does not panic"))
    })?;
    engines.iter().try_for_each(|engine| engine.check(reference, &image))?;
    cluster.registry.check_copies(&image, 1)
}

fn skopeo_through(node: &Node, reference: &str, image: &Image) -> Result<()> {
    let to = node.host.new_folder("copied")?;
    let certificates = node.ca.parent().expect("it stands in a folder");
    skopeo_copy(&node.host, &node.proxy(), &Access { reference, certificates, credentials: None }, &to)?;
    check_copied(image, &to)?;
    std::fs::remove_dir_all(to)?;
    Ok(())
}

fn docker_pulls_through_registry_mirrors(cluster: &Cluster) -> Result<()> {
    let image = cluster.registry.publish(&format!("{OPEN}/library/mirrored:1"), 4, 2, 20 * MIB)?;
    for node in cluster.cold_warm_second() {
        let setup = Setup { mirrors: vec![node.proxy()], ..Setup::default() };
        let engine = Dockerd::start(&node.host, &setup)?;
        engine.pull("mirrored:1")?;
        engine.check("mirrored:1", &image)?;
        cluster.registry.check_copies(&image, 1)?;
    }
    Ok(())
}

fn containerd_pulls_through_hosts_toml(cluster: &Cluster) -> Result<()> {
    let reference = &format!("{OPEN}/team/containerd:1");
    let image = cluster.registry.publish(reference, 5, 2, 20 * MIB)?;
    for node in cluster.cold_warm_second() {
        let engine = Containerd::start(&node.host)?;
        // The registry itself is out of reach: its authority is not known there.
        let mirror = format!(
            "server = 'https://{OPEN}'\n[host.'{}']\ncapabilities = ['pull', 'resolve']\n",
            node.proxy()
        );
        engine.set_hosts(OPEN, &mirror)?;
        engine.pull(reference)?.ok()?;
        ensure!(engine.manifest(reference)? == image.manifest, "another image came");
        cluster.registry.check_copies(&image, 1)?;
    }
    Ok(())
}

/// podman trusts us as one of the system's authorities, buildah by its folder for one registry, skopeo by an option.
fn podman_buildah_and_skopeo_pull_through_the_proxy(cluster: &Cluster) -> Result<()> {
    let images = ["podman", "buildah", "skopeo"].map(|tool| format!("{OPEN}/team/{tool}:1"));
    for (seed, reference) in (10..).zip(&images) {
        let image = cluster.registry.publish(reference, seed, 2, 10 * MIB)?;
        for node in cluster.cold_warm_second() {
            let mut setup = PodmanSetup { proxy: Some(node.proxy()), ..PodmanSetup::default() };
            match seed {
                10 => setup.system_trust = Some(node.ca.clone()),
                11 => setup.certs = vec![(OPEN, node.ca.clone())],
                _ => {}
            }
            let tools = Podman::new(&node.host, setup)?;
            match seed {
                10 => tools.run("podman", &["pull", "--quiet", reference])?.ok().map(drop)?,
                11 => tools.run("buildah", &["pull", "--quiet", reference])?.ok().map(drop)?,
                _ => skopeo_through(node, reference, &image)?,
            }
            if seed < 12 {
                tools.check(reference, &image)?;
            }
            cluster.registry.check_copies(&image, 1)?;
        }
    }
    Ok(())
}

fn podman_pushes(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0];
    let reference = &format!("{OPEN}/team/pushed-by-podman:1");
    let image = Image::build(&node.host.new_folder("image")?, 13, 2, 10 * MIB)?;
    let archive = node.host.folder().join("podman.tar");
    image.archive(&archive, reference)?;
    let setup = PodmanSetup {
        proxy: Some(node.proxy()),
        system_trust: Some(node.ca.clone()),
        ..PodmanSetup::default()
    };
    let tools = Podman::new(&node.host, setup)?;
    tools.run("podman", &["load", "--quiet", "--input", &archive.display().to_string()])?.ok()?;
    std::fs::remove_file(&archive)?;
    // Layers that are compressed on the way have other digests, and are the same layers still.
    tools.run("podman", &["push", "--quiet", reference])?.ok()?;
    let other = cluster.dockerd_straight()?;
    other.pull(reference)?;
    ensure!(other.inspect(reference)?["RootFS"]["Layers"] == serde_json::json!(image.layers), "other layers");
    Ok(())
}

fn docker_pushes(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0];
    let reference = &format!("{OPEN}/team/pushed:1");
    let image = Image::build(&node.host.new_folder("image")?, 6, 3, 100 * MIB)?;
    let archive = node.host.folder().join("pushed.tar");
    image.archive(&archive, reference)?;
    let engine = cluster.dockerd_through(node)?;
    engine.docker(&["load", "--quiet", "--input", &archive.display().to_string()])?.ok()?;
    std::fs::remove_file(&archive)?;
    engine.check(reference, &image)?;
    engine.docker(&["push", "--quiet", reference])?.ok()?;

    // What was pushed is what another engine gets, straight from the registry.
    let other = cluster.dockerd_straight()?;
    other.pull(reference)?;
    other.check(reference, &image)
}

fn a_private_image_needs_the_password(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0];
    let reference = &format!("{PRIVATE}/secret:1");
    let image = cluster.registry.publish(reference, 7, 2, 10 * MIB)?;
    let (user, password) = CREDENTIALS.split_once(':').expect("it has a colon");
    let engine = cluster.dockerd_through(node)?;
    let straight = cluster.dockerd_straight()?;

    for wrong in [vec!["pull", reference], vec!["login", "--username", user, "--password", "wrong", PRIVATE]]
    {
        let through = engine.docker(&wrong)?.failed()?.stderr;
        let expected = straight.docker(&wrong)?.failed()?.stderr;
        ensure!(through == expected, "through us:\n{through}\nstraight:\n{expected}");
        ensure!(
            through.contains("401 Unauthorized") || through.contains("no basic auth credentials"),
            "{through}"
        );
    }
    ensure!(
        cluster.registry.blob_bytes(&image)?.values().all(|sent| *sent == 0),
        "bytes left without a password"
    );

    engine.docker(&["login", "--username", user, "--password", password, PRIVATE])?.ok()?;
    engine.pull(reference)?;
    engine.check(reference, &image)?;
    cluster.registry.check_copies(&image, 1)
}

fn docker_sees_what_the_registry_says(cluster: &Cluster) -> Result<()> {
    let engine = cluster.dockerd_through(&cluster.nodes[0])?;
    let straight = cluster.dockerd_straight()?;
    let wanted = ["pull", &format!("{OPEN}/no/such:1")];
    let through = engine.docker(&wanted)?.failed()?.stderr;
    ensure!(through == straight.docker(&wanted)?.failed()?.stderr, "{through}");
    ensure!(through.contains("manifest unknown"), "{through}");
    let not_found = |hit: &Hit| hit.path.starts_with("/v2/no/such/") && hit.status == 404;
    ensure!(cluster.registry.log()?.iter().any(not_found), "the registry was not asked");
    Ok(())
}

/// A refusal, an origin that is down, a missing CA and a wrong password, in the words that a person at the client reads.
fn docker_and_podman_show_what_is_wrong(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0];
    let docker = cluster.dockerd_through(node)?;
    let trusting = PodmanSetup {
        proxy: Some(node.proxy()),
        system_trust: Some(node.ca.clone()),
        ..PodmanSetup::default()
    };
    let podman = Podman::new(&node.host, trusting)?;
    for (reference, words) in [
        ("169.254.169.254:443/app:1", "169.254.169.254 is a cloud metadata service"),
        (&format!("{OPEN}:9/app:1"), &format!("cannot connect to {OPEN}:9")),
        ("nowhere.example/app:1", "cannot resolve the name nowhere.example"),
    ] {
        let said = docker.docker(&["pull", reference])?.failed()?.stderr;
        ensure!(said.contains(words), "docker says: {said}");
        let said = podman.run("podman", &["pull", reference])?.failed()?.stderr;
        ensure!(said.contains(words), "podman says: {said}");
    }

    cluster.registry.publish(&format!("{PRIVATE}/shown:1"), 20, 1, MIB)?;
    let wrong = ["pull", "--creds", "somebody:wrong", &format!("{PRIVATE}/shown:1")];
    let said = podman.run("podman", &wrong)?.failed()?.stderr;
    ensure!(said.contains("authentication required"), "{said}");

    let reference = &format!("{OPEN}/no/such:1");
    let unknown = "certificate signed by unknown authority";
    let setup = Setup { proxy: Some(node.proxy()), ..Setup::default() };
    let said = Dockerd::start(&node.host, &setup)?.docker(&["pull", reference])?.failed()?.stderr;
    ensure!(said.contains(unknown), "docker says: {said}");
    let setup = PodmanSetup { proxy: Some(node.proxy()), ..PodmanSetup::default() };
    let said = Podman::new(&node.host, setup)?.run("podman", &["pull", reference])?.failed()?.stderr;
    ensure!(said.contains(unknown), "podman says: {said}");
    Ok(())
}

/// `proxies` came with Docker 23.
fn docker_takes_the_proxy_of_daemon_json(cluster: &Cluster) -> Result<()> {
    let reference = &format!("{OPEN}/team/settings:1");
    let image = cluster.registry.publish(reference, 21, 2, 10 * MIB)?;
    for node in cluster.cold_warm_second() {
        let certs = vec![(OPEN, node.ca.clone())];
        let setup = Setup { proxy_in_settings: Some(node.proxy()), certs, ..Setup::default() };
        let engine = Dockerd::start(&node.host, &setup)?;
        engine.pull(reference)?;
        engine.check(reference, &image)?;
        cluster.registry.check_copies(&image, 1)?;
        let said = engine.docker(&["pull", "169.254.169.254:443/app:1"])?.failed()?.stderr;
        ensure!(said.contains("169.254.169.254 is a cloud metadata service"), "{said}");
    }
    Ok(())
}

/// A registry that asks who we are, and is shown nothing: before a client sees a certificate of ours.
fn a_demand_is_named(cluster: &Cluster) -> Result<()> {
    let identity = cluster.registry.ca().issue(&[OPEN])?;
    let listener = cluster.registry.host().listen(8443)?;
    let _origin = Origin::start_on(listener, Some(identity.server_for(cluster.registry.ca())?))?;
    let node = &cluster.nodes[0];
    let demand = format!(
        "502 cannot speak TLS with {OPEN}:8443: it demands a client certificate, and none is configured for it \
         (upstream.hosts[].clientCert)"
    );
    let mut curl = node.host.command("curl");
    // The reason phrase of the CONNECT, which curl shows only when it is asked to.
    curl.args(["--silent", "--verbose", "--proxy", &node.proxy(), "--cacert"]).arg(&node.ca);
    let said = run(curl.arg(format!("https://{OPEN}:8443/file")), SHORT)?.failed()?.stderr;
    ensure!(said.contains(&demand), "curl says: {said}");
    let (_, sentence) = demand.split_once(' ').context("a status comes first")?;
    let reference = &format!("{OPEN}:8443/app:1");
    let said = cluster.dockerd_through(node)?.docker(&["pull", reference])?.failed()?.stderr;
    ensure!(said.contains(sentence), "docker says: {said}");
    let setup = PodmanSetup {
        proxy: Some(node.proxy()),
        system_trust: Some(node.ca.clone()),
        ..PodmanSetup::default()
    };
    let said = Podman::new(&node.host, setup)?.run("podman", &["pull", reference])?.failed()?.stderr;
    ensure!(said.contains(sentence), "podman says: {said}");
    Ok(())
}

/// A TLS server whose authority nobody configured: the sentence reaches the person at the client.
fn an_unknown_upstream_certificate_is_named(cluster: &Cluster) -> Result<()> {
    let unknown = darter_e2e::ca::Ca::new("somebody else")?;
    let identity = unknown.issue(&["stranger"])?;
    let _origin = Origin::start_on(cluster.stranger.listen(8443)?, Some(identity.server()?))?;
    let node = &cluster.nodes[0];
    let mut command = node.host.command("curl");
    // The reason phrase of the CONNECT, which curl shows only when it is asked to.
    command.args(["--silent", "--verbose", "--proxy", &node.proxy(), "--cacert"]).arg(&node.ca);
    command.arg("https://stranger:8443/file");
    let answer = run(&mut command, SHORT)?.failed()?.stderr;
    ensure!(
        answer.contains(" 502 cannot speak TLS with stranger:8443: its certificate is signed by")
            && answer.contains("not trusted here (somebody else)"),
        "{answer}"
    );
    Ok(())
}
