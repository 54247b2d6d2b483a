//! Who gets what is cached, and who does not: every way in, every kind of credential, and content that is nowhere, here, or at a
//! peer; with a registry that wants tokens from a service on another host, and with one that wants a password. The daemons log
//! all that they can, and in the end none of the secrets stands anywhere.
//!
//! The tests run in the order in which they stand here: one of them takes a password away, the last but one stops the registries.
#![forbid(unsafe_code)]

mod collector;
mod engines;
mod grid;
mod hostile;
mod secrets;

use anyhow::{Result, ensure};
use collector::Collector;
use darter_e2e::ca::Ca;
use darter_e2e::darter::{Scheduler, binary, sum_of};
use darter_e2e::docker::tail;
use darter_e2e::http;
use darter_e2e::image::Image;
use darter_e2e::net::{Host, Lab};
use darter_e2e::node::Node;
use darter_e2e::poll::until;
use darter_e2e::registry::Registry;
use darter_e2e::suite::{self, Scene};
use darter_e2e::tokens::{PUBLIC, REALM, Signer, TokenService};
use grid::{Caller, Kind, Layers, MOUNTED, SECRET, Way};
use hostile::Hostile;
use secrets::Secrets;
use std::process::ExitCode;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Of each layer, in bytes. Small content goes other ways than large: see the second layer of an image for docker.
const LAYER: u64 = 160 << 10;
/// How long it may take until the cluster knows what a node has.
const LIMIT: Duration = Duration::from_secs(30);

/// The hosts, and what runs on them. What is used by others goes last.
struct Matrix {
    nodes: Vec<Node>,
    /// A node of the first kind, whose mirror is the hostile registry.
    fooled: Node,
    hostile: Hostile,
    scheduler: Scheduler,
    scheduler_host: Host,
    registry: Registry,
    tokens: TokenService,
    /// Makes tokens that no registry believes.
    impostor: Signer,
    /// What the private repository of each kind of registry holds.
    images: [Image; 2],
    secrets: Secrets,
    traces: Collector,
    _collector: Host,
    stranger: Host,
    _lab: Lab,
}

fn main() -> ExitCode {
    suite::run(
        Matrix::start,
        &[
            ("who_may_have_a_private_layer_gets_it", grid::who_may_have_a_private_layer_gets_it),
            ("nobody_else_gets_a_byte_of_it", grid::nobody_else_gets_a_byte_of_it),
            (
                "a_registry_that_claims_a_private_layer_gets_none_of_it",
                hostile::who_claims_it_gets_none_of_it,
            ),
            ("the_registrys_challenge_leads_to_a_token", grid::the_registrys_challenge_leads_to_a_token),
            ("a_warm_pull_costs_what_only_the_registry_can_say", engines::a_warm_pull),
            ("dockerd_gets_a_private_image_with_the_right_password_alone", engines::dockerd),
            ("containerd_and_skopeo_get_what_their_passwords_are_for", engines::containerd_and_skopeo),
            ("a_revoked_password_ends_with_the_first_refusal", grid::a_revoked_password),
            ("while_the_registries_are_down_only_those_they_knew_are_served", grid::registries_are_down),
            ("no_secret_is_written_anywhere", secrets::no_secret_is_written_anywhere),
        ],
    )
}

impl Matrix {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let ca = Ca::new("registry test authority")?;
        let tokens = TokenService::start(&lab.host(&[REALM])?, &ca)?;
        let hostile_tls = ca.issue(&[hostile::NAME])?.server()?;
        let registry = Registry::start_with(&lab.host(&Registry::NAMES)?, ca, Some(&tokens))?;
        let scheduler_host = lab.host(&["scheduler"])?;
        // Not only our own: what libraries say, too.
        let mut command = scheduler_host.command(binary());
        command.env("RUST_LOG", "trace");
        let scheduler = Scheduler::start_secured_by(&scheduler_host, command)?;
        let secrets = Secrets::default();
        let collector = lab.host(&["collector"])?;
        let traces = Collector::start(collector.listen(4317)?)?;
        let stranger = lab.host(&["stranger"])?;
        let mut node = |name, kind: Kind, mirror| {
            let token = secrets::token(&secrets, scheduler_host.folder())?;
            start_node(lab.host(&[name])?, (kind, mirror), &registry, &token)
        };
        let mut nodes = Vec::new();
        for (name, kind) in [
            ("token1", Kind::Token),
            ("token2", Kind::Token),
            ("basic1", Kind::Basic),
            ("basic2", Kind::Basic),
        ] {
            nodes.push(node(name, kind, kind.registry())?);
        }
        let fooled = node("fooled", Kind::Token, hostile::NAME)?;
        let publish = |kind: Kind, repository: &str, seed, layers| {
            registry.publish(&format!("{}/{repository}:1", kind.registry()), seed, layers, LAYER)
        };
        for kind in Kind::ALL {
            publish(kind, PUBLIC, 9, 1)?;
            // The same blobs as in the other repository.
            publish(kind, MOUNTED, 1 + kind as u64, Layers::NUMBER)?;
        }
        let image = |kind: Kind| publish(kind, SECRET, 1 + kind as u64, Layers::NUMBER);
        let images = [image(Kind::Token)?, image(Kind::Basic)?];
        let hostile = Hostile::start(&lab.host(&[hostile::NAME])?, hostile_tls, &images)?;
        let scene = Self {
            nodes,
            fooled,
            hostile,
            scheduler,
            scheduler_host,
            registry,
            tokens,
            impostor: Signer::new()?,
            images,
            secrets,
            traces,
            _collector: collector,
            stranger,
            _lab: lab,
        };
        for kind in Kind::ALL {
            scene.warm(kind)?;
        }
        scene.warm_fooled()?;
        Ok(scene)
    }

    /// Brings some layers to the first node of a kind, and lets the second one see manifests.
    fn warm(&self, kind: Kind) -> Result<()> {
        let [first, second] = kind.nodes(self);
        let before = self.held()?;
        for layer in Layers::warm() {
            let path = self.blob(kind, SECRET, layer);
            until("a layer to be on the node", LIMIT, || {
                let got = self.ask((first, Way::Mirror, kind), &path, Caller::Right(SECRET), &[]).ok()?;
                got.is_hit().then_some(())
            })?;
        }
        for way in Way::ALL {
            let path = format!("/v2/{SECRET}/manifests/1");
            let got = self.ask((second, way, kind), &path, Caller::Right(SECRET), &[])?;
            ensure!(got.status == 200, "{way:?}: {got:?}");
        }
        let all = before + Layers::warm().count() as f64;
        until("the scheduler to know of it", LIMIT, || self.held().ok().filter(|held| *held >= all)).map(drop)
    }

    /// How many contents some node has all of, by what the scheduler knows.
    fn held(&self) -> Result<f64> {
        let page = page(&self.scheduler_host, self.scheduler.health.port(), "/metrics")?;
        sum_of(&page, "darter_scheduler_peers{role=\"complete\"}")
    }
}

/// A member of the cluster with a mirror, which believes the registry of one kind alone, and logs and traces all that it can.
fn start_node(host: Host, (kind, mirror): (Kind, &str), registry: &Registry, token: &str) -> Result<Node> {
    // What a registry says is compared with what it says at that moment.
    let proxy = format!(
        "  negativeTTL: 0s
  # Longer than the tests take: where somebody is asked about again, it is for another reason.
  entitlement: {{ fresh: 1h, grace: 1h }}
  # The forward proxy's clients speak to the registries without TLS, which are others without this.
  trustedRegistries: '^{believed}:(80|443)$'
  registryMirror: {{ dynamic: true, url: 'https://{mirror}', certs: ['{ca}'] }}
  hijackHTTPS:
    hosts:
      - {{ regx: '^[^.]+[.]example:443$', certs: ['{ca}'] }}
tracing: {{ protocol: grpc, endpoint: 'collector:4317' }}
",
        believed = kind.registry(),
        ca = registry.ca_file().display(),
    );
    let mut command = host.command(binary());
    command.env("RUST_LOG", "trace");
    Node::start_member(host, &proxy, command, token)
}

/// A page of a host's own.
fn page(host: &Host, port: u16, path: &str) -> Result<String> {
    let name = host.name();
    let request = http::Request { method: "GET", target: path, host: name, headers: &[], body: None };
    http::send(Box::new(host.connect(host.port(port))?), &request)?.text()
}

impl Scene for Matrix {
    fn logs(&self) -> String {
        // Trace lines are too many to be read here.
        let lines =
            |log: &str| log.lines().filter(|line| line.contains(" access")).collect::<Vec<_>>().join("\n");
        let part = |node: &Node| {
            format!("--- {}\n{}\n", node.host.name(), tail(&lines(&node.daemon.process.log()), 12))
        };
        self.nodes.iter().chain([&self.fooled]).map(part).collect()
    }
}
