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
use darter_e2e::registry::{CREDENTIALS, OPEN, SECONDS, second};
use darter_e2e::scan;
use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
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
        let known = [CREDENTIALS, "somebody:wrong-horse"].map(str::to_owned).into_iter();
        let passwords = known.chain((0..SECONDS).map(second)).flat_map(|it| {
            let password = it.rsplit(':').next().unwrap_or_default().to_owned();
            [encoded(&it), it, password]
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
    scan::bytes("what the command says besides", said.as_bytes(), std::slice::from_ref(&secret))?;
    secrets.note(&secret);
    darter_e2e::secret::note_token(&token);
    Ok(token)
}

fn key(path: &Path) -> Result<String> {
    scan::of_key(&std::fs::read_to_string(path).with_context(|| path.display().to_string())?)
}

pub(crate) fn no_secret_is_written_anywhere(scene: &Matrix) -> Result<()> {
    let node = &scene.nodes[0];
    // What the daemons wrote of it is looked through once more when they end, those of other tests too.
    darter_e2e::secret::note(&format!("{PLANTED}1"));
    show_many(scene, node)?;
    let mut secrets = scene.secrets.all();
    secrets.push(key(&scene.scheduler_host.folder().join("cluster/ca.key"))?);
    for node in &scene.nodes {
        secrets.push(key(&node.host.folder().join("work/node/node.key"))?);
    }
    let mut files = 0;
    for node in &scene.nodes {
        for place in ["/metrics", "/healthy"] {
            scan::bytes(place, page(&node.host, 40901, place)?.as_bytes(), &secrets)?;
        }
        let log = node.daemon.process.log();
        ensure!(log.contains(" access: ") && log.contains("TRACE"), "{} logged nothing", node.host.name());
        files += scan::folder(node.host.folder(), &secrets)?;
    }
    ensure!(scene.scheduler.process.log().contains("TRACE"), "the scheduler logged nothing");
    scan::folder(scene.scheduler_host.folder(), &secrets)?;
    let shown = page(&scene.scheduler_host, scene.scheduler.health.port(), "/metrics")?;
    scan::bytes("the scheduler's metrics", shown.as_bytes(), &secrets)?;
    let traces = scene.traces.bytes();
    let tells = scan::bytes("the traces", &traces, &["/v2/".to_owned()]).is_err();
    ensure!(tells, "{} bytes of traces tell of no request", traces.len());
    scan::bytes("the traces", &traces, &secrets)?;
    ensure!(files > scene.nodes.len() * 5, "{files} files are not all that daemons keep");
    // It does find what is there, keys as well.
    let planted = node.host.new_folder("planted")?;
    for secret in [&format!("{PLANTED}1")].into_iter().chain(&secrets) {
        std::fs::write(planted.join("log"), [&[b'x'; 9999][..], secret.as_bytes()].concat())?;
        let found = scan::folder(&planted, &secrets);
        ensure!(found.is_err_and(|found| found.to_string().contains("planted")), "{secret} is not found");
    }
    let found = scan::folder(node.host.folder(), &secrets);
    ensure!(found.is_err_and(|found| found.to_string().contains("planted")), "it does not look everywhere");
    Ok(std::fs::remove_dir_all(planted)?)
}

/// What no answer may hold of what was shown, header by header, trailers and body included. What the origin's own redirect
/// says is its client's.
fn check_answer(what: &str, answer: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(answer);
    let redirects = text.starts_with("HTTP/1.1 307 ");
    let is_origins = |line: &&str| {
        let line = line.to_ascii_lowercase();
        redirects && (line.starts_with("location:") || line.starts_with("set-cookie:"))
    };
    let lines: Vec<&str> = text.lines().filter(|line| !is_origins(line)).collect();
    scan::bytes(what, lines.join("\n").as_bytes(), &[PLANTED.to_owned()])
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
                let answer = http::exchange(stream, &request).with_context(|| url.clone())?;
                ensure!(answer.starts_with(b"HTTP/1.1 "), "{method} {url}: no answer");
                check_answer(&format!("the answer to {method} {url}"), &answer)?;
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
        // It may be cut off before it has been told anything.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        check_answer(&format!("the answer to {odd}"), &answer)?;
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
    scan::bytes(&format!("explain {url}"), (said.stdout + &said.stderr).as_bytes(), &[PLANTED.to_owned()])
}
