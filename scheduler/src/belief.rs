//! What is believed of a task's content, and of whom.
//!
//! The first word counts, until one who speaks with the origin contradicts it: who has the lease, or had it in this download. That word
//! replaces what nobody said who spoke with the origin, as long as at most [`MOST_DOUBTED`] hosts hold it. Not of more: the lease can be
//! had by complaining of all who hold the content, and one word alone must not throw away what several have, as after a restart of this scheduler, when
//! all is known from announcements alone. What one said that spoke with the origin only the next one replaces, and only where nobody has a
//! byte of it; otherwise the two must not mix, and the next one fetches for itself, outside the task.
//!
//! Those who hold what was contradicted are no peers of the task any more: nobody is sent to them, and what they announce again is not
//! believed. They are not quarantined for it as for corrupt bytes: these anybody can check against a hash, but here one word stands against
//! another, and it may be an honest one of a time at which the origin had other content.

use crate::hashes::Hashes;
use crate::host::HostKey;
use crate::message::Content;
use crate::peer::Role;
use crate::refusal::Refusal;
use crate::task::Task;
use crate::world::Cx;

/// So many hosts that hold some content are contradicted by one word. As with failures (`conduct.rs`), three hosts are more than one.
const MOST_DOUBTED: usize = 2;

/// What of the content was said by one who spoke with the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Vouched {
    length: bool,
    root: bool,
}

impl Task {
    /// What the origin answered to a peer, by its word.
    pub(crate) fn hear_content(&mut self, cx: &mut Cx<'_>, key: HostKey, content: Content) {
        if self.download(key).is_none_or(|download| !download.meshes()) {
            return;
        }
        let is_first = self.content.is_none();
        match self.adopt(cx, key, content.clone()) {
            // What was known already brings nobody further, however often it is said; nor is it a second word: it was told it itself.
            Ok(false) => {}
            Ok(true) => {
                self.vouched.length |= is_first && self.has_lease(key);
                self.further(cx, key);
            }
            Err(_) if !self.has_lease(key) => cx.world.counts.ignored += 1,
            Err(_)
                if (self.alone_has_bytes(key) || self.may_replace(key, &content))
                    && self.replaces_first(key) =>
            {
                self.vouched = Vouched { length: true, root: false };
                // Before others leave: until then it may be one that stands still.
                self.further(cx, key);
                let disowned = self.replace_content(cx, key, content);
                self.disown(cx, disowned);
            }
            Err(_) => {
                tracing::debug!(task = %cx.task, "the origin answers with other content than before");
                self.go_alone(cx, key);
                self.pass_on(cx);
            }
        }
    }

    /// Takes in the content that the host says it holds. Returns those who hold another, which is not believed any more.
    ///
    /// # Errors
    /// When it is not believed.
    pub(crate) fn hear_complete(
        &mut self,
        cx: &mut Cx<'_>,
        key: HostKey,
        content: Content,
    ) -> Result<Vec<HostKey>, Refusal> {
        let disowned = match self.adopt(cx, key, content.clone()) {
            Ok(_) => Vec::new(),
            Err(_) if self.may_replace(key, &content) => self.replace_content(cx, key, content),
            Err(refusal) => return Err(refusal),
        };
        if self.spoke_with_origin(key) {
            self.vouched = Vouched { length: true, root: true };
        }
        Ok(disowned)
    }

    /// Whether the peer's word about the content counts more than what is known.
    fn may_replace(&self, key: HostKey, content: &Content) -> bool {
        let Some(known) = &self.content else { return true };
        if !self.spoke_with_origin(key) {
            return false;
        }
        if known.layout != content.layout {
            return !self.vouched.length && self.complete <= MOST_DOUBTED;
        }
        // The hashes of all pieces are the word of those who spoke with the origin.
        let by_pieces = self.hashes.root(&known.layout).filter(|_| content.root.is_some());
        let doubted = !self.vouched.root && self.complete <= MOST_DOUBTED;
        doubted && by_pieces.is_none_or(|by_pieces| Some(by_pieces) == content.root)
    }

    fn spoke_with_origin(&self, key: HostKey) -> bool {
        let struck = self.peers.get(&key).is_none_or(|peer| peer.regard.struck);
        !struck && self.download(key).is_some_and(|download| download.meshes() && download.leased)
    }

    /// Whether the holder of the lease says for the first time under it that the content is another one: who says so each second
    /// would have it for ever.
    fn replaces_first(&mut self, key: HostKey) -> bool {
        let lease = self.lease.as_mut().filter(|lease| lease.holder == key);
        lease.is_some_and(|lease| !std::mem::replace(&mut lease.replaced, true))
    }

    fn alone_has_bytes(&self, key: HostKey) -> bool {
        self.complete == 0 && self.suppliers.iter().all(|supplier| supplier == key)
    }

    /// Returns those who have some of the content before and do not download. What downloads have is of that, too, the reporter's own included:
    /// they hear of it, and end. Not where the two are of one length: their pieces are checked one by one, by hashes that came from the origin.
    fn replace_content(&mut self, cx: &mut Cx<'_>, key: HostKey, content: Content) -> Vec<HostKey> {
        let before = self.content.replace(content);
        let same_pieces = before.map(|it| it.layout) == self.content.as_ref().map(|it| it.layout);
        if !same_pieces {
            self.hashes = Hashes::default();
        }
        let mut disowned: Vec<HostKey> = Vec::new();
        for (peer, it) in &mut self.peers {
            match &mut it.role {
                Role::Downloading(download) => {
                    if !same_pieces {
                        (download.held, download.hashes_sent) = (0, 0);
                    }
                    download.news.content |= *peer != key;
                }
                Role::Complete => disowned.push(*peer),
                Role::Partial if !same_pieces => disowned.push(*peer),
                Role::Partial => {}
            }
        }
        // The order of a map is not chance.
        disowned.sort_unstable();
        let suppliers: Vec<HostKey> = self.suppliers.iter().collect();
        suppliers.iter().for_each(|peer| self.index(*peer));
        // Who had everything was given to others over borders.
        suppliers.into_iter().for_each(|peer| self.keep_apart(cx, peer));
        self.wake_all(cx, Some(key));
        disowned
    }

    /// Nobody is sent to them any more.
    pub(crate) fn disown(&mut self, cx: &mut Cx<'_>, peers: Vec<HostKey>) {
        for peer in peers {
            tracing::debug!(task = %cx.task, "a host holds other content than the origin has");
            cx.world.counts.ignored += 1;
            self.leave(cx, peer, None);
        }
    }

    /// Takes in what an origin or a holder says of the content, and tells everybody but `from` what is new. Returns whether anything is.
    ///
    /// # Errors
    /// When it is not the content that is known, by length, root or hashes. Nothing has changed then.
    fn adopt(&mut self, cx: &mut Cx<'_>, from: HostKey, content: Content) -> Result<bool, Refusal> {
        match &mut self.content {
            None => self.content = Some(content),
            Some(known) if known.layout != content.layout => return Err(Refusal::OtherContent),
            Some(known) => match (known.root, content.root) {
                (Some(known), Some(root)) if known != root => return Err(Refusal::OtherContent),
                (None, Some(root)) => {
                    if self.hashes.root(&known.layout).is_some_and(|of_pieces| of_pieces != root) {
                        return Err(Refusal::OtherContent);
                    }
                    known.root = Some(root);
                }
                _ => return Ok(false),
            },
        }
        self.downloads_mut().for_each(|(peer, download)| download.news.content |= peer != from);
        self.wake_all(cx, Some(from));
        // Who has every byte shows once the length is known.
        let keys: Vec<HostKey> = self.suppliers.iter().collect();
        for key in keys {
            let was_source = self.is_source(key);
            self.index(key);
            if !was_source && self.is_source(key) {
                self.offer(cx, key);
            }
        }
        Ok(true)
    }
}
