//! The cells: ways in, callers, and where the content is.

use crate::secrets::basic;
use crate::{LIMIT, Matrix, page};
use anyhow::{Context, Result, anyhow, bail, ensure};
use darter_e2e::ca::client_trusting;
use darter_e2e::content::digest_of;
use darter_e2e::darter::sum_of;
use darter_e2e::http;
use darter_e2e::node::Node;
use darter_e2e::poll::until;
use darter_e2e::registry::{self, CREDENTIALS, PRIVATE, SECONDS};
use darter_e2e::tokens::{PUBLIC, REALM, SERVICE};
use std::fmt;
use std::io::Read as _;
use std::ops::Range;
use std::time::Duration;

/// The repository whose layers are not for everybody, and another one that holds the same.
pub(crate) const SECRET: &str = "team/secret";
pub(crate) const MOUNTED: &str = "team/mounted";

/// How long the short tokens open something, in seconds.
const SHORT: i64 = 5;
/// For how long registries take a token that has ended, at most (distribution: a minute), in seconds.
const LEEWAY: u64 = 60;

/// What clients take for a manifest.
const MANIFESTS: (&str, &str) = ("Accept", "application/vnd.oci.image.manifest.v1+json");

/// How a registry wants to know who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Token,
    Basic,
}

/// How a request comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Intercepted,
    Forward,
    Mirror,
    NsMirror,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// With what opens this repository.
    Right(&'static str),
    Wrong,
    Nobody,
    /// With a token that opened it a moment ago, one for each cell: see [`Matrix::have_ended`]. Passwords do not end; they are
    /// changed, which is [`a_revoked_password`].
    Ended(usize),
    /// One of those whose passwords are going to be taken away.
    Second(usize),
}

/// Which layers of the image are for what.
pub(crate) struct Layers;

/// What came back.
pub(crate) struct Got {
    pub(crate) status: u16,
    challenge: Option<String>,
    cache: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// Bytes that went somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Moved {
    /// From node to node.
    between: f64,
    /// From any origin to a node.
    fetched: f64,
    /// Of content, from the registries to anybody.
    pub(crate) left: u64,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Token, Self::Basic];

    pub(crate) fn registry(self) -> &'static str {
        match self {
            Self::Token => SERVICE,
            Self::Basic => PRIVATE,
        }
    }

    /// The one that has things, and the one that has them not.
    pub(crate) fn nodes(self, scene: &Matrix) -> [&Node; 2] {
        let first = self as usize * 2;
        [&scene.nodes[first], &scene.nodes[first + 1]]
    }
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Intercepted, Self::Forward, Self::Mirror, Self::NsMirror];
}

impl Layers {
    /// On the first node from the start, and never on the second.
    pub(crate) const WARM: usize = 0;
    /// On no node.
    pub(crate) const COLD: usize = 1;
    /// One for each way: fetched by the first node, when that is asked for.
    const COLD_RIGHT: usize = 2;
    const COLD_MOUNTED: usize = 6;
    /// One for each way: on the first node from the start, fetched by the second when that is asked for.
    const PEER_RIGHT: usize = 10;
    const PEER_MOUNTED: usize = 14;
    pub(crate) const PEER_DOWN: usize = 18;
    pub(crate) const NUMBER: u64 = 22;

    /// Those that are on the first node from the start.
    pub(crate) fn warm() -> impl Iterator<Item = usize> {
        let rest: Range<usize> = Self::PEER_RIGHT..Self::NUMBER as usize;
        std::iter::once(Self::WARM).chain(rest)
    }
}

impl Got {
    pub(crate) fn is_hit(&self) -> bool {
        self.status == 200 && self.cache.as_deref() == Some("darter; hit")
    }

    /// Bytes of content in it: what a registry says when it refuses is none.
    pub(crate) fn content(&self) -> usize {
        if (200..300).contains(&self.status) { self.body.len() } else { 0 }
    }

    pub(crate) fn of(mut answer: http::Answer) -> Result<Self> {
        let header = |name| answer.header(name).map(str::to_owned);
        let (status, challenge, cache) = (answer.status, header("www-authenticate"), header("cache-status"));
        let mut body = Vec::new();
        answer.read_to_end(&mut body)?;
        Ok(Self { status, challenge, cache, body })
    }
}

impl fmt::Debug for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = String::from_utf8_lossy(&self.body[..self.body.len().min(200)]);
        write!(f, "{} {:?} {:?}, {} bytes: {said}", self.status, self.challenge, self.cache, self.body.len())
    }
}

impl Matrix {
    pub(crate) fn blob(&self, kind: Kind, repository: &str, layer: usize) -> String {
        format!("/v2/{repository}/blobs/{}", self.images[kind as usize].layers[layer])
    }

    /// What a caller sends; the same each time.
    pub(crate) fn shown(&self, kind: Kind, caller: Caller) -> Result<Option<String>> {
        let token = |signer: &darter_e2e::tokens::Signer, repository: &str, seconds| {
            self.secrets.keep((caller, repository.to_owned()), || {
                Ok(format!("Bearer {}", signer.token(repository, &["pull"], seconds)?))
            })
        };
        Ok(Some(match (kind, caller) {
            (_, Caller::Nobody) => return Ok(None),
            (Kind::Token, Caller::Right(repository)) => token(self.tokens.signer(), repository, 3600)?,
            (Kind::Token, Caller::Wrong) => token(&self.impostor, SECRET, 3600)?,
            (Kind::Token, Caller::Ended(_)) => token(self.tokens.signer(), SECRET, SHORT)?,
            (Kind::Token, Caller::Second(_)) | (Kind::Basic, Caller::Ended(_)) => bail!("there is none"),
            (Kind::Basic, Caller::Right(_)) => basic(CREDENTIALS),
            (Kind::Basic, Caller::Wrong) => basic("somebody:wrong-horse"),
            (Kind::Basic, Caller::Second(number)) => basic(&registry::second(number)),
        }))
    }

    /// Asks a node for a path of a registry.
    pub(crate) fn ask(
        &self,
        (node, way, kind): (&Node, Way, Kind),
        path: &str,
        caller: Caller,
        more: &[(&str, &str)],
    ) -> Result<Got> {
        let shown = self.shown(kind, caller)?;
        let shown = shown.as_deref().map(|shown| ("Authorization", shown));
        let headers: Vec<_> = more.iter().copied().chain(shown).collect();
        let answer = self.ask_of((node, way, kind.registry()), path, &headers);
        Got::of(answer?).with_context(|| format!("{way:?} {} {path} {caller:?}", node.host.name()))
    }

    /// Lets somebody in with each of the short tokens, which are made now, at every way and place; and shows that they open what is
    /// cached there, so that everything is known that lets them in.
    fn let_in_for_a_moment(&self, tokens: Range<usize>) -> Result<()> {
        let manifest = format!("/v2/{SECRET}/manifests/1");
        let warm = self.blob(Kind::Token, SECRET, Layers::WARM);
        for (number, (way, (node, layer))) in tokens.clone().zip(places(self, Kind::Token)) {
            let caller = Caller::Ended(number);
            let got = self.ask((node, way, Kind::Token), &manifest, caller, &[])?;
            ensure!(got.status == 200, "{way:?} {}: {got:?}", node.host.name());
            if layer == Layers::WARM && node.host.name() == self.nodes[0].host.name() {
                let got = self.ask((node, way, Kind::Token), &warm, caller, &[])?;
                ensure!(got.is_hit(), "{way:?}: {got:?}");
            }
        }
        Ok(())
    }

    /// Waits until the short tokens that were made have ended: the registry refuses them.
    fn have_ended(&self, tokens: Range<usize>) -> Result<()> {
        let manifest = format!("/v2/{SECRET}/manifests/1");
        let last = Caller::Ended(tokens.end - 1);
        let limit = LIMIT + Duration::from_secs(LEEWAY);
        until("the registry to refuse what has ended", limit, || {
            self.straight(Kind::Token, &manifest, last).ok().filter(|got| got.status == 401)
        })
        .map(drop)
    }

    /// Asks a node for a path of any registry.
    pub(crate) fn ask_of(
        &self,
        (node, way, registry): (&Node, Way, &str),
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<http::Answer> {
        let (own, headers) = (node.host.name(), [&[MANIFESTS], headers].concat());
        let proxy = node.host.connect(node.host.port(65001))?;
        let (stream, target, host): (Box<dyn http::Stream>, _, _) = match way {
            Way::Intercepted => (self.intercepted(node, registry)?, path.to_owned(), registry),
            Way::Forward => (Box::new(proxy), format!("http://{registry}{path}"), registry),
            Way::Mirror => (Box::new(proxy), path.to_owned(), own),
            Way::NsMirror => (Box::new(proxy), format!("{path}?ns={registry}"), own),
        };
        let request = http::Request { method: "GET", target: &target, host, headers: &headers, body: None };
        http::send(stream, &request).with_context(|| format!("{way:?} {own} {target}"))
    }

    /// TLS with a host, which a node opens up.
    pub(crate) fn intercepted(&self, node: &Node, host: &str) -> Result<Box<dyn http::Stream>> {
        let stream = http::tunnel(node.host.connect(node.host.port(65001))?, &format!("{host}:443"))?;
        let stream = stream.map_err(|answer| anyhow!("no tunnel: {} {}", answer.status, answer.reason))?;
        http::tls(stream, host, client_trusting(&std::fs::read_to_string(&node.ca)?)?)
    }

    /// What the registry itself says to the same.
    fn straight(&self, kind: Kind, path: &str, caller: Caller) -> Result<Got> {
        let shown = self.shown(kind, caller)?;
        let mut headers = vec![MANIFESTS];
        headers.extend(shown.as_deref().map(|shown| ("Authorization", shown)));
        let stream = self.stranger.connect(self.registry.host().port(443))?;
        let stream = http::tls(stream, kind.registry(), client_trusting(self.registry.ca().pem())?)?;
        let host = kind.registry();
        let request = http::Request { method: "GET", target: path, host, headers: &headers, body: None };
        Got::of(http::send(stream, &request)?)
    }

    /// What has moved so far, of these layers where that can be told.
    pub(crate) fn moved(&self, of: &[usize]) -> Result<Moved> {
        let mut moved = Moved::default();
        for node in self.nodes.iter().chain([&self.fooled]) {
            let page = page(&node.host, 40901, "/metrics")?;
            moved.between += sum_of(&page, "darter_p2p_uploaded_bytes_total")?;
            // A node that has fetched nothing has no such line.
            moved.fetched += sum_of(&page, "darter_p2p_content_bytes_total{from=\"origin\"}").unwrap_or(0.0);
        }
        let layers =
            |kind: Kind| of.iter().map(move |layer| self.images[kind as usize].layers[*layer].clone());
        let layers: Vec<String> = Kind::ALL.into_iter().flat_map(layers).collect();
        let hits = self.registry.log()?;
        let content = hits.iter().filter(|hit| (200..300).contains(&hit.status) && hit.method == "GET");
        let left = content.filter(|hit| layers.iter().any(|layer| hit.path.contains(layer.as_str())));
        moved.left = left.map(|hit| hit.bytes).sum();
        Ok(moved)
    }
}

/// Every way and every place where the content may be: nowhere, here, and at a peer, by which layer.
fn places(scene: &Matrix, kind: Kind) -> impl Iterator<Item = (Way, (&Node, usize))> {
    let [first, second] = kind.nodes(scene);
    let places = [(first, Layers::COLD), (first, Layers::WARM), (second, Layers::WARM)];
    Way::ALL.into_iter().flat_map(move |way| places.map(|place| (way, place)))
}

/// Every way, for both kinds.
pub(crate) fn ways() -> impl Iterator<Item = (Way, Kind)> {
    Kind::ALL.into_iter().flat_map(|kind| Way::ALL.into_iter().map(move |way| (way, kind)))
}

pub(crate) fn who_may_have_a_private_layer_gets_it(scene: &Matrix) -> Result<()> {
    for (way, kind) in ways() {
        let [first, second] = kind.nodes(scene);
        for (what, node, repository, layer, copies) in [
            ("cold", first, SECRET, Layers::COLD_RIGHT + way as usize, 1),
            ("cold, by another repository", first, MOUNTED, Layers::COLD_MOUNTED + way as usize, 1),
            ("warm", first, SECRET, Layers::WARM, 0),
            ("warm, by another repository", first, MOUNTED, Layers::WARM, 0),
            ("at a peer", second, SECRET, Layers::PEER_RIGHT + way as usize, 0),
            ("at a peer, by another repository", second, MOUNTED, Layers::PEER_MOUNTED + way as usize, 0),
        ] {
            let context = || format!("{kind:?} {way:?} {what}");
            let before = scene.moved(&[layer])?.left;
            let path = scene.blob(kind, repository, layer);
            let got = scene.ask((node, way, kind), &path, Caller::Right(repository), &[])?;
            ensure!(got.status == 200, "{}: {}", context(), got.status);
            ensure!(path.ends_with(&digest_of(got.body.as_slice())?), "{}: other bytes", context());
            let after = scene.moved(&[layer])?.left;
            ensure!(after - before == copies * got.body.len() as u64, "{}: {before} to {after}", context());
        }
    }
    Ok(())
}

pub(crate) fn nobody_else_gets_a_byte_of_it(scene: &Matrix) -> Result<()> {
    const LAYERS: [usize; 2] = [Layers::WARM, Layers::COLD];
    scene.let_in_for_a_moment(0..12)?;
    scene.have_ended(0..12)?;
    let before = scene.moved(&LAYERS)?;
    let (mut cells, mut ended) = (0, 0..12);
    for (way, kind) in ways() {
        let [first, second] = kind.nodes(scene);
        // Those who may have been there just before.
        for node in [first, second] {
            for repository in [SECRET, PUBLIC] {
                let path = format!("/v2/{repository}/manifests/1");
                ensure!(scene.ask((node, way, kind), &path, Caller::Right(repository), &[])?.status == 200);
            }
        }
        let other = Kind::ALL.into_iter().find(|other| *other != kind).context("there are two")?;
        for (node, layer) in [(first, Layers::COLD), (first, Layers::WARM), (second, Layers::WARM)] {
            let secret = scene.blob(kind, SECRET, layer);
            let elsewhere = scene.blob(kind, PUBLIC, layer);
            let foreign = scene.blob(other, SECRET, layer);
            let mut callers = vec![
                (&secret, Caller::Wrong, 401),
                (&secret, Caller::Nobody, 401),
                (&elsewhere, Caller::Right(PUBLIC), 404),
                (&foreign, Caller::Right(SECRET), 404),
            ];
            if kind == Kind::Token {
                // Whom a password lets in, it lets in everywhere; and it does not end by itself.
                callers.push((&secret, Caller::Right(MOUNTED), 401));
                let ended = ended.next().context("there is one for each cell")?;
                callers.push((&secret, Caller::Ended(ended), 401));
            }
            for (path, caller, status) in callers {
                let said = scene.straight(kind, path, caller)?;
                for range in [&[][..], &[("Range", "bytes=0-99")]] {
                    let got = scene.ask((node, way, kind), path, caller, range)?;
                    let cell = || format!("{kind:?} {way:?} {caller:?} {} {path}: {got:?}", node.host.name());
                    ensure!(got.status == status && got.content() == 0, "{}", cell());
                    ensure!(
                        (got.status, &got.challenge, &got.body) == (said.status, &said.challenge, &said.body),
                        "{}: the registry says {said:?}",
                        cell()
                    );
                    cells += 1;
                }
            }
        }
    }
    let after = scene.moved(&LAYERS)?;
    ensure!(before == after, "bytes moved: {before:?} to {after:?}");
    ensure!(cells == 4 * 3 * 2 * (6 + 4), "{cells} cells");
    Ok(())
}

/// As clients do it: a 401 says where tokens are, the service there gives one for the password, and that opens the layer.
pub(crate) fn the_registrys_challenge_leads_to_a_token(scene: &Matrix) -> Result<()> {
    let node = &scene.nodes[0];
    for way in Way::ALL {
        let path = scene.blob(Kind::Token, SECRET, Layers::WARM);
        let got = scene.ask((node, way, Kind::Token), &path, Caller::Nobody, &[])?;
        let challenge = got.challenge.context("no challenge")?;
        let named = |name: &str| {
            let (_, rest) = challenge.split_once(&format!("{name}=\""))?;
            Some(rest.split('"').next().unwrap_or_default().to_owned())
        };
        let realm = named("realm").context("no realm")?;
        let (service, scope) = (named("service").context("no service")?, named("scope").context("no scope")?);
        let path_of_realm = realm.strip_prefix(&format!("https://{REALM}")).context("another realm")?;
        let target = format!("{path_of_realm}?service={service}&scope={scope}");
        let shown = basic(CREDENTIALS);
        let headers = [("Authorization", shown.as_str())];
        let request =
            http::Request { method: "GET", target: &target, host: REALM, headers: &headers, body: None };
        let answer = http::send(scene.intercepted(node, REALM)?, &request)?.text()?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let token = format!("Bearer {}", answer["token"].as_str().context("no token")?);
        scene.secrets.note(&token);
        let got = scene.ask((node, way, Kind::Token), &path, Caller::Nobody, &[("Authorization", &token)])?;
        ensure!(got.is_hit(), "{way:?}: {} {:?}", got.status, got.cache);
    }
    Ok(())
}

/// For each way and place somebody of his own, whom the registry has let in there just before.
pub(crate) fn a_revoked_password(scene: &Matrix) -> Result<()> {
    let kind = Kind::Basic;
    let [first, _] = kind.nodes(scene);
    let manifest = format!("/v2/{SECRET}/manifests/1");
    let cells: Vec<_> = places(scene, kind).collect();
    ensure!(cells.len() <= SECONDS, "{} cells", cells.len());
    let cells = || cells.iter().enumerate().map(|(n, (way, place))| (Caller::Second(n), *way, *place));
    for (caller, way, (node, layer)) in cells() {
        let got = scene.ask((node, way, kind), &manifest, caller, &[])?;
        ensure!(got.status == 200, "{way:?} {}: {got:?}", node.host.name());
        if layer == Layers::WARM && node.host.name() == first.host.name() {
            let got = scene.ask((node, way, kind), &scene.blob(kind, SECRET, layer), caller, &[])?;
            ensure!(got.is_hit(), "{way:?}: {got:?}");
        }
    }
    scene.registry.revoke_seconds()?;
    until("the registry to know", LIMIT, || {
        scene.straight(kind, &manifest, Caller::Second(0)).ok().filter(|got| got.status == 401)
    })?;
    let warm = scene.blob(kind, SECRET, Layers::WARM);
    let before = scene.moved(&[Layers::WARM, Layers::COLD])?;
    for (caller, way, (node, layer)) in cells() {
        let cell = || format!("{way:?} {} {layer}", node.host.name());
        let path = scene.blob(kind, SECRET, layer);
        // What a client asks first, or what the registry is asked for in any case, since nobody has it.
        let first_question = if layer == Layers::COLD { &path } else { &manifest };
        for asked in [first_question, &path] {
            let got = scene.ask((node, way, kind), asked, caller, &[])?;
            let said = scene.straight(kind, asked, caller)?;
            ensure!(got.status == 401 && got.content() == 0, "{} {asked}: {got:?}", cell());
            ensure!((&got.challenge, &got.body) == (&said.challenge, &said.body), "{}: {got:?}", cell());
        }
        // Nobody else's proof ends with it.
        let got = scene.ask((first, way, kind), &warm, Caller::Right(SECRET), &[])?;
        ensure!(got.is_hit(), "{}: {got:?}", cell());
    }
    let after = scene.moved(&[Layers::WARM, Layers::COLD])?;
    ensure!(before == after, "bytes moved: {before:?} to {after:?}");
    Ok(())
}

pub(crate) fn registries_are_down(scene: &Matrix) -> Result<()> {
    const LAYERS: [usize; 2] = [Layers::WARM, Layers::COLD];
    for (way, kind) in ways() {
        for node in kind.nodes(scene) {
            for repository in [SECRET, MOUNTED] {
                let path = format!("/v2/{repository}/manifests/1");
                let got = scene.ask((node, way, kind), &path, Caller::Right(repository), &[])?;
                ensure!(got.status == 200, "{kind:?} {way:?} {repository}: {got:?}");
            }
        }
    }
    scene.let_in_for_a_moment(12..24)?;
    scene.have_ended(12..24)?;
    scene.registry.stop()?;
    for (way, kind) in ways() {
        let [first, second] = kind.nodes(scene);
        for (node, layer) in [(first, Layers::WARM), (second, Layers::PEER_DOWN + way as usize)] {
            for repository in [SECRET, MOUNTED] {
                let path = scene.blob(kind, repository, layer);
                let got = scene.ask((node, way, kind), &path, Caller::Right(repository), &[])?;
                let cell = || format!("{kind:?} {way:?} {} {path}", node.host.name());
                ensure!(got.status == 200, "{}: {got:?}", cell());
                ensure!(path.ends_with(&digest_of(got.body.as_slice())?), "{}: other bytes", cell());
            }
        }
        // What is nowhere, nobody can have.
        let path = scene.blob(kind, SECRET, Layers::COLD);
        let got = scene.ask((first, way, kind), &path, Caller::Right(SECRET), &[])?;
        ensure!(got.status >= 500 && got.content() == 0, "{kind:?} {way:?}: {got:?}");
    }
    let before = scene.moved(&LAYERS)?;
    let mut cells = 0;
    for kind in Kind::ALL {
        for (number, (way, (node, layer))) in places(scene, kind).enumerate() {
            let mut callers = vec![
                (SECRET, Caller::Wrong),
                (SECRET, Caller::Nobody),
                (PUBLIC, Caller::Right(PUBLIC)),
                (MOUNTED, Caller::Wrong),
            ];
            match kind {
                // A token for the one repository of two that hold the same, and one that was let in just before.
                Kind::Token => callers.extend([
                    (SECRET, Caller::Right(MOUNTED)),
                    (MOUNTED, Caller::Right(SECRET)),
                    (SECRET, Caller::Ended(12 + number)),
                ]),
                Kind::Basic => callers.push((SECRET, Caller::Second(number))),
            }
            for (repository, caller) in callers {
                let path = scene.blob(kind, repository, layer);
                let got = scene.ask((node, way, kind), &path, caller, &[])?;
                let said = String::from_utf8_lossy(&got.body);
                let why = "so it cannot say whether this caller may have this";
                ensure!(
                    got.status == 503 && said.contains(why) && got.content() == 0,
                    "{kind:?} {way:?} {caller:?} {} {path}: {got:?} {said}",
                    node.host.name()
                );
                cells += 1;
            }
        }
    }
    let after = scene.moved(&LAYERS)?;
    ensure!(before == after, "bytes moved: {before:?} to {after:?}");
    ensure!(cells == 4 * 3 * (7 + 5), "{cells} cells");
    Ok(())
}
