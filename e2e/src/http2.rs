//! A client that speaks HTTP/2 by hand: as little of RFC 9113 as one request takes, and nothing that goes on by itself on a
//! connection that is idle.

use anyhow::{Result, ensure};
use std::io::{Read, Write};

/// How a connection begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much may be sent to us before we have taken it, on a stream and on the connection, in bytes.
const WINDOW: u32 = 1 << 20;

/// What a frame is (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

/// Flags of frames.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The settings SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// The only stream.
const STREAM: u32 = 1;

/// `:status 200` by its index in HPACK's static table (RFC 7541 appendix A).
const STATUS_200: u8 = 0x88;

/// Begins HTTP/2 on a connection, asks for a page, and reads all of the answer, whose length is returned. The connection
/// stays. Names must be shorter than 127 bytes.
pub fn get(stream: &mut (impl Read + Write), authority: &str, path: &str) -> Result<usize> {
    let window = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &WINDOW.to_be_bytes()].concat();
    // GET and https, and two literals that are not remembered, whose names are 1 and 4 in the static table.
    let head = [&[0x82, 0x87][..], &literal(1, authority)?, &literal(4, path)?].concat();
    let said = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &window),
        frame(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes()),
        frame(HEADERS, END_HEADERS | END_STREAM, STREAM, &head),
    ];
    stream.write_all(&said.concat())?;
    stream.flush()?;
    let mut length = 0;
    loop {
        let (kind, flags, payload) = read_frame(stream)?;
        match kind {
            SETTINGS if flags & ACK == 0 => {
                stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?;
                stream.flush()?;
            }
            HEADERS => ensure!(payload.first() == Some(&STATUS_200), "the answer is not 200: {payload:x?}"),
            DATA => length += payload.len(),
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Ok(length);
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header that is named by its index and is not to be remembered (RFC 7541 section 6.2.2).
fn literal(name: u8, value: &str) -> Result<Vec<u8>> {
    ensure!(value.len() < 0x7f, "too long: {value}");
    Ok([&[name, value.len() as u8], value.as_bytes()].concat())
}

fn read_frame(stream: &mut impl Read) -> Result<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [high, middle, low, kind, flags, ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
    stream.read_exact(&mut payload)?;
    Ok((kind, flags, payload))
}
