//! Finds where a JSON value ends, using only its quotes and brackets.

use std::iter;

use wide::u8x16;

/// The number of bytes that are examined at once. Each is represented by one bit of a `u64`.
const BLOCK: usize = 64;

/// The bit in which braces and square brackets differ.
const SHAPE: u8 = 0x20;

/// Returns the length of the value at the beginning, without a check of what is between its quotes
/// or brackets. `None` if it does not end.
pub(super) fn value(json: &[u8]) -> Option<usize> {
    match json.first()? {
        b'"' => text(json),
        b'{' | b'[' => nested(json),
        _ => json
            .iter()
            .position(|byte| !is_bare(*byte))
            .filter(|length| *length > 0),
    }
}

/// Whether a byte may be part of a number, `true`, `false` or `null`.
fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// Returns the length of the string at the beginning, including its quotes.
pub(super) fn text(json: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        if let Some(bytes) = json.get(at..)?.first_chunk() {
            let bytes = u8x16::new(*bytes);
            let is_found = bytes.cmp_eq(u8x16::splat(b'"')) | bytes.cmp_eq(u8x16::splat(b'\\'));
            // Sixteen if neither is among them.
            at += (is_found.move_mask() | 1 << 16).trailing_zeros() as usize;
        }
        match json.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Returns the length of the object or array at the beginning.
fn nested(json: &[u8]) -> Option<usize> {
    let (mut depth, mut texts) = (0, Texts::default());
    for at in (0..json.len()).step_by(BLOCK) {
        let block = Block::new(&json[at..]);
        let outside = !texts.inside(&block);

        let (opening, closing) = (
            block.find(b'{', SHAPE) & outside,
            block.find(b'}', SHAPE) & outside,
        );
        if opening | closing == 0 {
            continue;
        }

        if depth <= closing.count_ones()
            && let Some(end) = end(depth, opening, closing)
        {
            return Some(at + end);
        }
        depth = depth + opening.count_ones() - closing.count_ones();
    }
    None
}

/// Returns the position after the bracket in a block at which all brackets are closed: the `depth`
/// that were open before the block, and those that open in it. `None` if some stay open.
fn end(depth: u32, opening: u64, closing: u64) -> Option<usize> {
    let ones = iter::successors(Some(closing), |rest| Some(rest & rest.wrapping_sub(1)))
        .take_while(|rest| *rest != 0);
    let mut ends = ones.map(u64::trailing_zeros).zip(1..);
    let (at, _) =
        ends.find(|(at, closed)| depth + (opening & ((1 << at) - 1)).count_ones() == *closed)?;
    Some(at as usize + 1)
}

/// Tracks which bytes are inside strings, from one block to the next.
#[derive(Default)]
struct Texts {
    /// All ones if the previous block ended inside a string; otherwise zero.
    goes_on: u64,
    /// Whether the last byte of the previous block was a backslash that escapes the next byte.
    escapes: bool,
}

impl Texts {
    fn inside(&mut self, block: &Block) -> u64 {
        let quotes = block.find(b'"', 0) & !self.escaped(block.find(b'\\', 0));
        // Each quote toggles all following bits, so this is a prefix XOR.
        let mut inside = [1, 2, 4, 8, 16, 32]
            .into_iter()
            .fold(quotes, |bits, shift| bits ^ (bits << shift));
        inside ^= self.goes_on;
        self.goes_on = 0_u64.wrapping_sub(inside >> 63);
        inside
    }

    /// The bytes that a backslash escapes. A backslash that is escaped itself escapes nothing.
    fn escaped(&mut self, backslashes: u64) -> u64 {
        let mut escaped = u64::from(self.escapes);
        self.escapes = false;
        let mut rest = backslashes & !escaped;
        while rest != 0 {
            let backslash = rest & rest.wrapping_neg();
            escaped |= backslash << 1;
            self.escapes = backslash == 1 << 63;
            rest &= !(backslash | backslash << 1);
        }
        escaped
    }
}

struct Block([u8x16; 4]);

impl Block {
    /// Takes the first [`BLOCK`] bytes, padded with zeros.
    fn new(bytes: &[u8]) -> Self {
        let mut padded = [0; BLOCK];
        let block = bytes.first_chunk().unwrap_or_else(|| {
            padded[..bytes.len()].copy_from_slice(bytes);
            &padded
        });
        let (parts, _) = block.as_chunks();
        Self([0, 1, 2, 3].map(|part| u8x16::new(parts[part])))
    }

    /// The positions of a byte, regardless of its `blurred` bits (which `byte` must have set).
    fn find(&self, byte: u8, blurred: u8) -> u64 {
        let (byte, blurred) = (u8x16::splat(byte), u8x16::splat(blurred));
        let [a, b, c, d] = self
            .0
            .map(|part| u64::from((part | blurred).cmp_eq(byte).move_mask().cast_unsigned()));
        a | b << 16 | c << 32 | d << 48
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_end_where_they_do() {
        for json in [
            r#""""#,
            r#""a\\""#,
            r#""\"]}""#,
            "[]",
            "{}",
            r#"{"a":[{},"}]",{"b":"\\\"}"}]}"#,
            &format!(r#"["{}\"]",[]]"#, "x".repeat(61)),
            &format!(r#"["{}\\",[]]"#, "x".repeat(61)),
            &format!("{}{}", "[".repeat(200), "]".repeat(200)),
        ] {
            assert_eq!(
                value(format!("{json},1]").as_bytes()),
                Some(json.len()),
                "{json}"
            );
            assert_eq!(value(json.as_bytes()), Some(json.len()), "{json}");
            assert_eq!(value(&json.as_bytes()[..json.len() - 1]), None, "{json}");
        }
        assert_eq!(value(b"-1.5e3,"), Some(6));
        assert_eq!(value(b"true}"), Some(4));
        assert_eq!(
            (value(b""), value(b"1"), value(b","), value(b"\"\\")),
            (None, None, None, None)
        );
    }

    /// Does the same as [`nested`], byte by byte.
    fn plain(json: &[u8]) -> Option<usize> {
        let (mut depth, mut at) = (0, 0);
        loop {
            match json.get(at)? {
                b'"' => at += text(&json[at..])? - 1,
                // Valid JSON has no backslash outside strings; this matches what `nested` does.
                b'\\' if matches!(json.get(at + 1), Some(b'"' | b'\\')) => at += 1,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 {
                return Some(at);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn many_bytes_at_once_are_what_single_ones_are(rest in r#"([\[{"\\]|[\]}x"]|x{1,50}){0,100}"#) {
            let json = format!("[{rest}");
            prop_assert_eq!(nested(json.as_bytes()), plain(json.as_bytes()), "{}", json);
        }
    }
}
