//! A small name server on loopback. In a thread of its own, so that tests without a runtime can have one, too.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Questions for IPv4 addresses.
pub(crate) const A: u16 = 1;
/// Questions for services (RFC 2782).
const SRV: u16 = 33;

/// The targets of every service: names without the root's dot, and ports.
pub(crate) type Services = Arc<Mutex<Vec<(String, u16)>>>;

/// A name server, for as long as its process lives.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<(String, u16)>>>,
}

impl NameServer {
    /// Answers questions for addresses with these in turn, the last one for ever, valid for no time at all. None at all:
    /// there is no such name.
    pub(crate) fn start(answers: &[Ipv4Addr]) -> Self {
        Self::with_services(answers, Services::default())
    }

    /// The same, and questions for services with what these are at the time.
    pub(crate) fn with_services(answers: &[Ipv4Addr], services: Services) -> Self {
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
                let targets = if kind == SRV { services.lock().unwrap().clone() } else { Vec::new() };
                let count = u8::try_from(targets.len()).unwrap() + u8::from(address.is_some());
                // RFC 1035 section 4.1: the same id, an answer with recursion, one question.
                let mut reply = packet[..2].to_vec();
                reply.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
                reply.extend(question);
                targets.iter().for_each(|(name, port)| reply.extend(service(name, *port)));
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

    /// As [`Self::start`] with one answer, which is too long for UDP: there it is cut off before its first record, and marked so
    /// (TC, RFC 1035 section 4.1.1). Tells how often it was asked over TCP.
    pub(crate) fn start_long(answer: Ipv4Addr) -> (Self, Arc<AtomicUsize>) {
        // The same port for both: it may be another's in one of the two.
        let (udp, tcp) = (0..100)
            .find_map(|_| {
                let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
                let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
                Some((udp, tcp))
            })
            .unwrap();
        let address = udp.local_addr().unwrap();
        let (asked, over_tcp) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicUsize>::default());
        let record = asked.clone();
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut packet) {
                let (name, kind, question) = question(&packet[..length]);
                record.lock().unwrap().push((name, kind));
                let head = [packet[0], packet[1], 0x83, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
                udp.send_to(&[&head[..], &question].concat(), from).unwrap();
            }
        });
        let count = over_tcp.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let (mut stream, count) = (stream.unwrap(), count.clone());
                std::thread::spawn(move || {
                    let mut length = [0; 2];
                    while stream.read_exact(&mut length).is_ok() {
                        let mut packet = vec![0; u16::from_be_bytes(length).into()];
                        stream.read_exact(&mut packet).unwrap();
                        count.fetch_add(1, Ordering::Relaxed);
                        let (_, kind, question) = question(&packet);
                        // More of the same than would have fitted.
                        let records: u16 = if kind == A { 100 } else { 0 };
                        let mut reply = vec![packet[0], packet[1], 0x81, 0x80, 0, 1];
                        reply.extend(records.to_be_bytes());
                        reply.extend([0; 4]);
                        reply.extend(question);
                        for _ in 0..records {
                            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                            reply.extend(answer.octets());
                        }
                        let framed =
                            [&u16::try_from(reply.len()).unwrap().to_be_bytes()[..], &reply].concat();
                        stream.write_all(&framed).unwrap();
                    }
                });
            }
        });
        (Self { address, asked }, over_tcp)
    }

    /// Names, with the root's dot, and types of the questions so far, sorted.
    pub(crate) fn asked(&self) -> Vec<(String, u16)> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort();
        asked
    }
}

/// A record of the name of the question: SRV, IN, no time to live; priority and weight 1.
fn service(target: &str, port: u16) -> Vec<u8> {
    let labels = target.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    let name: Vec<u8> = labels.chain([0]).collect();
    let data = [&[0, 1, 0, 1][..], &port.to_be_bytes(), &name].concat();
    [&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 0, 0, data.len() as u8][..], &data].concat()
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
