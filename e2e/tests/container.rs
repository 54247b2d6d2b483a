//! The container images: what `docker/Dockerfile` makes of the binary, run by a real engine.
//!
//! Its first stage, which compiles the binary, is the only one that is left out: the binary under test takes its place, and
//! this machine's own release, as small as debootstrap makes it, that of the base image. Nothing here asks the network: the
//! packages that the image needs are in the base already.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use darter_e2e::darter::{binary, sum_of, workspace};
use darter_e2e::docker::{Dockerd, Setup, forget, tail};
use darter_e2e::http;
use darter_e2e::net::{Host, Lab};
use darter_e2e::poll::until;
use darter_e2e::process::run;
use darter_e2e::registry::{CREDENTIALS, OPEN, PRIVATE, Registry};
use darter_e2e::suite::{self, Scene};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How long an image may take to be healthy: it is asked every ten seconds.
const HEALTHY_LIMIT: Duration = Duration::from_secs(60);

/// Where `cargo xtask install-clients` puts the system that the base image is made of, below `target/`.
const BASE: &str = "base-system.tar";

/// What is built when nothing else is asked for.
const IMAGE: &str = "darter";
/// What stands in docker-registry-proxy's place.
const DROP_IN: &str = "darter:docker-registry-proxy";

/// An engine with both images on one host, a registry on another, and an engine that pulls through what runs here.
struct Site {
    engine: Dockerd,
    client: Host,
    proxy: Host,
    registry: Registry,
    lab: Lab,
}

fn main() -> ExitCode {
    suite::run(
        Site::start,
        &[
            ("an_engine_pulls_through_the_image", an_engine_pulls_through_the_image),
            (
                "what_docker_registry_proxys_users_run_works_with_the_image",
                what_docker_registry_proxys_users_run_works_with_the_image,
            ),
            ("docker_stop_lets_a_download_end", docker_stop_lets_a_download_end),
            (
                "an_image_with_a_wrong_variable_says_so_and_ends",
                an_image_with_a_wrong_variable_says_so_and_ends,
            ),
        ],
    )
}

fn an_engine_pulls_through_the_image(site: &Site) -> Result<()> {
    let reference = &format!("{OPEN}/team/image:1");
    let image = site.registry.publish(reference, 71, 2, 5 * MIB)?;
    let volumes = ["--volume", "ca:/ca", "--volume", "data:/var/lib/darter"];
    let first = Container::start(site, IMAGE, &volumes)?;
    ensure!(first.exec(&["id", "-u"])? == "65001", "it runs as somebody else");
    let ca = first.certificate()?;
    {
        let engine = site.puller(65001, &first)?;
        engine.pull(reference)?;
        engine.check(reference, &image)?;
        first.stop()?;
        // Whoever follows has what it had: the authority, and the content.
        let second = Container::start(site, IMAGE, &volumes)?;
        ensure!(std::fs::read(second.certificate()?)? == std::fs::read(ca)?, "another authority");
        forget(&engine, reference)?;
        engine.pull(reference)?;
        second.stop()?;
    }
    site.registry.check_copies(&image, 1)
}

fn what_docker_registry_proxys_users_run_works_with_the_image(site: &Site) -> Result<()> {
    let reference = &format!("{PRIVATE}/team/image:1");
    let image = site.registry.publish(reference, 72, 2, 5 * MIB)?;
    // As there: folders of the host, which belong to root.
    let folder = site.proxy.new_folder("drop-in")?;
    let (ca, cache) = (folder.join("ca"), folder.join("cache"));
    let volumes = [format!("{}:/ca", ca.display()), format!("{}:/docker_mirror_cache", cache.display())];
    let registries = format!("REGISTRIES={OPEN} {PRIVATE}");
    let accounts = format!("AUTH_REGISTRIES={PRIVATE}:{CREDENTIALS}");
    let mut options = vec!["--env", &registries, "--env", &accounts, "--env", "CACHE_MAX_SIZE=1g"];
    options.extend(["--env", "ENABLE_MANIFEST_CACHE=true", "--env", "VERIFY_SSL=true"]);
    options.extend(volumes.iter().flat_map(|volume| ["--volume", volume]));
    let container = Container::start(site, DROP_IN, &options)?;
    let log = container.log()?;
    ensure!(log.contains("ENABLE_MANIFEST_CACHE: has no effect"), "{log}");
    ensure!(ca.join("ca.crt").exists() && ca.join("ca.key").exists(), "no authority in /ca");

    let engine = site.puller(3128, &container)?;
    engine.pull(reference)?;
    engine.check(reference, &image)?;
    forget(&engine, reference)?;
    engine.pull(reference)?;
    site.registry.check_copies(&image, 1)?;
    let pushed = format!("{OPEN}/team/pushed:1");
    engine.docker(&["tag", reference, &pushed])?.ok()?;
    let refused = engine.docker(&["push", &pushed])?.failed()?;
    let words = format!("{}{}", refused.stdout, refused.stderr);
    ensure!(words.contains("switched off"), "{words}");
    ensure!(
        std::fs::read_dir(cache.join("darter"))?.next().is_some(),
        "nothing is kept in /docker_mirror_cache"
    );
    container.stop()?;
    drop(engine);

    let allowing = Container::start(site, DROP_IN, &["--env", &registries, "--env", "ALLOW_PUSH=true"])?;
    let engine = site.puller(3128, &allowing)?;
    engine.pull(&format!("{OPEN}/team/image:1"))?;
    engine.docker(&["tag", &format!("{OPEN}/team/image:1"), &pushed])?.ok()?;
    engine.docker(&["push", "--quiet", &pushed])?.ok()?;
    allowing.stop()
}

fn docker_stop_lets_a_download_end(site: &Site) -> Result<()> {
    const LAYER: u64 = 32 * MIB;
    let image = site.registry.publish(&format!("{OPEN}/team/slow:1"), 73, 1, LAYER)?;
    let layer = image.blobs.iter().max_by_key(|blob| blob.size).context("there is a layer")?;
    let container = Container::start(site, DROP_IN, &["--env", &format!("REGISTRIES={OPEN}")])?;
    let got = site.client.folder().join("layer");
    let mut curl = site.client.command("curl");
    curl.args(["-sSf", "--limit-rate", "8M", "--proxy", "http://proxy:3128", "--cacert"]);
    curl.arg(container.certificate()?).arg("-o").arg(&got);
    curl.arg(format!("https://{OPEN}/v2/team/slow/blobs/{}", layer.digest));
    let curl = std::thread::spawn(move || run(&mut curl, LIMIT));
    until("the download", LIMIT, || {
        (container.metric("darter_proxy_requests_in_flight").ok()? > 0.0).then_some(())
    })?;
    container.stop()?;
    curl.join().expect("it does not panic")?.ok()?;
    let sum = run(Command::new("sha256sum").arg(&got), LIMIT)?.ok()?.stdout;
    ensure!(layer.digest == format!("sha256:{}", &sum[..64]), "{sum} is not {}", layer.digest);
    Ok(())
}

fn an_image_with_a_wrong_variable_says_so_and_ends(site: &Site) -> Result<()> {
    let wrong = ["run", "--rm", "--network=host", "--env", "CACHE_MAX_SIZE=lots", DROP_IN];
    let said = site.engine.docker(&wrong)?;
    ensure!(said.status.code() == Some(78) && said.stderr.contains("CACHE_MAX_SIZE"), "{said:?}");
    Ok(())
}

// === impl Site ===

impl Site {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let registry = Registry::start(&lab.host(&Registry::NAMES)?)?;
        let (proxy, client) = (lab.host(&["proxy"])?, lab.host(&["client"])?);
        let engine = Dockerd::start(&proxy, &Setup::default())?;
        build(&engine, &proxy.new_folder("context")?)?;
        Ok(Self { engine, client, proxy, registry, lab })
    }

    /// An engine that pulls by way of the port of `container`.
    fn puller(&self, port: u16, container: &Container<'_>) -> Result<Dockerd> {
        let ca = container.certificate()?;
        let setup = Setup {
            proxy: Some(format!("http://proxy:{port}")),
            certs: vec![(OPEN, ca.clone()), (PRIVATE, ca)],
            ..Setup::default()
        };
        Dockerd::start(&self.client, &setup)
    }
}

impl Scene for Site {
    fn logs(&self) -> String {
        format!("--- {}\n{}", self.lab.folder().display(), tail(&self.engine.log(), 40))
    }
}

/// Makes both images, without the stage that compiles.
fn build(engine: &Dockerd, folder: &Path) -> Result<()> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let base = target.join(BASE);
    ensure!(base.exists(), "{} is not there: cargo xtask install-clients", base.display());
    let base = base.to_str().context("a path in UTF-8")?;
    engine.docker(&["import", "--change", "CMD [\"bash\"]", base, "debian:bookworm-slim"])?.ok()?;

    let text = std::fs::read_to_string(workspace().join("docker/Dockerfile"))?;
    let (head, rest) = text.split_once("\nFROM rust:").context("no stage that compiles")?;
    let (_, stages) = rest.split_once("\nFROM debian:").context("no further stage")?;
    let file = folder.join("Dockerfile");
    std::fs::write(
        &file,
        format!("{head}\nFROM scratch AS build\nCOPY darter /out/darter\n\nFROM debian:{stages}"),
    )?;
    std::fs::create_dir(folder.join("docker"))?;
    std::fs::copy(workspace().join("docker/trust-ca.sh"), folder.join("docker/trust-ca.sh"))?;
    run(Command::new("strip").arg("-o").arg(folder.join("darter")).arg(binary()), LIMIT)?.ok()?;
    let (file, folder) = (file.display().to_string(), folder.display().to_string());
    for options in [&["--tag", IMAGE][..], &["--tag", DROP_IN, "--target", "docker-registry-proxy"]] {
        let build = [&["build", "--network=host", "--file", &file], options, &[&folder]].concat();
        engine.docker(&build)?.ok()?;
    }
    Ok(())
}

/// A container of one of the images, removed when this is dropped.
struct Container<'a> {
    site: &'a Site,
    id: String,
}

impl<'a> Container<'a> {
    /// Starts one that believes the registry, and waits until its own check finds it healthy.
    fn start(site: &'a Site, image: &str, options: &[&str]) -> Result<Self> {
        let trust = format!("{}:/trust:ro", site.registry.trust().display());
        let run =
            ["run", "--detach", "--network=host", "--volume", &trust, "--env", "SSL_CERT_FILE=/trust/ca.crt"];
        let id = site.engine.docker(&[&run, options, &[image]].concat())?.ok()?.stdout.trim().to_owned();
        let container = Self { site, id };
        let healthy = || (container.inspect("{{.State.Health.Status}}").ok()? == "healthy").then_some(());
        until("it to be healthy", HEALTHY_LIMIT, healthy)
            .with_context(|| container.log().unwrap_or_default())?;
        Ok(container)
    }

    /// Stops it as people do, with time enough, and fails if that was not enough or it did not end well.
    fn stop(&self) -> Result<()> {
        self.site.engine.docker(&["stop", "--time", "60", &self.id])?.ok()?;
        let code = self.inspect("{{.State.ExitCode}}")?;
        ensure!(code == "0", "it ended with {code}: {}", self.log()?);
        Ok(())
    }

    fn inspect(&self, what: &str) -> Result<String> {
        let output = self.site.engine.docker(&["inspect", "--format", what, &self.id])?.ok()?;
        Ok(output.stdout.trim().to_owned())
    }

    fn exec(&self, command: &[&str]) -> Result<String> {
        let output = self.site.engine.docker(&[&["exec", &self.id], command].concat())?.ok()?;
        Ok(output.stdout.trim().to_owned())
    }

    fn log(&self) -> Result<String> {
        let output = self.site.engine.docker(&["logs", &self.id])?.ok()?;
        Ok(format!("{}{}", output.stdout, output.stderr))
    }

    /// What its clients are to trust: a copy of the file in its volume.
    fn certificate(&self) -> Result<PathBuf> {
        let file = self.site.client.new_folder("ca")?.join("ca.crt");
        let (from, to) = (format!("{}:/ca/ca.crt", self.id), file.display().to_string());
        self.site.engine.docker(&["cp", &from, &to])?.ok()?;
        Ok(file)
    }

    /// A number of its metrics page.
    fn metric(&self, name: &str) -> Result<f64> {
        let health = self.site.proxy.port(40901);
        let request =
            http::Request { method: "GET", target: "/metrics", host: "proxy", headers: &[], body: None };
        sum_of(&http::send(Box::new(self.site.proxy.connect(health)?), &request)?.text()?, name)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // Only its place for the next one is at stake.
        let _ = self.site.engine.docker(&["rm", "--force", "--volumes=false", &self.id]);
    }
}
