//! The proof that goes ahead of data: what all blocks of the piece hash to, in the answer's head. It is proven by the piece's
//! hash, and proves each block as it comes; in a request of its own it would come a round trip later.

use darter_protocol::BlockHash;
use http::{HeaderName, HeaderValue};
use std::fmt::Write;

/// Stands at a request for data of one piece whose sender wants the proof; by the value [`IF_KNOWN`] only where it is known without
/// reading the piece.
pub(super) const WANTED_HEADER: HeaderName = HeaderName::from_static("darter-proof-wanted");
pub(super) const IF_KNOWN: HeaderValue = HeaderValue::from_static("if-known");
/// Stands at the answer: the blocks' hashes, 64 hexadecimal digits each, at most 64 KiB. Who knows no such thing leaves it out.
pub(super) const PROOF_HEADER: HeaderName = HeaderName::from_static("darter-proof");

pub(super) fn header(hashes: &[BlockHash]) -> HeaderValue {
    let mut text = String::with_capacity(64 * hashes.len());
    for hash in hashes {
        write!(text, "{hash:?}").expect("a string takes everything");
    }
    HeaderValue::try_from(text).expect("digits are a header's characters")
}

/// `None` for anything but `count` hashes.
pub(super) fn parse(value: &HeaderValue, count: usize) -> Option<Vec<BlockHash>> {
    let (digits, rest) = value.as_bytes().as_chunks::<64>();
    if digits.len() != count || !rest.is_empty() {
        return None;
    }
    digits.iter().map(|digits| BlockHash::from_hex(str::from_utf8(digits).ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use darter_protocol::PieceLayout;

    #[test]
    fn a_proof_reads_back_from_its_header_and_nothing_else_is_one() {
        let most = PieceLayout::MAX_BLOCKS_IN_PIECE as usize;
        for count in [0, 1, 16, most] {
            let hashes: Vec<BlockHash> = (0..count).map(|at| BlockHash::from([at as u8; 32])).collect();
            let value = header(&hashes);
            assert_eq!(parse(&value, count), Some(hashes));
            assert_eq!(parse(&value, count + 1), None);
        }
        let two = header(&[BlockHash::from([0xab; 32]); 2]);
        let text = two.to_str().unwrap();
        for wrong in [&text[1..], &text.to_uppercase(), &format!("{text}0"), &text.replacen('a', "g", 1)] {
            assert_eq!(parse(&HeaderValue::from_str(wrong).unwrap(), 2), None, "{wrong}");
        }
    }
}
