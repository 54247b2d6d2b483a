//! What was secret, and whether it stands anywhere.

use crate::grid::Caller;
use crate::{Matrix, page};
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use darter_e2e::content::Content;
use darter_e2e::darter::binary;
use darter_e2e::http;
use darter_e2e::node::Node;
use darter_e2e::origin::{Origin, Page};
use darter_e2e::process::run;
use darter_e2e::registry::{CREDENTIALS, OPEN, SECOND};
use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Under which names and in which places secrets are shown, each with a value of its own behind this.
const PLANTED: &str = "hunter2-";

/// All that was shown to a daemon and is nobody else's business.
#[derive(Default)]
pub(crate) struct Secrets {
    kept: Mutex<HashMap<(Caller, String), String>>,
    others: Mutex<HashSet<String>>,
}

impl Secrets {
    /// What is shown under this name, which `make` makes the first time.
    pub(crate) fn keep(
        &self,
        name: (Caller, String),
        make: impl FnOnce() -> Result<String>,
    ) -> Result<String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&name) {
            return Ok(known.clone());
        }
        let made = make()?;
        kept.insert(name, made.clone());
        Ok(made)
    }

    /// Another one.
    pub(crate) fn note(&self, secret: &str) {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.to_owned());
    }

    /// What no file may hold: of a token its last part, which is the signature.
    fn all(&self) -> Vec<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = kept.values().chain(others.iter());
        let signatures = tokens.map(|token| token.rsplit('.').next().unwrap_or_default().to_owned());
        let passwords = [CREDENTIALS, SECOND, "somebody:wrong-horse"].into_iter();
        let passwords = passwords.flat_map(|it| {
            [it.to_owned(), encoded(it), it.rsplit(':').next().unwrap_or_default().to_owned()]
        });
        signatures.chain(passwords).chain([PLANTED.to_owned()]).collect()
    }
}

/// The header of a name and a password.
pub(crate) fn basic(credentials: &str) -> String {
    format!("Basic {}", encoded(credentials))
}

fn encoded(credentials: &str) -> String {
    BASE64_STANDARD.encode(credentials)
}

/// A join token of the scheduler with this folder. The command says it once, in its answer, and nothing of it besides.
pub(crate) fn token(secrets: &Secrets, folder: &Path) -> Result<String> {
    let darter = |args: &[&str]| {
        let mut command = Command::new(binary());
        run(command.args(args).arg("--data-dir").arg(folder).env("RUST_LOG", "trace"), LIMIT)?.ok()
    };
    let made = darter(&["token", "create"])?;
    let token = made.stdout.trim().to_owned();
    let secret = token.split('.').nth(2).context("a token has a secret")?.to_owned();
    let listed = darter(&["token", "list"])?;
    let said = [made.stderr, listed.stdout, listed.stderr].concat();
    check("what the command says besides", said.as_bytes(), std::slice::from_ref(&secret))?;
    secrets.note(&secret);
    Ok(token)
}

/// The part of a private key in PEM form that is nobody else's: a line from its middle.
fn key(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.lines().nth(2).context("a key has several lines")?.to_owned())
}

pub(crate) fn no_secret_is_written_anywhere(scene: &Matrix) -> Result<()> {
    let node = &scene.nodes[0];
    show_many(scene, node)?;
    let mut secrets = scene.secrets.all();
    secrets.push(key(&scene.scheduler_host.folder().join("cluster/ca.key"))?);
    for node in &scene.nodes {
        secrets.push(key(&node.host.folder().join("work/node/node.key"))?);
    }
    let mut files = 0;
    for node in &scene.nodes {
        for place in ["/metrics", "/healthy"] {
            check(place, page(&node.host, 40901, place)?.as_bytes(), &secrets)?;
        }
        let log = node.daemon.process.log();
        ensure!(log.contains(" access: ") && log.contains("TRACE"), "{} logged nothing", node.host.name());
        files += scan(node.host.folder(), &secrets)?;
    }
    ensure!(scene.scheduler.process.log().contains("TRACE"), "the scheduler logged nothing");
    scan(scene.scheduler_host.folder(), &secrets)?;
    let shown = page(&scene.scheduler_host, scene.scheduler.health.port(), "/metrics")?;
    check("the scheduler's metrics", shown.as_bytes(), &secrets)?;
    let traces = scene.traces.bytes();
    ensure!(contains(&traces, b"/v2/"), "{} bytes of traces tell of no request", traces.len());
    check("the traces", &traces, &secrets)?;
    ensure!(files > scene.nodes.len() * 5, "{files} files are not all that daemons keep");
    // It does find what is there.
    let planted = node.host.folder().join("planted");
    std::fs::write(&planted, [&[b'x'; 9999][..], PLANTED.as_bytes(), b"1"].concat())?;
    let found = scan(node.host.folder(), &secrets).expect_err("a secret was planted").to_string();
    ensure!(found.contains("planted"), "{found}");
    Ok(std::fs::remove_file(planted)?)
}

fn contains(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

/// Fails when a file in a folder, or below it, holds a secret; how many were read. What engines keep for themselves is nobody's
/// log, and a key stands in its own file, which is its owner's alone.
fn scan(folder: &Path, secrets: &[String]) -> Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(folder)? {
        let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let name = name.to_string_lossy();
        if entry.is_dir() && !["docker.", "containerd.", "copied."].iter().any(|it| name.starts_with(it)) {
            files += scan(&entry, secrets)?;
        } else if entry.extension().is_some_and(|it| it == "key") {
            let mode = entry.metadata()?.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{} is for {mode:o}", entry.display());
        } else if entry.is_file() {
            check(&entry.display().to_string(), &std::fs::read(&entry)?, secrets)?;
            files += 1;
        }
    }
    Ok(files)
}

fn check(what: &str, bytes: &[u8], secrets: &[String]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    for secret in secrets {
        if let Some((before, _)) = text.split_once(secret.as_str()) {
            let line = before.lines().next_back().unwrap_or_default();
            anyhow::bail!("{what} holds {secret}, behind {}", &line[line.len().saturating_sub(300)..]);
        }
    }
    Ok(())
}

/// Shows secrets in every place where one may stand, on every way that a request may take: to where there is an answer, to
/// where there is none, through the engine, in what is refused, and in what is no request.
fn show_many(scene: &Matrix, node: &Node) -> Result<()> {
    let host = scene.stranger.name().to_owned();
    let origin = Origin::start_on(scene.stranger.listen(8090)?, None)?;
    let content = Content::new(77, 300 << 10);
    let signed = format!("http://{host}:8090/there?X-Amz-Signature={PLANTED}1&sig={PLANTED}2");
    let blob = format!("/v2/team/redirected/blobs/{}", content.digest());
    let headers =
        vec![("Location".to_owned(), signed.clone()), ("Set-Cookie".to_owned(), format!("a={PLANTED}3"))];
    origin.put(&blob, Page::Fixed { status: 307, headers, body: String::new() });
    origin.put("/there", Page::content(content));
    let query = format!(
        "X-Amz-Signature={PLANTED}4&Signature={PLANTED}5&sig={PLANTED}6&token={PLANTED}7&X-Amz-Credential={PLANTED}8&{PLANTED}9"
    );
    let digest = content.digest().trim_start_matches("sha256:").to_owned();
    let urls = [
        format!("http://{host}:8090{blob}"),
        signed,
        format!("http://{host}:8090/pool/by-hash/SHA256/{digest}?{query}"),
        format!("http://{host}:8090/{}.whl?{query}", &digest[..20]),
        format!("http://{host}:9{blob}?{query}"),
        format!("http://{host}:9/file?{query}"),
        format!("http://nowhere.example/file?{query}"),
        format!("http://somebody:{PLANTED}10@{host}:8090/file?{query}"),
        format!("http://169.254.169.254/file?{query}"),
        format!("http://{OPEN}/v2/team/app/blobs/sha256:0?{query}"),
        format!("/v2/team/app/manifests/1?ns=nowhere.example&{query}"),
        format!("/v2/team/app/blobs/sha256:{digest}?ns={host}:9&{query}"),
    ];
    let shown = [
        "Authorization",
        "Cookie",
        "Proxy-Authorization",
        "Private-Token",
        "X-Amz-Security-Token",
        "X-Registry-Auth",
    ];
    let values = shown.map(|name| format!("Bearer {PLANTED}{name}"));
    let headers: Vec<_> = shown.into_iter().zip(values.iter().map(String::as_str)).collect();
    for url in &urls {
        let name = url
            .split('/')
            .nth(2)
            .filter(|_| url.starts_with("http"))
            .map_or("node", |at| at.rsplit('@').next().unwrap_or(at));
        for method in ["GET", "HEAD", "PUT"] {
            for headers in [&headers[..], &[]] {
                let stream = Box::new(node.host.connect(node.host.port(65001))?);
                let request = http::Request { method, target: url, host: name, headers, body: None };
                let mut answer = http::send(stream, &request).with_context(|| url.clone())?;
                let mut body = Vec::new();
                std::io::Read::read_to_end(&mut answer, &mut body)?;
                check(&format!("the answer to {method} {url}"), &body, &[format!("{PLANTED}A")])?;
            }
        }
        explain(node, url)?;
    }
    for odd in [
        format!("GET /{PLANTED}11 HTTP/9.9\r\n\r\n"),
        format!(
            "CONNECT nowhere.example:443 HTTP/1.1\r\nHost: nowhere.example:443\r\nProxy-Authorization: Basic {PLANTED}12\r\n\r\n"
        ),
        format!(
            "GET http://{host}:8090/ HTTP/1.1\r\nHost: {host}:8090\r\nAuthorization: {PLANTED}13\r\nAuthorization {PLANTED}14\r\n\r\n"
        ),
    ] {
        let mut stream = node.host.connect(node.host.port(65001))?;
        stream.write_all(odd.as_bytes())?;
        // Whatever it is told: it may be cut off before.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    Ok(())
}

/// What `darter explain` says of it holds no secret either.
fn explain(node: &Node, url: &str) -> Result<()> {
    let mut command = node.host.command(binary());
    command.arg("explain").arg("--config").arg(node.host.folder().join(format!("{}.yaml", node.host.name())));
    command.arg("--header").arg(format!("Authorization: Bearer {PLANTED}15")).arg(url);
    let said = run(&mut command, LIMIT)?;
    ensure!(said.stdout.len() + said.stderr.len() > 20, "it says nothing of {url}");
    check(&format!("explain {url}"), (said.stdout + &said.stderr).as_bytes(), &[PLANTED.to_owned()])
}
