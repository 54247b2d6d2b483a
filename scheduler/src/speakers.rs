//! [`Speakers`]: which connection speaks for which host.
//!
//! A host is who has opened its life line. What comes by another connection in its name is refused: without that, one daemon
//! could send all others away by a goodbye in their names. A life line from the same address takes the place of the one that
//! there is, as a daemon does that has just been restarted; from another address only once that one has ended, which a
//! dead one has within ten seconds (`server.rs`). Where hosts prove who they are, a host speaks for itself alone, and may
//! come from anywhere.

use darter_enrol::Caller;
use darter_protocol::HostId;
use std::collections::HashMap;
use std::net::SocketAddr;

#[derive(Debug, Default)]
pub(crate) struct Speakers {
    by_host: HashMap<HostId, Introduction>,
    by_connection: HashMap<SocketAddr, HostId>,
    introductions: u64,
}

/// By which connection a host is spoken for, and since which of all introductions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Introduction {
    remote: SocketAddr,
    number: u64,
}

/// Somebody speaks for a host that is another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Usurper {
    #[error("the host of this id is there already, by a connection from another address")]
    Elsewhere,
    #[error("this connection speaks for another host already: each host needs one of its own")]
    Other,
    #[error("the life line of this host is on another connection")]
    Stranger,
    #[error("the certificate of this connection is another host's")]
    Unproven,
    #[error(
        "this host says that it is a seed, and its certificate does not: let it join with a token of `darter token create --seed`"
    )]
    NoSeed,
}

impl Speakers {
    pub(crate) fn introduce(&mut self, host: &HostId, caller: &Caller) -> Result<Introduction, Usurper> {
        let remote = caller.remote;
        if !caller.may_speak_for(host) {
            return Err(Usurper::Unproven);
        }
        if self.by_connection.get(&remote).is_some_and(|known| known != host) {
            return Err(Usurper::Other);
        }
        if let Some(before) = self.by_host.get(host).copied() {
            if before.remote.ip() != remote.ip() && caller.member().is_none() {
                return Err(Usurper::Elsewhere);
            }
            self.by_connection.remove(&before.remote);
        }
        self.introductions += 1;
        let introduction = Introduction { remote, number: self.introductions };
        self.by_host.insert(host.clone(), introduction);
        self.by_connection.insert(remote, host.clone());
        Ok(introduction)
    }

    /// For a host that nobody speaks for anybody may: the cluster does not know it.
    pub(crate) fn may_speak(&self, host: &HostId, caller: &Caller) -> Result<(), Usurper> {
        if !caller.may_speak_for(host) {
            return Err(Usurper::Unproven);
        }
        match self.by_host.get(host) {
            Some(speaker) if speaker.remote != caller.remote => Err(Usurper::Stranger),
            _ => Ok(()),
        }
    }

    /// The life line of that introduction has ended. A later one stays.
    pub(crate) fn silence(&mut self, host: &HostId, introduction: Introduction) {
        if self.by_host.get(host) == Some(&introduction) {
            self.by_host.remove(host);
            self.by_connection.remove(&introduction.remote);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Caller {
        Caller { remote: text.parse().unwrap(), who: darter_enrol::Who::Anybody }
    }

    #[test]
    fn nobody_speaks_for_a_host_but_the_connection_of_its_life_line() {
        let (mut speakers, a, b) = (Speakers::default(), "a".parse().unwrap(), "b".parse().unwrap());
        let (one, two, far) = (&at("10.0.0.1:1"), &at("10.0.0.1:2"), &at("10.0.0.2:1"));
        assert_eq!(speakers.may_speak(&a, far), Ok(()), "nobody is there yet");
        let first = speakers.introduce(&a, one).unwrap();
        assert_eq!(speakers.may_speak(&a, one), Ok(()));
        assert_eq!(speakers.may_speak(&a, two), Err(Usurper::Stranger));
        assert_eq!(speakers.introduce(&a, far), Err(Usurper::Elsewhere));
        assert_eq!(speakers.introduce(&b, one), Err(Usurper::Other));
        speakers.introduce(&a, one).unwrap();
        let second = speakers.introduce(&a, two).unwrap();
        speakers.silence(&a, first);
        assert_eq!(speakers.may_speak(&a, one), Err(Usurper::Stranger), "the later one stays");
        speakers.silence(&a, second);
        let third = speakers.introduce(&a, far).unwrap();
        let fourth = speakers.introduce(&b, one).unwrap();
        speakers.silence(&a, third);
        speakers.silence(&b, fourth);
        assert!(speakers.by_host.is_empty() && speakers.by_connection.is_empty());
    }
}
