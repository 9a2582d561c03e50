//! Memory for large, short-lived data that goes back to the system when it is released.
//!
//! Memory that is freed in the middle of a heap stays with the process: after a burst, that of
//! every shard. Pages of the system do not, but they are slow when they are first used. So some are
//! kept for reuse until a shard has been idle for a while.

use std::mem;

use memmap2::MmapMut;
use parking_lot::Mutex;

/// Sizes are multiples of this, so that kept pages can be reused for payloads of other lengths.
const STEP: usize = 64 << 10;

/// The most bytes that are kept, for all shards of the process together.
const MAX_KEPT: usize = 4 << 20;

static KEPT: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());

/// A buffer in its own pages.
pub(super) struct Pages {
    /// `None` only while this is being dropped.
    pages: Option<MmapMut>,
    length: usize,
}

impl Pages {
    /// Takes kept pages, or new ones from the system, for `length` bytes. Kept pages still contain
    /// their last content. `None` if the system has no memory left.
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

/// Keeps pages for the next payload if there is room, or returns them to the system.
fn keep(pages: MmapMut) {
    let mut kept = KEPT.lock();
    let bytes: usize = kept.iter().map(|pages| pages.len()).sum();
    if bytes + pages.len() <= MAX_KEPT {
        kept.push(pages);
    } else {
        // Releases the lock before the system call that unmaps the pages.
        drop(kept);
    }
}

/// Returns all kept pages to the system.
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
