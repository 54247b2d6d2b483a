//! [`Lean`]: gRPC's messages with small buffers.
//!
//! tonic allocates two buffers of 8 KiB for each call, and a stream keeps them for its life. A scheduler holds one stream for each
//! download of each host, hundreds of thousands when a cluster starts an image, and nearly all their messages have some hundred
//! bytes. Buffers grow with a message that does not fit. Measured with `darter-bench scheduler`; the figures are in bench/README.md.

use prost::Message;
use std::marker::PhantomData;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Bytes that a buffer has at first: a registration, a report, or a packet with three partners.
const BUFFER: usize = 512;
/// Bytes after which a stream that has more to say hands over what it has: tonic's own value.
const YIELD: usize = 32 * 1024;

/// Encodes and decodes like [`ProstCodec`].
pub(crate) struct Lean<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Lean<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Lean<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD))
    }
}
