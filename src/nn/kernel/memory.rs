//! Memory for what layers hand to each other: tens of megabytes, made and let go many times a step. Fresh from the system it
//! would come in pages of 4 KiB, each cleared and handed out by itself, which costs up to a tenth of the time. So large blocks
//! ask for large pages, and what was let go is kept for what is wanted next: as long as it and what is in use together stay
//! about at the most that was in use at once, so that keeping raises no peak. Neighbours that are kept become one, and a part
//! of them serves where less is wanted, so blocks of one size become blocks of another. What is in use is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes from which on a block is large.
const LARGE: usize = 1 << 20;
/// Bytes and ranges that are kept at most.
const MOST_KEPT: usize = 512 << 20;
const MOST_RANGES: usize = 32;
/// Whether parts of what the system gave can be handed out and given back by themselves.
const PARTS: bool = cfg!(unix);
/// Bytes of a large page: what is given back in part is cut here.
const PAGE: usize = 2 << 20;
/// By how much what is kept may raise the peak: a share of it, and bytes besides. Without any, a block that is let go just
/// before the peak would be given back and cleared anew each time round.
pub const SLACK_SHARE: usize = 16;
pub const SLACK_BYTES: usize = 32 << 20;

/// Bytes of large blocks in use, and the most of them since [`release`].
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The most bytes of large blocks that were in use at once since [`release`] was last called.
pub fn peak() -> usize {
    PEAK.load(Ordering::Relaxed)
}

/// Bytes of large blocks in use.
pub fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

#[global_allocator]
static MEMORY: LargeBlocks = LargeBlocks;

/// The system's allocator, but for large blocks.
struct LargeBlocks;

/// Bytes that nobody uses.
#[derive(Clone, Copy)]
struct Range {
    at: usize,
    size: usize,
}

impl Range {
    fn end(self) -> usize {
        self.at + self.size
    }
}

/// What is kept, the oldest first.
struct Kept {
    ranges: [Range; MOST_RANGES],
    count: usize,
    bytes: usize,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept::NOTHING);

impl Kept {
    const NOTHING: Kept = Kept { ranges: [Range { at: 0, size: 0 }; MOST_RANGES], count: 0, bytes: 0 };

    /// Takes range `i` out; the later ones move up.
    fn take(&mut self, i: usize) -> Range {
        let range = self.ranges[i];
        self.ranges[i..self.count].rotate_left(1);
        self.count -= 1;
        self.bytes -= range.size;
        range
    }

    /// Takes so many bytes off the end of range `i`.
    fn cut(&mut self, i: usize, size: usize) -> Range {
        let range = &mut self.ranges[i];
        if range.size == size {
            return self.take(i);
        }
        range.size -= size;
        self.bytes -= size;
        Range { at: range.end(), size }
    }

    /// So many bytes of the range that they leave least of.
    fn find(&mut self, size: usize) -> Option<Range> {
        let fits = |range: &Range| if PARTS { range.size >= size } else { range.size == size };
        let ranges = self.ranges[..self.count].iter().enumerate();
        let (i, _) = ranges.filter(|(_, range)| fits(range)).min_by_key(|(_, range)| range.size)?;
        Some(self.cut(i, size))
    }

    /// At least so many bytes of the oldest range, or all of it.
    fn oldest(&mut self, size: usize) -> Option<Range> {
        let range = self.ranges[..self.count].first()?;
        let rest = range.end().saturating_sub(size) / PAGE * PAGE; // where a large page begins
        Some(if PARTS && rest > range.at { self.cut(0, range.end() - rest) } else { self.take(0) })
    }

    /// Keeps a range, and whether there was room for one more.
    fn put(&mut self, mut range: Range) -> bool {
        while let Some(i) = self.ranges[..self.count].iter().position(|r| r.end() == range.at || range.end() == r.at)
            && PARTS
        {
            let next = self.take(i);
            range = Range { at: range.at.min(next.at), size: range.size + next.size };
        }
        if self.count == MOST_RANGES {
            return false;
        }
        self.ranges[self.count] = range;
        self.count += 1;
        self.bytes += range.size;
        true
    }
}

/// Bytes that a block of this size really takes.
pub fn taken(bytes: u64) -> u64 {
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    Layout::from_size_align(size, 1).ok().and_then(large).map_or(bytes, |size| size as u64)
}

/// The bytes that a large block is made of: sizes in steps of an eighth, so that nearly equal ones serve for each other.
fn large(layout: Layout) -> Option<usize> {
    if layout.size() < LARGE || layout.align() > ALIGN {
        return None;
    }
    let step = 1usize << (layout.size().ilog2() - 3);
    layout.size().checked_next_multiple_of(step)
}

/// Where large blocks begin: at multiples of this, the smallest page that there is.
const ALIGN: usize = 4096;

/// Fresh memory: pages of its own, which come back to the system whole; large ones, where it has them.
#[cfg(unix)]
fn fresh(size: usize) -> *mut u8 {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    // SAFETY: new pages, at a place that the system chooses.
    let pages =
        unsafe { mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    let Ok(at) = pages else { return std::ptr::null_mut() };
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};
        // SAFETY: these pages are ours, and the advice changes nothing in them. It may be refused.
        let _ = unsafe { madvise(at, size, Advice::LinuxHugepage) };
    }
    at.cast()
}

/// Lets memory go for good.
#[cfg(unix)]
fn free(range: Range) {
    // SAFETY: these pages were made by `fresh` and are in nobody's hands; they may be parts of what it made, or several.
    let _ = unsafe { rustix::mm::munmap(range.at as *mut _, range.size) };
}

#[cfg(not(unix))]
fn fresh(size: usize) -> *mut u8 {
    // SAFETY: the size is not zero and, having been rounded up from one of the caller's, no more than there can be.
    unsafe { System.alloc(Layout::from_size_align_unchecked(size, ALIGN)) }
}

#[cfg(not(unix))]
fn free(range: Range) {
    // SAFETY: the block was made by `fresh` of this size, whole, and is in nobody's hands.
    unsafe { System.dealloc(range.at as *mut u8, Layout::from_size_align_unchecked(range.size, ALIGN)) }
}

/// A large block, kept or fresh, with anything in it. For a fresh one the oldest of what is kept makes room.
fn get(size: usize) -> *mut u8 {
    let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
    let peak = PEAK.fetch_max(live, Ordering::Relaxed).max(live);
    let most = peak + peak / SLACK_SHARE + SLACK_BYTES;
    loop {
        let Ok(mut kept) = KEPT.lock() else { return fresh(size) };
        if let Some(range) = kept.find(size) {
            return range.at as *mut u8;
        }
        let over = (live + kept.bytes).saturating_sub(most);
        let oldest = if over > 0 { kept.oldest(over) } else { None };
        drop(kept);
        match oldest {
            Some(range) => free(range),
            None => return fresh(size),
        }
    }
}

// SAFETY: memory comes from the system, and a block is either in somebody's hands or kept. A large block is always
// made, kept and let go in the size that `large` gives for what was asked for.
unsafe impl GlobalAlloc for LargeBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match large(layout) {
            Some(size) => get(size),
            // SAFETY: the caller's promises are the system's.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(size) = large(layout) else {
            // SAFETY: as above.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let at = get(size);
        if !at.is_null() {
            // SAFETY: the block is at least so large.
            unsafe { at.write_bytes(0, layout.size()) }
        }
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let Some(size) = large(layout) else {
            // SAFETY: as above.
            return unsafe { System.dealloc(at, layout) };
        };
        LIVE.fetch_sub(size, Ordering::Relaxed);
        let range = Range { at: at as usize, size };
        loop {
            let Ok(mut kept) = KEPT.lock() else { return free(range) };
            let oldest = match (kept.bytes + size).saturating_sub(MOST_KEPT) {
                0 if kept.put(range) => return,
                0 => kept.oldest(usize::MAX),
                _ if size > MOST_KEPT => None,
                over => kept.oldest(over),
            };
            drop(kept);
            match oldest {
                Some(oldest) => free(oldest),
                None => return free(range),
            }
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else { return std::ptr::null_mut() };
        match (large(layout), large(wanted)) {
            // SAFETY: as above.
            (None, None) => unsafe { System.realloc(at, layout, size) },
            (old, new) if old == new => at,
            // SAFETY: both blocks have at least as many bytes as are copied, and are different ones.
            _ => unsafe {
                let to = self.alloc(wanted);
                if !to.is_null() {
                    at.copy_to_nonoverlapping(to, layout.size().min(size));
                    self.dealloc(at, layout);
                }
                to
            },
        }
    }
}

/// Lets all kept blocks go: what comes next wants other sizes. The peak begins anew.
pub fn release() {
    PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
    loop {
        let Ok(mut kept) = KEPT.lock() else { return };
        let Some(oldest) = kept.oldest(usize::MAX) else { return };
        drop(kept);
        free(oldest);
    }
}

/// A vector that `write` fills in whole: its memory is not cleared before.
///
/// # Safety
/// `write` writes every element.
pub unsafe fn filled<T: Copy>(count: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut all = Vec::with_capacity(count);
    write(&mut all.spare_capacity_mut()[..count]);
    // SAFETY: `write` has written them all, as promised.
    unsafe { all.set_len(count) };
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_are_their_own_and_zeroed_when_asked() {
        let mut held: Vec<Vec<u8>> = vec![];
        for round in 0..40usize {
            let size = LARGE + round % 7 * (LARGE / 3);
            let mut block = vec![0u8; size];
            assert!(block.iter().all(|&b| b == 0), "round {round}");
            block.fill(round as u8);
            held.push(block);
            if round % 3 == 2 {
                held.remove(round % held.len());
            }
        }
        assert!(held.iter().all(|block| block.iter().all(|&b| b == block[0])));
        let mut grown: Vec<u32> = vec![];
        (0..LARGE as u32).for_each(|i| grown.push(i));
        assert!(grown.iter().enumerate().all(|(i, &x)| i as u32 == x));
        drop((held, grown));
        release();
    }

    /// Blocks of all sizes taken and put back in any order: every byte is somewhere, and nowhere twice.
    #[test]
    #[cfg(unix)]
    fn parts_of_what_is_kept_are_handed_out_and_joined_again() {
        let all = Range { at: 7 * ALIGN, size: 300 * PAGE };
        let (mut kept, mut used) = (Kept::NOTHING, vec![]);
        assert!(kept.put(all));
        let mut seed = 1u32;
        let mut next = |most: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % most
        };
        for round in 0..10_000 {
            if next(2) == 0 && kept.count + 1 < MOST_RANGES {
                used.extend(kept.find((1 + next(40)) * PAGE / 2));
            } else if next(20) == 0 {
                used.extend(kept.oldest((1 + next(9)) * ALIGN)); // at least so much, or all of it
            } else if !used.is_empty() {
                assert!(kept.put(used.swap_remove(next(used.len()))), "round {round}");
            }
            let mut ranges = [&kept.ranges[..kept.count], &used].concat();
            ranges.sort_by_key(|range| range.at);
            assert!(ranges.iter().all(|range| range.size > 0), "round {round}");
            assert!(ranges.windows(2).all(|two| two[0].end() == two[1].at), "round {round}");
            assert_eq!((ranges[0].at, ranges[ranges.len() - 1].end()), (all.at, all.end()));
            assert_eq!(kept.bytes, kept.ranges[..kept.count].iter().map(|range| range.size).sum::<usize>());
        }
        used.into_iter().for_each(|range| assert!(kept.put(range)));
        assert_eq!((kept.count, kept.find(all.size).map(|range| range.at)), (1, Some(all.at)));
        assert_eq!((kept.count, kept.bytes), (0, 0));
    }

    #[test]
    fn filled_vectors_have_what_was_written() {
        // SAFETY: every element is written.
        let all = unsafe {
            filled::<u32>(1000, |all| {
                all.iter_mut().enumerate().for_each(|(i, x)| {
                    x.write(i as u32);
                })
            })
        };
        assert!(all.iter().enumerate().all(|(i, &x)| i as u32 == x));
    }
}
