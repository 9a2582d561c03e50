//! Memory for what is large and does not last, which goes back to the system.
//!
//! Freed in the middle of a heap, it would stay with the process: after a burst, that of every shard.
//! But pages that come from the system are slow when they are first used. So some are kept for the
//! next one who needs any, until a shard has had nothing to do for a while.

use std::mem;

use memmap2::MmapMut;
use parking_lot::Mutex;

/// Sizes are multiples of this, so that pages fit more than one payload.
const STEP: usize = 64 << 10;

/// How many bytes are kept, for all shards of the process.
const MAX_KEPT: usize = 4 << 20;

static KEPT: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());

/// Some bytes in pages of their own.
pub(super) struct Pages {
    /// Gone once this is dropped.
    pages: Option<MmapMut>,
    length: usize,
}

impl Pages {
    /// Pages of `length` bytes, whose content is whatever was last in them. `None` if the system has
    /// none left.
    pub(super) fn new(length: usize) -> Option<Self> {
        let new = || MmapMut::map_anon(length.checked_next_multiple_of(STEP)?).ok();
        let pages = take(length).or_else(new)?;
        Some(Self {
            pages: Some(pages),
            length,
        })
    }

    pub(super) fn all(&mut self) -> &mut [u8] {
        let pages = self.pages.as_deref_mut().unwrap_or_default();
        &mut pages[..self.length]
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        let pages = self.pages.as_deref().unwrap_or_default();
        &pages[..self.length]
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            keep(pages);
        }
    }
}

fn take(length: usize) -> Option<MmapMut> {
    let mut kept = KEPT.lock();
    let fits = |pages: &MmapMut| (length..=length.saturating_mul(2)).contains(&pages.len());
    let found = kept.iter().position(fits)?;
    Some(kept.swap_remove(found))
}

/// Keeps pages for the next payload if there is room, or gives them back.
fn keep(pages: MmapMut) {
    let mut kept = KEPT.lock();
    let bytes: usize = kept.iter().map(|pages| pages.len()).sum();
    if bytes + pages.len() <= MAX_KEPT {
        kept.push(pages);
    } else {
        // The system is not called under the lock.
        drop(kept);
    }
}

/// Gives back what is kept.
pub(super) fn give_back() {
    let kept = mem::take(&mut *KEPT.lock());
    drop(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_used_again_and_have_the_length_that_was_asked_for() {
        let lengths = [1, 40_000, STEP, STEP + 1, 10 * MAX_KEPT];
        for length in lengths.into_iter().chain(lengths) {
            let mut pages = Pages::new(length).unwrap();
            pages.all().fill(7);
            assert_eq!((pages.all().len(), pages.as_ref().len()), (length, length));
        }
        let kept: usize = KEPT.lock().iter().map(|pages| pages.len()).sum();
        assert!(kept <= MAX_KEPT, "{kept} bytes");
    }
}
