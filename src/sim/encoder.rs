//! Encodes payloads as websocket messages, with Discord's compressions.

use flate2::{Compress, FlushCompress};
use tungstenite::Message;
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

/// The window of Discord's zstd streams: 256 KiB.
const ZSTD_WINDOW_LOG: u32 = 18;

/// Payloads above this number of bytes are compressed if the client requested payload compression.
const PAYLOAD_THRESHOLD: usize = 256;

/// The compressor of one connection.
pub(super) enum Encoder {
    None,
    Payload,
    ZlibStream(Box<Compress>),
    ZstdStream(CCtx<'static>),
}

impl Encoder {
    /// The encoder for the `compress` parameter of the URL; `None` if the value is unknown.
    pub(super) fn new(compress: Option<&str>) -> Option<Self> {
        match compress {
            None => Some(Self::None),
            Some("zlib-stream") => Some(Self::ZlibStream(Box::new(Compress::new(
                flate2::Compression::default(),
                true,
            )))),
            Some("zstd-stream") => {
                let mut context = CCtx::create();
                context
                    .set_parameter(CParameter::WindowLog(ZSTD_WINDOW_LOG))
                    .ok()?;
                Some(Self::ZstdStream(context))
            }
            Some(_) => None,
        }
    }

    pub(super) fn encode(&mut self, payload: &str) -> Message {
        match self {
            Self::Payload if payload.len() > PAYLOAD_THRESHOLD => {
                let mut context = Compress::new(flate2::Compression::default(), true);
                Message::binary(deflate(
                    &mut context,
                    payload.as_bytes(),
                    FlushCompress::Finish,
                ))
            }
            Self::None | Self::Payload => Message::text(payload),
            Self::ZlibStream(context) => {
                Message::binary(deflate(context, payload.as_bytes(), FlushCompress::Sync))
            }
            Self::ZstdStream(context) => Message::binary(zstd(context, payload.as_bytes())),
        }
    }
}

fn deflate(context: &mut Compress, payload: &[u8], flush: FlushCompress) -> Vec<u8> {
    let mut output = Vec::with_capacity(payload.len() + 64);
    let before = context.total_in();
    loop {
        let taken = usize::try_from(context.total_in() - before).unwrap_or(usize::MAX);
        // It cannot fail for any payload: the output grows as needed.
        let _ = context.compress_vec(payload.get(taken..).unwrap_or_default(), &mut output, flush);
        if output.len() < output.capacity() {
            return output;
        }
        output.reserve(output.len());
    }
}

fn zstd(context: &mut CCtx<'_>, payload: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(payload.len() + 64);
    let mut input = InBuffer::around(payload);
    loop {
        let filled = output.len();
        let mut buffer = OutBuffer::around_pos(&mut output, filled);
        match context.compress_stream2(&mut buffer, &mut input, ZSTD_EndDirective::ZSTD_e_flush) {
            Ok(0) | Err(_) => return output,
            Ok(more) => output.reserve(more),
        }
    }
}
