//! A registry of somebody who knows digests: it says that it has what others keep from him, in the hope that the cluster, which
//! has it, serves it in its name.

use crate::grid::{Caller, Got, Kind, Layers, SECRET, Way, ways};
use crate::{LAYER, LIMIT, Matrix};
use anyhow::{Context, Result, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::image::Image;
use darter_e2e::net::Host;
use darter_e2e::node::Node;
use darter_e2e::origin::{Origin, Page};
use darter_e2e::poll::until;
use std::io::Read as _;
use std::sync::Arc;

/// Its name.
pub(crate) const NAME: &str = "hostile.example";

/// How it goes on when it is asked for a layer that it claims to have.
#[derive(Debug, Clone, Copy)]
enum Lie {
    /// As many bytes, of its own.
    OtherBytes,
    /// It has not, all of a sudden.
    Nothing,
    /// It hangs up.
    Silence,
    /// "You find it where it is."
    Elsewhere,
}

impl Lie {
    const ALL: [Self; 4] = [Self::OtherBytes, Self::Nothing, Self::Silence, Self::Elsewhere];

    /// Each in a repository of its own.
    fn repository(self) -> &'static str {
        ["mine/other", "mine/nothing", "mine/silence", "mine/elsewhere"][self as usize]
    }
}

/// The registry, with TLS and without.
pub(crate) struct Hostile {
    servers: [Origin; 2],
    honest: Content,
}

impl Hostile {
    pub(crate) fn start(host: &Host, tls: Arc<rustls::ServerConfig>, images: &[Image; 2]) -> Result<Self> {
        let servers =
            [Origin::start_on(host.listen(80)?, None)?, Origin::start_on(host.listen(443)?, Some(tls))?];
        let hostile = Self { servers, honest: Content::new(4711, LAYER) };
        for (kind, image) in Kind::ALL.into_iter().zip(images) {
            hostile.claim(kind, image);
        }
        Ok(hostile)
    }

    fn claim(&self, kind: Kind, image: &Image) {
        for lie in Lie::ALL {
            let repository = lie.repository();
            for blob in &image.blobs {
                let path = format!("/v2/{repository}/blobs/{}", blob.digest);
                self.put(
                    &path,
                    match lie {
                        Lie::OtherBytes => Page::content(other_bytes(blob.size)),
                        Lie::Nothing => Page::Claim { length: blob.size, then: Some(404) },
                        Lie::Silence => Page::Claim { length: blob.size, then: None },
                        Lie::Elsewhere => {
                            let to = format!("https://{}/v2/{SECRET}/blobs/{}", kind.registry(), blob.digest);
                            let headers = vec![("Location".to_owned(), to)];
                            Page::Fixed { status: 307, headers, body: String::new() }
                        }
                    },
                );
            }
            let layer = |digest| serde_json::json!({ "digest": digest, "size": 1 });
            let layers: Vec<_> = image.layers.iter().map(layer).collect();
            let body = serde_json::json!({ "schemaVersion": 2, "layers": layers }).to_string();
            let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
            let headers = vec![("Content-Type".to_owned(), media_type)];
            self.put(&manifest(kind, lie), Page::Fixed { status: 200, headers, body });
        }
        self.put(&self.honest_blob(), Page::content(self.honest));
    }

    fn put(&self, path: &str, page: Page) {
        self.servers.iter().for_each(|server| server.put(path, page.clone()));
    }

    fn asked(&self, path: &str) -> usize {
        self.servers.iter().map(|server| server.asked(path).len()).sum()
    }

    fn honest_blob(&self) -> String {
        format!("/v2/mine/honest/blobs/{}", self.honest.digest())
    }
}

/// What is sent for a layer of this length.
fn other_bytes(length: u64) -> Content {
    Content::new(666, length)
}

fn manifest(kind: Kind, lie: Lie) -> String {
    format!("/v2/{}/manifests/{kind:?}", lie.repository()).to_lowercase()
}

impl Matrix {
    /// Brings one layer to the node whose mirror is the hostile registry, from the node that has it.
    pub(crate) fn warm_fooled(&self) -> Result<()> {
        let (path, right) = (self.blob(Kind::Token, SECRET, Layers::WARM), Caller::Right(SECRET));
        until("a layer to be on the node", LIMIT, || {
            let got = self.ask((&self.fooled, Way::NsMirror, Kind::Token), &path, right, &[]).ok()?;
            got.is_hit().then_some(())
        })
    }

    /// Where the hostile registry is asked for what, of which kind's registry: all ways, and all places where that may be.
    fn hostile_cells(&self) -> Vec<(&Node, Way, Kind, usize)> {
        let mut cells = Vec::new();
        for (way, kind) in ways() {
            // By its own mirror a node asks for what is its mirror's.
            let (here, peer) = match (way, kind) {
                (Way::Mirror, Kind::Token) => {
                    ((&self.fooled, Layers::WARM), (&self.fooled, Layers::PEER_DOWN))
                }
                (Way::Mirror, Kind::Basic) => continue,
                _ => {
                    let [first, second] = kind.nodes(self);
                    ((first, Layers::WARM), (second, Layers::WARM))
                }
            };
            let places = [(here.0, Layers::COLD), here, peer];
            cells.extend(places.map(|(node, layer)| (node, way, kind, layer)));
        }
        cells
    }

    /// What came of the hostile registry's layer, as far as it came: a body that turns out wrong is cut off.
    fn claimed(&self, place: (&Node, Way), path: &str, headers: &[(&str, &str)]) -> (u16, Vec<u8>) {
        let Ok(mut answer) = self.ask_of((place.0, place.1, NAME), path, headers) else {
            return (0, Vec::new());
        };
        let mut body = Vec::new();
        // An end that comes early is what is to be expected.
        let _ = answer.read_to_end(&mut body);
        (answer.status, body)
    }
}

/// Each way in, for a layer that is nowhere, here, or at a peer; nobody, or with what opens the private repository itself; all of
/// it, or a part.
pub(crate) fn who_claims_it_gets_none_of_it(scene: &Matrix) -> Result<()> {
    const LAYERS: [usize; 3] = [Layers::WARM, Layers::COLD, Layers::PEER_DOWN];
    let before = scene.moved(&LAYERS)?;
    let cells = scene.hostile_cells();
    ensure!(cells.len() == 7 * 3, "{} cells", cells.len());
    for (node, way, kind, layer) in cells {
        let digest = &scene.images[kind as usize].layers[layer];
        let size = scene.images[kind as usize].blobs.iter().find(|blob| blob.digest == *digest);
        let size = size.context("a layer is a blob")?.size;
        let shown = scene.shown(kind, Caller::Right(SECRET))?.context("the right one is shown")?;
        for lie in Lie::ALL {
            let cell = || format!("{kind:?} {way:?} {} {layer} {lie:?}", node.host.name());
            let path = format!("/v2/{}/blobs/{digest}", lie.repository());
            let asked = scene.hostile.asked(&path);
            // Its manifest is true to itself: that repository says that it contains the layer, to everybody.
            let got = Got::of(scene.ask_of((node, way, NAME), &manifest(kind, lie), &[])?)?;
            ensure!(got.status == 200, "{}: {got:?}", cell());
            let all = [&[][..], &[("Authorization", &*shown)], &[("Range", "bytes=2048-4095")]];
            // Whoever hangs up is called again for more than a second: once for each place.
            let requests = match (lie, way) {
                (Lie::Silence, Way::Mirror) => &all[..1],
                (Lie::Silence, _) => &[],
                _ => &all[..],
            };
            for headers in requests {
                let (status, body) = scene.claimed((node, way), &path, headers);
                let from = if status == 206 { 2048 } else { 0 };
                let mut own = Vec::new();
                other_bytes(size).reader(from).read_to_end(&mut own)?;
                // Also in another of its repositories: what a registry has is one.
                let is_its_own = own.starts_with(&body);
                let said = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
                ensure!(
                    body.is_empty() || is_its_own || ((400..600).contains(&status) && body.len() < 4096),
                    "{} {headers:?}: {status}, {} bytes: {said}",
                    cell(),
                    body.len()
                );
            }
            ensure!(requests.is_empty() || scene.hostile.asked(&path) > asked, "{}: nobody asked it", cell());
        }
    }
    let after = scene.moved(&LAYERS)?;
    ensure!(before.left == after.left, "{before:?} to {after:?}");
    for (node, way, ..) in scene.hostile_cells() {
        // What it says truly is served in its name.
        let got = Got::of(scene.ask_of((node, way, NAME), &scene.hostile.honest_blob(), &[])?)?;
        ensure!(got.status == 200 && digest_of(&*got.body)? == scene.hostile.honest.digest(), "{got:?}");
    }
    for kind in Kind::ALL {
        let path = scene.blob(kind, SECRET, Layers::WARM);
        let node = kind.nodes(scene)[0];
        let got = scene.ask((node, Way::Mirror, kind), &path, Caller::Right(SECRET), &[])?;
        ensure!(got.is_hit() && path.ends_with(&digest_of(&*got.body)?), "{kind:?}: {got:?}");
    }
    Ok(())
}
