//! Real download tools and package managers against real servers: cold, warm, and through a second node.
#![forbid(unsafe_code)]

mod apt;
mod cargo;
mod curl;
mod dnf;
mod git;
mod locked;
mod npm;
mod pip;
mod sign;
mod wget;

use sign::Signer;

use anyhow::{Context, Result, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::Scheduler;
use darter_e2e::docker::tail;
use darter_e2e::net::Lab;
use darter_e2e::node::Node;
use darter_e2e::process::{Output, run};
use darter_e2e::site::{FILES, Site};
use darter_e2e::suite::{self, Scene};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// How long one command of a client may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Where the nodes' proxies speak TLS.
const TLS_PORT: u16 = 65443;

/// What the locked node's proxy asks for.
const LOCK: &str = "reader:open-sesame";

/// More than one piece, and not a whole number of them.
const FILE_SIZE: u64 = (9 << 20) + 12_345;

/// Two nodes of one cluster, and what their clients fetch from. What is used by others goes last.
struct Depot {
    nodes: [Node; 2],
    /// One whose proxy asks for [`LOCK`].
    locked: Node,
    scheduler: Scheduler,
    site: Site,
    signer: Signer,
    _lab: Lab,
}

fn main() -> ExitCode {
    suite::run(
        Depot::start,
        &[
            ("curl_over_http", curl::over_http),
            ("curl_over_https_with_http_1", curl::over_https_with_http_1),
            ("curl_over_https_with_http_2", curl::over_https_with_http_2),
            ("curl_through_an_https_proxy", curl::through_an_https_proxy),
            ("curl_believes_a_ca_that_is_for_some_addresses", curl::believes_a_ca_that_is_for_some_addresses),
            ("curl_goes_on_where_it_stopped", curl::goes_on_where_it_stopped),
            ("curl_shows_what_is_wrong", curl::shows_what_is_wrong),
            ("wget_over_http_and_https", wget::over_http_and_https),
            ("wget_goes_on_where_it_stopped", wget::goes_on_where_it_stopped),
            ("wget_shows_what_is_wrong", wget::shows_what_is_wrong),
            ("git_clones_fetches_and_pushes", git::clones_fetches_and_pushes),
            ("git_shows_what_is_wrong", git::shows_what_is_wrong),
            ("apt_installs_over_http", apt::installs_over_http),
            ("apt_installs_over_https", apt::installs_over_https),
            ("apt_shows_what_is_wrong", apt::shows_what_is_wrong),
            ("dnf_installs_over_http", dnf::installs_over_http),
            ("dnf_installs_over_https", dnf::installs_over_https),
            ("dnf_shows_what_is_wrong", dnf::shows_what_is_wrong),
            ("pip_installs", pip::installs),
            ("pip_shows_what_is_wrong", pip::shows_what_is_wrong),
            ("npm_installs", npm::installs),
            ("npm_shows_what_is_wrong", npm::shows_what_is_wrong),
            ("cargo_fetches_and_builds", cargo::fetches_and_builds),
            ("cargo_shows_what_is_wrong", cargo::shows_what_is_wrong),
            ("a_locked_proxy_says_so_to_every_client", locked::says_so_to_every_client),
        ],
    )
}

impl Depot {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let site = Site::start(&lab.host(&Site::NAMES)?)?;
        let scheduler = Scheduler::start_on(&lab.host(&["scheduler"])?)?;
        // Plain files have names that say nothing: somebody says which of them never change. What package managers fetch is
        // known without a word.
        let proxy = format!(
            r"  listeners: [{{ port: {TLS_PORT}, security: {{ insecure: false }} }}]
  hijackHTTPS:
    hosts: [{{ regx: '\.example:443$', certs: ['{ca}'] }}]
  proxies:
    - {{ regx: '^https?://{files}/big/' }}
",
            ca = site.ca_file().display(),
            files = FILES.replace('.', "\\."),
        );
        let nodes =
            [Node::start(lab.host(&["node1"])?, &proxy)?, Node::start(lab.host(&["node2"])?, &proxy)?];
        let (username, password) = LOCK.split_once(':').context("no password")?;
        let lock = format!("{proxy}  basicAuth: {{ username: {username}, password: {password} }}\n");
        let locked = Node::start(lab.host(&["locked"])?, &lock)?;
        let signer = Signer::new(lab.folder().join("gpg"))?;
        Ok(Self { nodes, locked, scheduler, site, signer, _lab: lab })
    }

    /// Runs a client through the first node, again, and through the second, each time in a new folder: `files` of the site's
    /// `name` leave it the first time alone.
    fn three_times(
        &self,
        name: &str,
        files: &[impl AsRef<Path>],
        client: impl Fn(&Node, &Path) -> Result<()>,
    ) -> Result<()> {
        let [first, second] = &self.nodes;
        for (when, node) in [("cold", first), ("warm", first), ("through the second node", second)] {
            let folder = node.host.new_folder("home")?;
            client(node, &folder).context(when)?;
            self.site.check_copies(name, files, 1).context(when)?;
            std::fs::remove_dir_all(folder)?;
        }
        Ok(())
    }

    /// Puts a file on the site that goes through the peers; its path.
    fn big_file(&self, name: &str, content: Content) -> Result<String> {
        let folder = self.site.www(FILES).join("big");
        std::fs::create_dir_all(&folder)?;
        std::io::copy(&mut content.reader(0), &mut std::fs::File::create(folder.join(name))?)?;
        Ok(format!("big/{name}"))
    }
}

impl Scene for Depot {
    fn logs(&self) -> String {
        let part = |name: &str, log: String| format!("--- {name}\n{}\n", tail(&log, 40));
        let nodes = self.nodes.iter().map(|node| part(node.host.name(), node.daemon.process.log()));
        nodes.chain([part("scheduler", self.scheduler.process.log())]).collect()
    }
}

/// Fails unless the file holds exactly `content`.
fn check_file(file: &Path, content: Content) -> Result<()> {
    let digest = digest_of(std::fs::File::open(file).context("no file came")?)?;
    ensure!(digest == content.digest(), "{} holds something else", file.display());
    Ok(())
}

/// Runs a command that is to work.
fn works(command: &mut Command) -> Result<Output> {
    run(command, LIMIT)?.ok()
}

/// Runs a command that is to fail, and says all of `words`.
fn fails_with(command: &mut Command, words: &[&str]) -> Result<()> {
    let output = run(command, LIMIT)?.failed()?;
    let said = format!("{}{}", output.stdout, output.stderr);
    let missing = words.iter().find(|word| !said.contains(**word));
    ensure!(missing.is_none(), "{missing:?} is not said: {}\n{said}", output.status);
    Ok(())
}
