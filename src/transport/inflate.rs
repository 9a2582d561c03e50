//! Decompresses websocket messages into payloads: all of Discord's compressions, with bounded
//! output.

use std::mem;
use std::ops::RangeInclusive;

use bytes::{Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::pages::{self, Pages};

/// How Discord compresses what it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
    None,
    /// Each large payload separately, with zlib; IDENTIFY requests it.
    Payload,
    /// One zlib stream per connection.
    ZlibStream,
    /// One zstd stream per connection. It saves the most bytes for the least work.
    #[default]
    ZstdStream,
}

impl Compression {
    /// The value of the `compress` parameter in the gateway's URL, if this compression has one.
    pub(crate) fn query(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Payload => None,
            Self::ZlibStream => Some("zlib-stream"),
            Self::ZstdStream => Some("zstd-stream"),
        }
    }
}

/// Why a message cannot be decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InflateError {
    /// A binary message, although no compression was requested.
    #[error("a binary message, but no compression was requested")]
    NotCompressed,
    /// The compressed data is damaged or truncated.
    #[error("compressed data is damaged: {0}")]
    Corrupt(String),
    /// The payload is larger than allowed.
    #[error("a payload of more than {0} bytes")]
    TooLarge(usize),
}

/// The end of a payload in a zlib stream: the marker of a sync flush.
const ZLIB_SUFFIX: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// The base-2 logarithm of the largest zstd window that is accepted: 8 MiB, which decoders are
/// recommended to support.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// The smallest buffer for a payload, in bytes.
const SMALLEST_BUFFER: usize = 512;

/// A payload that is expected to be longer is decompressed directly into its own pages.
const LARGEST_SPARE: usize = 64 << 10;

/// A payload of this length or more has its own pages.
const OWN_PAGES: usize = 32 << 10;

/// Payloads of these lengths share a block of memory with their neighbours: memory that one thread
/// allocates and another frees costs more than the copy. An ACK is shorter, so that a shard which
/// only sends heartbeats holds no block.
const SHARED: RangeInclusive<usize> = 257..=4096;

/// The number of such payloads that get their own memory after each [`shrink`](Inflater::shrink),
/// before the others share a block. So a shard with few events needs no block.
const ALONE: u32 = 8;

/// The size of such a block. One event that a program keeps holds the whole block.
const BLOCK: usize = 16 << 10;

/// The range of compression ratios that is assumed when a buffer is sized: JSON shrinks at least to
/// a fifth; at most, a thirty-second is assumed.
const RATIOS: RangeInclusive<usize> = 5..=32;

/// The shortest message from which a ratio is learned. Shorter ones say nothing about how much long
/// ones shrink.
const TELLING: usize = 1 << 10;

/// The decompressor of one connection, for a [`Transport`](super::Transport).
///
/// ```
/// # use threadcord::{Compression, transport::Inflater};
/// let mut inflater = Inflater::new(Compression::None, 1 << 20);
/// assert_eq!(inflater.text(br#"{"op":11}"#), &br#"{"op":11}"#[..]);
/// ```
pub struct Inflater {
    kind: Kind,
    room: Room,
}

/// The memory into which payloads are decompressed.
struct Room {
    max: usize,
    /// The buffer into which most payloads are decompressed, before they are copied to their final
    /// memory.
    spare: Vec<u8>,
    /// The free part of the block that small payloads share.
    block: BytesMut,
    /// The number of payloads since the last shrink that could share a block and got their own
    /// memory. See [`ALONE`].
    shareable: u32,
    /// The compression ratio of the last message of [`TELLING`] bytes or more.
    ratio: usize,
}

enum Kind {
    Plain,
    Payload,
    ZlibStream {
        context: Box<Decompress>,
        partial: Vec<u8>,
    },
    ZstdStream {
        context: DCtx<'static>,
    },
}

impl Inflater {
    /// Creates a decompressor for a new connection. Payloads may have at most `max` bytes.
    pub fn new(compression: Compression, max: usize) -> Self {
        let kind = match compression {
            Compression::None => Kind::Plain,
            Compression::Payload => Kind::Payload,
            Compression::ZlibStream => Kind::ZlibStream {
                context: Box::new(Decompress::new(true)),
                partial: Vec::new(),
            },
            Compression::ZstdStream => {
                let mut context = DCtx::create();
                // Fails only for values out of range, which this constant is not.
                let _ = context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX));
                Kind::ZstdStream { context }
            }
        };
        Self {
            kind,
            room: Room {
                max,
                spare: Vec::new(),
                block: BytesMut::new(),
                shareable: 0,
                ratio: *RATIOS.start(),
            },
        }
    }

    /// Releases buffers. Call it when the connection has been idle for a while.
    pub fn shrink(&mut self) {
        self.room.spare = Vec::new();
        self.room.block = BytesMut::new();
        self.room.shareable = 0;
        pages::give_back();
    }

    /// Returns the payload of a text message, which is the message itself whatever the compression.
    /// Servers without compression send text even if compression was requested.
    pub fn text(&mut self, message: &[u8]) -> Bytes {
        self.room.copy(message)
    }

    /// Decompresses a binary message. Returns `None` if it is only a part of a payload.
    ///
    /// # Errors
    /// Fails if the message is damaged, if its payload is too large, or if there is no compression.
    /// The decompressor cannot be used any more then, so close the connection.
    pub fn binary(&mut self, message: &[u8]) -> Result<Option<Bytes>, InflateError> {
        let room = &mut self.room;
        match &mut self.kind {
            Kind::Plain => Err(InflateError::NotCompressed),
            Kind::Payload => {
                let (payload, status) = inflate(&mut Decompress::new(true), message, room)?;
                match status {
                    Status::StreamEnd => Ok(Some(payload)),
                    Status::Ok | Status::BufError => {
                        Err(InflateError::Corrupt("the zlib data is truncated".into()))
                    }
                }
            }
            Kind::ZlibStream { context, partial } => {
                let ends = message.ends_with(&ZLIB_SUFFIX);
                if ends && partial.is_empty() {
                    return Ok(Some(inflate(context, message, room)?.0));
                }
                if partial.len() + message.len() > room.max {
                    return Err(InflateError::TooLarge(room.max));
                }

                partial.extend_from_slice(message);
                if !partial.ends_with(&ZLIB_SUFFIX) {
                    return Ok(None);
                }
                let payload = inflate(context, partial, room)?.0;
                *partial = Vec::new();
                Ok(Some(payload))
            }
            Kind::ZstdStream { context } => decompress(context, message, room).map(Some),
        }
    }
}

fn inflate(
    context: &mut Decompress,
    input: &[u8],
    room: &mut Room,
) -> Result<(Bytes, Status), InflateError> {
    let mut output = room.expect(input.len());
    let before = (context.total_in(), context.total_out());
    let since = |before, now| usize::try_from(now - before).unwrap_or(usize::MAX);

    loop {
        let rest = input.get(since(before.0, context.total_in())..);
        let status = context
            .decompress(
                rest.unwrap_or_default(),
                output.free(),
                FlushDecompress::Sync,
            )
            .map_err(|error| InflateError::Corrupt(error.to_string()))?;
        output.filled = since(before.1, context.total_out());
        // If the buffer has room left, the decompressor has no more output.
        if status == Status::StreamEnd || !output.free().is_empty() {
            room.learn(input.len(), output.filled);
            return Ok((room.keep(output), status));
        }
        room.grow(&mut output)?;
    }
}

fn decompress(
    context: &mut DCtx<'_>,
    input: &[u8],
    room: &mut Room,
) -> Result<Bytes, InflateError> {
    let mut output = room.expect(input.len());
    let mut input = InBuffer::around(input);
    loop {
        let mut buffer = OutBuffer::around(output.free());
        context
            .decompress_stream(&mut buffer, &mut input)
            .map_err(|code| InflateError::Corrupt(zstd_safe::get_error_name(code).into()))?;
        output.filled += buffer.pos();

        if output.free().is_empty() {
            room.grow(&mut output)?;
        } else if input.pos() == input.src.len() {
            room.learn(input.src.len(), output.filled);
            return Ok(room.keep(output));
        }
    }
}

/// The buffer into which a payload is decompressed.
struct Output {
    memory: Memory,
    filled: usize,
}

enum Memory {
    Heap(Vec<u8>),
    Pages(Pages),
}

impl Output {
    /// Creates a buffer in its own pages, or on the heap if there are no pages left.
    fn in_pages(length: usize) -> Self {
        let pages = Pages::new(length).map(Memory::Pages);
        Self {
            memory: pages.unwrap_or_else(|| Memory::Heap(vec![0; length])),
            filled: 0,
        }
    }

    fn all(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(bytes) => bytes,
            Memory::Pages(pages) => pages.all(),
        }
    }

    fn free(&mut self) -> &mut [u8] {
        let filled = self.filled;
        &mut self.all()[filled..]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.free()[..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    fn into_payload(self) -> Bytes {
        let all = match self.memory {
            Memory::Heap(bytes) => bytes.into(),
            Memory::Pages(pages) => Bytes::from_owner(pages),
        };
        all.slice(..self.filled)
    }
}

impl Room {
    /// Returns a buffer with room for the payload that a message of this length is expected to
    /// have.
    fn expect(&mut self, compressed: usize) -> Output {
        let room = compressed
            .saturating_mul(self.ratio)
            .max(SMALLEST_BUFFER)
            .min(self.max.max(1));
        if room > LARGEST_SPARE {
            return Output::in_pages(room);
        }

        let mut spare = mem::take(&mut self.spare);
        if spare.len() < room {
            spare.resize(room, 0);
        }
        Output {
            memory: Memory::Heap(spare),
            filled: 0,
        }
    }

    /// Returns the decompressed payload. Copies a short one, so that it holds no more memory than
    /// it needs.
    fn keep(&mut self, mut output: Output) -> Bytes {
        let length = output.filled;
        if length >= OWN_PAGES && matches!(output.memory, Memory::Pages(_)) {
            return output.into_payload();
        }
        let payload = self.copy(&output.all()[..length]);
        if let Memory::Heap(spare) = output.memory
            && spare.len() <= LARGEST_SPARE
        {
            self.spare = spare;
        }
        payload
    }

    /// Copies a payload into its own memory, or into a block with others.
    fn copy(&mut self, payload: &[u8]) -> Bytes {
        if payload.len() >= OWN_PAGES {
            let mut output = Output::in_pages(payload.len());
            output.push(payload);
            return output.into_payload();
        }

        let is_shareable = SHARED.contains(&payload.len());
        if !is_shareable || self.shareable < ALONE {
            self.shareable += u32::from(is_shareable);
            return Bytes::copy_from_slice(payload);
        }

        if !self.block.try_reclaim(payload.len()) {
            self.block = BytesMut::with_capacity(BLOCK);
        }
        self.block.extend_from_slice(payload);
        self.block.split().freeze()
    }

    /// Doubles a full buffer, up to the limit. Fails if it has reached the limit.
    fn grow(&self, output: &mut Output) -> Result<(), InflateError> {
        let length = output.filled;
        if length >= self.max {
            return Err(InflateError::TooLarge(self.max));
        }
        let more = length.min(self.max - length).max(1);
        match &mut output.memory {
            Memory::Heap(bytes) if length + more <= LARGEST_SPARE => bytes.resize(length + more, 0),
            _ => {
                let mut larger = Output::in_pages(length + more);
                larger.push(output.all());
                *output = larger;
            }
        }
        Ok(())
    }

    /// Remembers the compression ratio of a message.
    fn learn(&mut self, compressed: usize, inflated: usize) {
        if compressed >= TELLING {
            self.ratio = (inflated / compressed + 1).clamp(*RATIOS.start(), *RATIOS.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, FlushCompress};
    use zstd_safe::zstd_sys::ZSTD_EndDirective;
    use zstd_safe::{CCtx, CParameter};

    use super::*;

    const MAX: usize = 64 << 20;

    fn zlib(context: &mut Compress, payload: &[u8], flush: FlushCompress) -> Vec<u8> {
        let mut output = Vec::with_capacity(payload.len() + 1024);
        context.compress_vec(payload, &mut output, flush).unwrap();
        output
    }

    fn zstd(context: &mut CCtx<'_>, payload: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(payload.len() + 1024);
        let mut input = InBuffer::around(payload);
        let mut buffer = OutBuffer::around(&mut output);
        let left = context
            .compress_stream2(&mut buffer, &mut input, ZSTD_EndDirective::ZSTD_e_flush)
            .unwrap();
        assert_eq!(left, 0);
        output
    }

    fn zstd_context() -> CCtx<'static> {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::WindowLog(18)).unwrap();
        context
    }

    /// Text that compresses only a little.
    fn noise(length: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(7);
        (0..length).map(|_| rng.alphanumeric() as u8).collect()
    }

    #[test]
    fn zlib_payloads_may_come_in_parts_and_share_a_context() {
        let mut context = Compress::new(flate2::Compression::default(), true);
        let mut inflater = Inflater::new(Compression::ZlibStream, MAX);
        for payload in [noise(100), noise(200_000), noise(17 << 20), b"{}".to_vec()] {
            let message = zlib(&mut context, &payload, FlushCompress::Sync);
            let (head, tail) = message.split_at(message.len() / 2);
            assert_eq!(inflater.binary(head).unwrap(), None);
            assert!(inflater.binary(tail).unwrap().unwrap() == payload);
        }
        let message = zlib(&mut context, b"whole", FlushCompress::Sync);
        assert_eq!(inflater.binary(&message).unwrap().unwrap(), &b"whole"[..]);
    }

    #[test]
    fn zstd_payloads_share_one_endless_frame() {
        let mut context = zstd_context();
        let mut inflater = Inflater::new(Compression::ZstdStream, MAX);
        for payload in [
            noise(100),
            noise(65_536),
            noise(65_537),
            noise(17 << 20),
            vec![b'a'; 1 << 20],
            b"{}".to_vec(),
        ] {
            let message = zstd(&mut context, &payload);
            assert!(inflater.binary(&message).unwrap().unwrap() == payload);
        }
    }

    #[test]
    fn whole_zlib_payloads_stand_beside_plain_ones() {
        let mut inflater = Inflater::new(Compression::Payload, MAX);
        for _ in 0..2 {
            let mut context = Compress::new(flate2::Compression::default(), true);
            let message = zlib(&mut context, b"{\"op\":10}", FlushCompress::Finish);
            assert_eq!(
                inflater.binary(&message).unwrap().unwrap(),
                &b"{\"op\":10}"[..]
            );
            assert!(matches!(
                inflater.binary(&message[..message.len() - 3]),
                Err(InflateError::Corrupt(_))
            ));
        }
        assert_eq!(inflater.text(b"{}"), &b"{}"[..]);
    }

    #[test]
    fn payloads_that_share_a_block_stay_as_they_are() {
        let mut inflater = Inflater::new(Compression::None, MAX);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut kept = Vec::new();
        for n in 0..5000_usize {
            let text = noise(rng.usize(1..5000));
            let payload = inflater.text(&text);
            // Many are dropped at once, so that blocks are reused; some stay for long.
            if n.is_multiple_of(7) {
                kept.push((text, payload));
            }
            if n.is_multiple_of(50) {
                kept.drain(..kept.len() / 2);
                inflater.shrink();
            }
            assert!(kept.iter().all(|(text, payload)| text == payload));
        }
    }

    #[test]
    fn large_payloads_stay_as_they_are_while_others_get_the_pages_of_those_before() {
        let payload = |n: usize| {
            let text = format!("{n} and ");
            text.repeat(OWN_PAGES / 4 + n * 1000).into_bytes()
        };

        let mut compressor = Compress::new(flate2::Compression::fast(), true);
        let mut plain = Inflater::new(Compression::None, MAX);
        let mut zlib_stream = Inflater::new(Compression::ZlibStream, MAX);
        let mut held = Vec::new();
        for n in 0..40 {
            let message = zlib(&mut compressor, &payload(n), FlushCompress::Sync);
            let inflated = zlib_stream.binary(&message).unwrap().unwrap();
            held.extend([(n, plain.text(&payload(n))), (n, inflated)]);
            if n % 3 == 0 {
                held.drain(..held.len() / 2);
            }
            assert!(held.iter().all(|(n, bytes)| *bytes == payload(*n)));
        }
    }

    #[test]
    fn a_bomb_is_bounded() {
        let bomb = vec![b'a'; 4 << 20];
        let mut context = Compress::new(flate2::Compression::best(), true);
        let message = zlib(&mut context, &bomb, FlushCompress::Sync);
        let mut inflater = Inflater::new(Compression::ZlibStream, 1 << 20);
        assert!(matches!(
            inflater.binary(&message),
            Err(InflateError::TooLarge(_))
        ));
        let message = zstd(&mut zstd_context(), &bomb);
        assert!(message.len() < 1000);
        let mut inflater = Inflater::new(Compression::ZstdStream, 1 << 20);
        assert!(matches!(
            inflater.binary(&message),
            Err(InflateError::TooLarge(_))
        ));
        let mut exact = Inflater::new(Compression::ZstdStream, bomb.len() + 1);
        assert_eq!(exact.binary(&message).unwrap().unwrap().len(), bomb.len());
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        let damaged = [0xff, 0xfe, 0x12, 0x00, 0x00, 0xff, 0xff];
        for compression in [
            Compression::Payload,
            Compression::ZlibStream,
            Compression::ZstdStream,
        ] {
            let mut inflater = Inflater::new(compression, MAX);
            assert!(
                matches!(inflater.binary(&damaged), Err(InflateError::Corrupt(_))),
                "{compression:?}"
            );
        }
    }

    #[test]
    fn text_is_read_as_it_is_and_binary_only_where_it_was_asked_for() {
        assert!(matches!(
            Inflater::new(Compression::None, MAX).binary(b"{}"),
            Err(InflateError::NotCompressed)
        ));
        for compression in [Compression::ZlibStream, Compression::ZstdStream] {
            assert_eq!(Inflater::new(compression, MAX).text(b"{}"), &b"{}"[..]);
        }
    }
}
