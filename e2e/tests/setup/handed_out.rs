//! The scripts that a proxy hands out, piped into a shell as people do it, and a proxy in docker-registry-proxy's place.

use super::{Client, LIMIT, MIB, Site};
use anyhow::{Context, Result, ensure};
use darter_e2e::darter::{START_LIMIT, binary, listening};
use darter_e2e::docker::{Dockerd, Setup};
use darter_e2e::process::{Output, Process, run};
use darter_e2e::registry::{CREDENTIALS, OPEN, PRIVATE};

/// Pipes what the proxy has at `path` into `shell`.
fn piped(client: &Client, url: &str, path: &str, shell: &str) -> Result<Output> {
    let line =
        format!("set -o pipefail; curl --silent --show-error --fail --noproxy '*' {url}{path} | {shell}");
    run(client.command("bash").args(["-c", &line]), LIMIT)
}

/// Stands in for systemctl, which there is none of: what it is asked stands in the file that this gives.
fn without_systemd(client: &Client) -> Result<std::path::PathBuf> {
    let asked = client.programs.join("asked");
    let systemctl = client.programs.join("systemctl");
    std::fs::write(&systemctl, format!("#!/bin/sh\necho \"$@\" >> {}\n", asked.display()))?;
    run(std::process::Command::new("chmod").arg("755").arg(systemctl), LIMIT)?.ok()?;
    std::fs::create_dir_all(client.etc.join("systemd/system"))?;
    Ok(asked)
}

pub(crate) fn the_script_that_a_proxy_hands_out_sets_a_host_up(site: &Site) -> Result<()> {
    let (client, url) = (&site.client, site.url());
    client.curl(&url)?.failed()?;
    let said = piped(client, &url, "/setup.sh", "sh -s -- --use apt --use shell")?.ok()?.stdout;
    ensure!(said.contains("trusted by this system") && said.contains("uses the proxy: apt"), "{said}");
    ensure!(client.curl(&url)?.ok()?.stdout == "{}", "another answer than the registry's");

    let apt = run(client.command("apt-config").arg("dump"), LIMIT)?.ok()?.stdout;
    ensure!(apt.contains(&format!("Acquire::https::Proxy \"{url}\";")), "{apt}");
    let login = format!(". /etc/profile.d/darter.sh && curl --silent --show-error https://{OPEN}/v2/");
    ensure!(
        run(client.command("sh").args(["-c", &login]), LIMIT)?.ok()?.stdout == "{}",
        "not by way of the proxy"
    );

    let undone = piped(client, &url, "/setup.sh", "sh -s -- --undo")?.ok()?.stdout;
    ensure!(undone.matches("removed: ").count() == 3, "{undone}");
    client.curl(&url)?.failed()?;
    ensure!(!client.etc.join("profile.d/darter.sh").exists(), "not undone");
    Ok(())
}

pub(crate) fn a_script_that_ends_early_does_nothing(site: &Site) -> Result<()> {
    let output = piped(&site.client, &site.url(), "/setup.sh", "head --lines=-1 | sh")?.ok()?;
    ensure!(output.stdout.is_empty(), "{output:?}");
    site.client.curl(&site.url())?.failed().map(drop)
}

/// The same variables and port, the same line to paste: an image that needs a password is pulled without one, and nothing is
/// pushed.
pub(crate) fn what_docker_registry_proxys_users_have_works(site: &Site) -> Result<()> {
    let folder = site.proxy.new_folder("drop-in")?;
    let mut command = site.proxy.command(binary());
    command.args([
        "daemon",
        "--from-environment",
        "--proxy-addr",
        "0.0.0.0:3128",
        "--health-addr",
        "0.0.0.0:0",
    ]);
    command.arg("--work-home").arg(folder.join("work")).arg("--data-dir").arg(folder.join("cache"));
    command.env("SSL_CERT_FILE", site.registry.ca_file());
    command.env("REGISTRIES", format!("{OPEN} {PRIVATE}"));
    command.env("AUTH_REGISTRIES", format!("{PRIVATE}:{CREDENTIALS}"));
    command.env("ENABLE_MANIFEST_CACHE", "true");
    let process = Process::start("drop-in", &mut command, &folder.join("log"))?;
    listening(&process, "proxy")?;
    process.wait_line("what has no effect", START_LIMIT, |line| {
        line.contains("ENABLE_MANIFEST_CACHE: has no effect").then_some(())
    })?;

    let (client, url) = (&site.client, "http://proxy:3128");
    let asked = without_systemd(client)?;
    let other = client.etc.join("systemd/system/docker.service.d/http-proxy.conf");
    std::fs::create_dir_all(other.parent().context("it has a parent")?)?;
    std::fs::write(&other, "[Service]\nEnvironment=\"HTTPS_PROXY=http://old.example:3128/\"\n")?;
    let said = piped(client, url, "/setup/systemd", "bash")?.ok()?.stdout;
    ensure!(said.contains("uses the proxy: docker") && said.contains("restarted: docker.service"), "{said}");
    let told = std::fs::read_to_string(&asked)?;
    ensure!(told == "daemon-reload\nrestart docker.service\n", "{told}");
    // systemd takes the last one, by the names of the files.
    let mut files: Vec<_> = std::fs::read_dir(other.parent().context("it has a parent")?)?
        .map(|file| Ok(file?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let last = std::fs::read_to_string(files.last().context("there is a file")?)?;
    ensure!(last.contains(&format!("\"HTTPS_PROXY={url}\"")), "{last}");

    let reference = &format!("{PRIVATE}/team/drop-in:1");
    let image = site.registry.publish(reference, 61, 2, 5 * MIB)?;
    let setup = Setup { proxy: Some(url.to_owned()), system_trust: Some(client.store()), ..Setup::default() };
    let engine = Dockerd::start(&client.host, &setup)?;
    engine.pull(reference)?;
    engine.check(reference, &image)?;
    let pushed = format!("{OPEN}/team/pushed:1");
    engine.docker(&["tag", reference, &pushed])?.ok()?;
    let refused = engine.docker(&["push", &pushed])?.failed()?;
    let words = format!("{}{}", refused.stdout, refused.stderr);
    ensure!(words.contains("switched off"), "{words}");
    drop(engine);

    let ca = folder.join("ca.crt");
    run(
        client.command("curl").args(["-sSf", "--noproxy", "*", "-o"]).arg(&ca).arg(format!("{url}/ca.crt")),
        LIMIT,
    )?
    .ok()?;
    let manifest = run(
        client.command("curl").args(["-sSf", "-D", "-", "-o", "/dev/null", "--proxy", url, "--cacert"]).arg(&ca).args([
            "-H",
            "Accept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json",
            &format!("https://{PRIVATE}/v2/team/drop-in/manifests/1"),
        ]),
        LIMIT,
    )?
    .ok()?
    .stdout;
    ensure!(manifest.contains("x-docker-registry-proxy-cache-type: manifest-default-disabled"), "{manifest}");
    piped(client, url, "/setup/systemd", "bash -s -- --undo")?.ok()?;
    ensure!(!client.etc.join("systemd/system/docker.service.d/zz-darter.conf").exists(), "not undone");
    Ok(())
}
