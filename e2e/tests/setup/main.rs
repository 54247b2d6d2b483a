//! Setting up a client as a new user would: by what `darter up` prints, and by the script that makes a machine trust it.
#![forbid(unsafe_code)]

mod handed_out;

use anyhow::{Context, Result, ensure};
use darter_e2e::ca::Ca;
use darter_e2e::darter::{Up, workspace};
use darter_e2e::docker::{Dockerd, SYSTEM_TRUST, Setup, tail};
use darter_e2e::http;
use darter_e2e::net::{Host, Lab, Launch};
use darter_e2e::origin::{Origin, Page};
use darter_e2e::process::{Output, run};
use darter_e2e::registry::{OPEN, Registry};
use darter_e2e::suite::{self, Scene};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(60);

/// `darter up` on a host of its own, and a client that knows nothing of it yet.
struct Site {
    up: Up,
    proxy: Host,
    client: Client,
    registry: Registry,
    lab: Lab,
}

/// A host whose system folders are copies: what is set up there touches nothing of the machine.
struct Client {
    host: Host,
    etc: PathBuf,
    authorities: PathBuf,
    /// Programs that are found before the machine's own.
    programs: PathBuf,
}

fn main() -> ExitCode {
    suite::run(
        Site::start,
        &[
            ("what_up_prints_works_when_pasted", what_up_prints_works_when_pasted),
            ("the_script_is_clean", the_script_is_clean),
            (
                "the_script_makes_this_system_trust_and_not_any_more",
                the_script_makes_this_system_trust_and_not_any_more,
            ),
            ("the_script_refuses_another_fingerprint", the_script_refuses_another_fingerprint),
            ("the_script_refuses_what_is_no_certificate", the_script_refuses_what_is_no_certificate),
            ("the_script_sets_up_docker_for_one_registry", the_script_sets_up_docker_for_one_registry),
            ("the_script_knows_the_stores_of_other_systems", the_script_knows_the_stores_of_other_systems),
            ("the_script_says_when_it_could_not_write", the_script_says_when_it_could_not_write),
            (
                "the_script_that_a_proxy_hands_out_sets_a_host_up",
                handed_out::the_script_that_a_proxy_hands_out_sets_a_host_up,
            ),
            ("a_script_that_ends_early_does_nothing", handed_out::a_script_that_ends_early_does_nothing),
            (
                "what_docker_registry_proxys_users_have_works",
                handed_out::what_docker_registry_proxys_users_have_works,
            ),
            (
                "the_script_follows_one_authority_that_takes_anothers_place",
                the_script_follows_one_authority_that_takes_anothers_place,
            ),
        ],
    )
}

impl Site {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let registry = Registry::start(&lab.host(&Registry::NAMES)?)?;
        let proxy = lab.host(&["proxy"])?;
        let up = Up::start_on(&proxy, &registry.ca_file(), &["--listen", &proxy.address().to_string()])?;
        let client = Client::new(lab.host(&["client"])?)?;
        Ok(Self { up, proxy, client, registry, lab })
    }

    fn url(&self) -> String {
        format!("http://proxy:{}", self.up.proxy.port())
    }

    /// What `darter up` gives to everybody.
    fn certificate(&self) -> Result<String> {
        let request =
            http::Request { method: "GET", target: "/ca.crt", host: "proxy", headers: &[], body: None };
        http::send(Box::new(self.proxy.connect(self.up.proxy)?), &request)?.text()
    }

    /// By openssl, which has nothing to do with us.
    fn fingerprint(&self) -> Result<String> {
        let file = self.lab.folder().join("fingerprint.crt");
        std::fs::write(&file, self.certificate()?)?;
        let args = ["x509", "-noout", "-fingerprint", "-sha256", "-in"];
        let output = run(Command::new("openssl").args(args).arg(file), LIMIT)?.ok()?;
        Ok(output.stdout.trim().split_once('=').context("no fingerprint")?.1.to_owned())
    }
}

impl Scene for Site {
    fn logs(&self) -> String {
        format!("--- up\n{}", tail(&self.up.process.log(), 60))
    }
}

impl Client {
    fn new(host: Host) -> Result<Self> {
        let copy = |from: &str, name: &str| -> Result<PathBuf> {
            let to = host.folder().join(name);
            run(Command::new("cp").args(["--archive", from]).arg(&to), LIMIT)?.ok()?;
            Ok(to)
        };
        let etc = copy("/etc", "etc")?;
        let authorities = copy("/usr/local/share/ca-certificates", "authorities")?;
        let programs = host.new_folder("programs")?;
        Ok(Self { host, etc, authorities, programs })
    }

    /// A program that sees the copies in place of the machine's own.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let authorities = (self.authorities.clone(), "/usr/local/share/ca-certificates".into());
        let mounts = vec![(self.etc.clone(), "/etc".into()), authorities];
        let mut command = self.host.launch(program, &Launch { mounts, family: false });
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.programs.display())).current_dir(self.host.folder());
        command
    }

    /// What this system trusts.
    fn store(&self) -> PathBuf {
        self.etc.join("ssl/certs/ca-certificates.crt")
    }

    fn script(&self, args: &[&str]) -> Result<Output> {
        run(self.command(script()).args(args), LIMIT)
    }

    /// Asks the registry by way of the proxy, with what this system trusts.
    fn curl(&self, proxy: &str) -> Result<Output> {
        run(
            self.command("curl").args([
                "--silent",
                "--show-error",
                "--proxy",
                proxy,
                &format!("https://{OPEN}/v2/"),
            ]),
            LIMIT,
        )
    }
}

fn script() -> PathBuf {
    workspace().join("docker/trust-ca.sh")
}

/// On the machine that it runs on, which has no systemd here: what would be restarted is started by hand, with the
/// environment that the pasted lines wrote.
fn what_up_prints_works_when_pasted(site: &Site) -> Result<()> {
    let here = Client::new(site.proxy.clone())?;
    let asked = here.programs.join("asked");
    let systemctl = format!("#!/bin/sh\necho \"$@\" >> {}\n", asked.display());
    std::fs::write(here.programs.join("systemctl"), systemctl)?;
    run(Command::new("chmod").arg("755").arg(here.programs.join("systemctl")), LIMIT)?.ok()?;

    let log = site.up.process.log();
    ensure!(log.contains(&site.fingerprint()?), "another fingerprint than openssl's:\n{log}");
    let commands: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    ensure!(commands.len() >= 6, "{log}");
    for command in &commands {
        let output = run(here.command("sh").args(["-c", command]), LIMIT)?
            .ok()
            .with_context(|| (*command).to_owned())?;
        match *command {
            command if command.contains("/healthy") => {
                ensure!(output.stdout.trim() == "ok", "{}", output.stdout)
            }
            command if command.contains("/v2/") => ensure!(output.stdout.trim() == "{}", "{}", output.stdout),
            _ => {}
        }
    }
    ensure!(
        std::fs::read_to_string(here.host.folder().join("darter-ca.crt"))? == site.certificate()?,
        "another CA"
    );
    ensure!(std::fs::read_to_string(asked)?.contains("restart docker"), "docker was not restarted");

    let unit = std::fs::read_to_string(here.etc.join("systemd/system/docker.service.d/darter.conf"))?;
    let proxy = unit
        .split_whitespace()
        .find_map(|word| word.strip_prefix("HTTPS_PROXY="))
        .context("no HTTPS_PROXY")?;
    let image = site.registry.publish(&format!("{OPEN}/library/pasted:1"), 43, 2, 10 * MIB)?;
    let setup = Setup { proxy: Some(proxy.to_owned()), system_trust: Some(here.store()), ..Setup::default() };
    let engine = Dockerd::start(&here.host, &setup)?;
    engine.pull("pasted:1")?;
    engine.check("pasted:1", &image)?;
    site.registry.check_copies(&image, 1)
}

fn the_script_is_clean(_: &Site) -> Result<()> {
    run(Command::new("shellcheck").arg(script()), LIMIT)?.ok().map(drop)
}

fn the_script_makes_this_system_trust_and_not_any_more(site: &Site) -> Result<()> {
    let (client, url) = (&site.client, site.url());
    let before = client.curl(&url)?.failed()?;
    ensure!(before.stderr.contains("certificate"), "{}", before.stderr);

    let args = ["--proxy", &url, "--fingerprint", &site.fingerprint()?];
    let first = client.script(&args)?.ok()?.stdout;
    ensure!(first.contains("trusted by this system"), "{first}");
    ensure!(client.curl(&url)?.ok()?.stdout == "{}", "another answer than the registry's");
    let second = client.script(&args)?.ok()?.stdout;
    ensure!(second.contains("unchanged"), "{second}");

    // Docker has no other trust than the system's here.
    let reference = &format!("{OPEN}/setup:1");
    let image = site.registry.publish(reference, 41, 1, 5 * MIB)?;
    let system_trust = Some(client.store());
    let engine =
        Dockerd::start(&client.host, &Setup { proxy: Some(url.clone()), system_trust, ..Setup::default() })?;
    engine.pull(reference)?;
    engine.check(reference, &image)?;
    drop(engine);

    let undone = client.script(&["--undo"])?.ok()?.stdout;
    ensure!(undone.contains("removed"), "{undone}");
    client.curl(&url)?.failed()?;
    ensure!(client.script(&["--undo"])?.ok()?.stdout.is_empty(), "there was nothing left to undo");
    // What was there before is there still.
    let [ours, theirs] = [client.store(), SYSTEM_TRUST.into()].map(std::fs::read);
    ensure!(ours? == theirs?, "the store is another one than before");
    Ok(())
}

fn the_script_refuses_another_fingerprint(site: &Site) -> Result<()> {
    let wrong = site.fingerprint()?.replace('A', "B").replace('1', "2");
    let output = site.client.script(&["--proxy", &site.url(), "--fingerprint", &wrong])?.failed()?;
    ensure!(output.stderr.contains("nothing was changed"), "{}", output.stderr);
    site.client.curl(&site.url())?.failed()?;
    Ok(())
}

fn the_script_refuses_what_is_no_certificate(site: &Site) -> Result<()> {
    let origin = Origin::start_on(site.proxy.listen(8000)?, None)?;
    origin.put(
        "/ca.crt",
        Page::Fixed { status: 200, headers: Vec::new(), body: "<html>log in first</html>".into() },
    );
    for (args, code, words) in [
        (["--proxy", "http://proxy:8000"], 1, "not one certificate"),
        (["--proxy", "http://proxy:8001"], 1, "cannot fetch"),
        (["--file", "/nowhere"], 1, "cannot read"),
        (["--frob", "x"], 64, "unknown option"),
        (["--docker", "../x"], 64, "no registry"),
    ] {
        let output = site.client.script(&args)?;
        ensure!(output.status.code() == Some(code) && output.stderr.contains(words), "{args:?}: {output:?}");
    }
    Ok(())
}

fn the_script_sets_up_docker_for_one_registry(site: &Site) -> Result<()> {
    let (client, url) = (&site.client, site.url());
    client.script(&["--proxy", &url, "--no-system", "--docker", OPEN])?.ok()?;
    client.curl(&url)?.failed()?;
    let trusted = client.etc.join("docker/certs.d").join(OPEN).join("darter.crt");
    ensure!(std::fs::read_to_string(&trusted)? == site.certificate()?, "another certificate");

    let reference = &format!("{OPEN}/setup:2");
    let image = site.registry.publish(reference, 42, 1, 5 * MIB)?;
    let certs = vec![(OPEN, trusted.clone())];
    let engine = Dockerd::start(&client.host, &Setup { proxy: Some(url), certs, ..Setup::default() })?;
    engine.pull(reference)?;
    engine.check(reference, &image)?;
    client.script(&["--undo"])?.ok()?;
    ensure!(!trusted.exists() && client.etc.join("docker/certs.d").exists(), "not undone");
    Ok(())
}

fn the_script_knows_the_stores_of_other_systems(site: &Site) -> Result<()> {
    let certificate = site.certificate()?;
    let file = site.client.host.folder().join("for-other-systems.crt");
    std::fs::write(&file, &certificate)?;
    for (store, anchors, rebuild) in [
        ("etc/pki/ca-trust/source/anchors", "etc/pki/ca-trust/source/anchors", "update-ca-trust extract"),
        ("etc/pki/trust/anchors", "etc/pki/trust/anchors", "update-ca-certificates"),
        (
            "etc/ca-certificates/trust-source/anchors",
            "etc/ca-certificates/trust-source/anchors",
            "update-ca-trust extract",
        ),
        ("usr/share/ca-certificates", "usr/local/share/ca-certificates", "update-ca-certificates"),
    ] {
        let root = site.client.host.new_folder("root")?;
        std::fs::create_dir_all(root.join(store))?;
        let on = |args: &[&str]| -> Result<Output> {
            run(Command::new(script()).args(["--root", &root.display().to_string()]).args(args), LIMIT)?.ok()
        };
        let said = on(&["--file", &file.display().to_string()])?.stdout;
        ensure!(said.contains(rebuild), "{said}");
        let installed = root.join(Path::new(anchors)).join("darter.crt");
        ensure!(std::fs::read_to_string(&installed)? == certificate, "another certificate");
        on(&["--undo"])?;
        ensure!(!installed.exists(), "not undone");
    }
    Ok(())
}

fn the_script_says_when_it_could_not_write(site: &Site) -> Result<()> {
    let file = site.client.host.folder().join("not-to-be-written.crt");
    std::fs::write(&file, site.certificate()?)?;
    // Not even root writes below a file, and no folder is put in the place of one that has content.
    for (store, in_the_way, args) in [
        ("usr/share/ca-certificates", "usr/local", &[][..]),
        ("etc/pki/trust/anchors/darter.crt/darter.crt.new/x", "other", &[]),
        ("other", "etc/docker", &["--no-system", "--docker", OPEN]),
    ] {
        let root = site.client.host.new_folder("unwritable")?;
        std::fs::create_dir_all(root.join(store))?;
        let in_the_way = root.join(in_the_way);
        in_the_way.parent().map(std::fs::create_dir_all).transpose()?;
        std::fs::write(in_the_way, "")?;
        let (root, file) = (root.display().to_string(), file.display().to_string());
        let output = run(Command::new(script()).args(["--root", &root, "--file", &file]).args(args), LIMIT)?;
        ensure!(output.status.code() == Some(1), "{}", output.stdout);
        ensure!(output.stderr.contains("trust-ca.sh: cannot write "), "{}", output.stderr);
        ensure!(!output.stdout.contains("trusted by"), "{}", output.stdout);
    }
    Ok(())
}

/// Both are trusted while both are handed out, each in a file of its own; by fingerprint only those that were asked for.
fn the_script_follows_one_authority_that_takes_anothers_place(site: &Site) -> Result<()> {
    let old = site.certificate()?;
    let new = Ca::new("successor")?.pem().to_owned();
    let folder = site.client.host.folder();
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let (both, after) = (file("both.crt", &format!("{old}{new}"))?, file("after.crt", &new)?);
    let root = site.client.host.new_folder("rotating")?;
    let anchors = root.join("usr/local/share/ca-certificates");
    std::fs::create_dir_all(root.join("usr/share/ca-certificates"))?;
    let on = |args: &[&str]| -> Result<String> {
        let root = root.display().to_string();
        let args = [&["--root", &root], args].concat();
        Ok(run(Command::new(script()).args(args), LIMIT)?.ok()?.stdout)
    };
    let trusted = |name: &str| std::fs::read_to_string(anchors.join(name)).ok();

    on(&["--file", &both, "--docker", OPEN])?;
    ensure!(trusted("darter.crt") == Some(old.clone()) && trusted("darter-2.crt") == Some(new.clone()));
    let docker = std::fs::read_to_string(root.join("etc/docker/certs.d").join(OPEN).join("darter.crt"))?;
    ensure!(docker == format!("{old}{new}"), "{docker}");
    ensure!(on(&["--file", &both])?.matches("unchanged").count() == 2, "it was changed again");

    let said = on(&["--file", &after])?;
    ensure!(said.contains("not handed out any more") && said.contains("--fresh"), "{said}");
    ensure!(trusted("darter.crt") == Some(new) && trusted("darter-2.crt").is_none());

    let said = on(&["--file", &both, "--fingerprint", &site.fingerprint()?])?;
    ensure!(said.contains("nobody asked for this fingerprint"), "{said}");
    ensure!(trusted("darter.crt") == Some(old) && trusted("darter-2.crt").is_none());
    on(&["--file", &both])?;
    on(&["--undo"])?;
    ensure!(std::fs::read_dir(&anchors)?.next().is_none(), "not undone");
    Ok(())
}
