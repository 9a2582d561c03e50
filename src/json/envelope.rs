//! Reads the fields around the data of a payload.
//!
//! Discord writes `t`, `s` and `op` before `d`. For a payload in this order only the first bytes
//! are read, however long `d` is. `serde_json` reads any other payload.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::fields;

/// The four fields of every payload.
///
/// Source: [Discord, Gateway event payload
/// structure](https://docs.discord.com/developers/events/gateway-events#payload-structure).
#[derive(Deserialize)]
pub(crate) struct Envelope<'a, Name> {
    pub(crate) op: u64,
    pub(crate) s: Option<u64>,
    pub(crate) t: Option<Name>,
    #[serde(borrow)]
    pub(crate) d: Option<&'a RawValue>,
}

impl<Name> Envelope<'_, Name> {
    /// The range of `d` in the bytes from which this was read.
    pub(crate) fn data(&self, bytes: &[u8]) -> Range<usize> {
        self.d.map_or(0..0, |d| {
            let start = d.get().as_ptr().addr() - bytes.as_ptr().addr();
            start..start + d.get().len()
        })
    }
}

/// An event whose fields are in the order in which Discord writes them.
pub(crate) struct UsualEvent<'a> {
    /// The raw name: escapes are not decoded.
    pub(crate) name: &'a [u8],
    pub(crate) sequence: u64,
    /// The range of `d`, on the assumption that it extends to the last brace.
    pub(crate) data: Range<usize>,
}

/// Reads `{"t":"NAME","s":1,"op":0,"d":{...}}`. `None` if the payload looks different.
pub(crate) fn usual_event(bytes: &[u8]) -> Option<UsualEvent<'_>> {
    let rest = bytes.strip_prefix(br#"{"t":""#)?;
    let (name, rest) = rest.split_at(rest.iter().position(|byte| *byte == b'"')?);
    let (sequence, rest) = number(rest.strip_prefix(br#"","s":"#)?)?;

    let data = rest.strip_prefix(br#","op":0,"d":"#)?.strip_suffix(b"}")?;
    if !data.starts_with(b"{") || !data.ends_with(b"}") {
        return None;
    }
    let end = bytes.len() - 1;
    Some(UsualEvent {
        name,
        sequence,
        data: end - data.len()..end,
    })
}

/// Reads a number at the beginning, without leading zeros as in JSON. Returns it and the rest.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (mut number, mut at) = (0_u64, 0);
    while let Some(digit @ b'0'..=b'9') = bytes.get(at) {
        number = number
            .checked_mul(10)?
            .checked_add(u64::from(digit - b'0'))?;
        at += 1;
    }
    let is_number = at == 1 || (at > 1 && bytes[0] != b'0');
    is_number.then_some((number, &bytes[at..]))
}

/// The bytes of a payload, and the range of `d` in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    bytes: Bytes,
    /// Empty if there is no `d`.
    data: Range<usize>,
}

impl Body {
    pub(crate) fn new(bytes: Bytes, data: Range<usize>) -> Self {
        Self { bytes, data }
    }

    /// The JSON of `d`; `null` if there is none.
    pub(crate) fn data(&self) -> &[u8] {
        self.part(self.data.clone())
    }

    /// Parses `d` as a `T`. Fields that `T` does not name are skipped. Errors are those of
    /// [`read`](Self::read).
    pub(crate) fn parse<'a, T: Deserialize<'a>>(
        &'a self,
    ) -> Result<T, (&'a [u8], serde_json::Error)> {
        fields::read(self.data()).map_or_else(|| self.read(|data| serde_json::from_slice(data)), Ok)
    }

    /// Reads `d`. If that fails, finds `d` again with [`exact_data`](Self::exact_data) and reads
    /// that. An error contains the JSON that could not be read.
    pub(crate) fn read<'a, T>(
        &'a self,
        read: impl Fn(&'a [u8]) -> serde_json::Result<T>,
    ) -> Result<T, (&'a [u8], serde_json::Error)> {
        read(self.data()).or_else(|_| {
            let exact = self.exact_data();
            read(exact).map_err(|error| (exact, error))
        })
    }

    /// Finds `d` by parsing the whole payload, without the assumption of [`data`](Self::data) that
    /// `d` extends to the last brace.
    pub(crate) fn exact_data(&self) -> &[u8] {
        let envelope = serde_json::from_slice::<Envelope<'_, IgnoredAny>>(&self.bytes);
        envelope.map_or(self.data(), |envelope| {
            self.part(envelope.data(&self.bytes))
        })
    }

    /// The size of the whole payload in bytes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    fn part(&self, range: Range<usize>) -> &[u8] {
        if range.is_empty() {
            b"null"
        } else {
            &self.bytes[range]
        }
    }
}
