//! A small name server on loopback. In a thread of its own, so that tests without a runtime can have one, too.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

/// Questions for IPv4 addresses.
pub(crate) const A: u16 = 1;

/// A name server, for as long as its process lives.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<(String, u16)>>>,
}

impl NameServer {
    /// Answers questions for addresses with these in turn, the last one for ever, valid for no time at all. None at all:
    /// there is no such name.
    pub(crate) fn start(answers: &[Ipv4Addr]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let record = asked.clone();
        let mut answers: VecDeque<Ipv4Addr> = answers.iter().copied().collect();
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                let (name, kind, question) = question(&packet[..length]);
                record.lock().unwrap().push((name, kind));
                let code = if answers.is_empty() { 3 } else { 0 };
                let address = match kind {
                    A if answers.len() > 1 => answers.pop_front(),
                    A => answers.front().copied(),
                    _ => None,
                };
                // RFC 1035 section 4.1: the same id, an answer with recursion, one question.
                let mut reply = packet[..2].to_vec();
                reply.extend([0x81, 0x80 | code, 0, 1, 0, address.is_some().into(), 0, 0, 0, 0]);
                reply.extend(question);
                if let Some(address) = address {
                    // The name of the question, A, IN, no time to live, four bytes.
                    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                    reply.extend(address.octets());
                }
                socket.send_to(&reply, from).unwrap();
            }
        });
        Self { address, asked }
    }

    /// Names, with the root's dot, and types of the questions so far, sorted.
    pub(crate) fn asked(&self) -> Vec<(String, u16)> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort();
        asked
    }
}

/// The name, the type and the bytes of a query's question.
fn question(packet: &[u8]) -> (String, u16, Vec<u8>) {
    let mut at = 12;
    let mut name = String::new();
    while packet[at] != 0 {
        let length = usize::from(packet[at]);
        name += &String::from_utf8(packet[at + 1..at + 1 + length].to_ascii_lowercase()).unwrap();
        name.push('.');
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([packet[at + 1], packet[at + 2]]);
    (name, kind, packet[12..at + 5].to_vec())
}
