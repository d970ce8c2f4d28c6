//! Memory for what layers hand to each other: tens of megabytes, made and let go many times a step. Fresh from the system it
//! would come in pages of 4 KiB, each cleared and handed out by itself, which costs up to a tenth of the time. So large blocks
//! ask for large pages, and the last ones let go are kept for the next that are wanted: as long as they and what is in use
//! together stay about at the most that was in use at once, so that keeping raises no peak. What is in use is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes from which on a block is large.
const LARGE: usize = 1 << 20;
/// Bytes and blocks that are kept at most.
const MOST_KEPT: usize = 512 << 20;
const MOST_BLOCKS: usize = 32;
/// By how much kept blocks may raise the peak: a share of it, and bytes besides. Without any, a block that is let go just
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

/// A block that nobody uses: where it is and what it was made as.
#[derive(Clone, Copy)]
struct Block {
    at: usize,
    layout: Layout,
}

/// Kept blocks, the oldest first.
struct Kept {
    blocks: [Option<Block>; MOST_BLOCKS],
    bytes: usize,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept { blocks: [None; MOST_BLOCKS], bytes: 0 });

impl Kept {
    /// Takes block `i` out; the later ones move up.
    fn take(&mut self, i: usize) -> Option<Block> {
        let block = self.blocks[i].take()?;
        self.blocks[i..].rotate_left(1);
        self.bytes -= block.layout.size();
        Some(block)
    }

    fn find(&mut self, layout: Layout) -> Option<Block> {
        let i = self.blocks.iter().position(|b| b.is_some_and(|b| b.layout == layout))?;
        self.take(i)
    }

    fn put(&mut self, block: Block) {
        if let Some(free) = self.blocks.iter_mut().find(|b| b.is_none()) {
            *free = Some(block);
            self.bytes += block.layout.size();
        }
    }
}

/// Bytes that a block of this size really takes.
pub fn taken(bytes: u64) -> u64 {
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    Layout::from_size_align(size, 1).ok().and_then(large).map_or(bytes, |layout| layout.size() as u64)
}

/// What a large block is made as: sizes in steps of an eighth, so that nearly equal ones serve for each other.
fn large(layout: Layout) -> Option<Layout> {
    if layout.size() < LARGE {
        return None;
    }
    let step = 1usize << (layout.size().ilog2() - 3);
    // pages begin at multiples of this at least; nobody asks for more
    Layout::from_size_align(layout.size().checked_next_multiple_of(step)?, layout.align().max(4096)).ok()
}

/// A fresh large block: pages of its own, which come back to the system whole; large ones, where it has them.
#[cfg(unix)]
fn fresh(layout: Layout) -> *mut u8 {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    // SAFETY: new pages, at a place that the system chooses.
    let pages = unsafe {
        mmap_anonymous(std::ptr::null_mut(), layout.size(), ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    };
    let Ok(at) = pages else { return std::ptr::null_mut() };
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};
        // SAFETY: these pages are ours, and the advice changes nothing in them. It may be refused.
        let _ = unsafe { madvise(at, layout.size(), Advice::LinuxHugepage) };
    }
    at.cast()
}

/// Lets a block go for good.
#[cfg(unix)]
fn free(block: Option<Block>) {
    if let Some(Block { at, layout }) = block {
        // SAFETY: the block was made by `fresh` with this layout and is in nobody's hands.
        let _ = unsafe { rustix::mm::munmap(at as *mut _, layout.size()) };
    }
}

#[cfg(not(unix))]
fn fresh(layout: Layout) -> *mut u8 {
    // SAFETY: the size is not zero.
    unsafe { System.alloc(layout) }
}

#[cfg(not(unix))]
fn free(block: Option<Block>) {
    if let Some(Block { at, layout }) = block {
        // SAFETY: the block was made by `fresh` with this layout and is in nobody's hands.
        unsafe { System.dealloc(at as *mut u8, layout) }
    }
}

/// A large block: a kept one of its size or a fresh one, with anything in it. For a fresh one the oldest kept blocks make room.
fn get(layout: Layout) -> *mut u8 {
    let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
    let peak = PEAK.fetch_max(live, Ordering::Relaxed).max(live);
    let most = peak + peak / SLACK_SHARE + SLACK_BYTES;
    loop {
        let Ok(mut kept) = KEPT.lock() else { return fresh(layout) };
        if let Some(block) = kept.find(layout) {
            return block.at as *mut u8;
        }
        if live + kept.bytes <= most {
            return fresh(layout);
        }
        let oldest = kept.take(0);
        drop(kept);
        if oldest.is_none() {
            return fresh(layout);
        }
        free(oldest);
    }
}

// SAFETY: memory comes from the system, and a block is either in somebody's hands or kept. A large block is always
// made, kept and let go with the layout that `large` gives for what was asked for.
unsafe impl GlobalAlloc for LargeBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match large(layout) {
            Some(layout) => get(layout),
            // SAFETY: the caller's promises are the system's.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(whole) = large(layout) else {
            // SAFETY: as above.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let at = get(whole);
        if !at.is_null() {
            // SAFETY: the block is at least so large.
            unsafe { at.write_bytes(0, layout.size()) }
        }
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let Some(layout) = large(layout) else {
            // SAFETY: as above.
            return unsafe { System.dealloc(at, layout) };
        };
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        let block = Block { at: at as usize, layout };
        if layout.size() > MOST_KEPT {
            return free(Some(block));
        }
        loop {
            let Ok(mut kept) = KEPT.lock() else { return free(Some(block)) };
            let full = kept.bytes + layout.size() > MOST_KEPT || kept.blocks.iter().all(Option::is_some);
            if !full {
                return kept.put(block);
            }
            let oldest = kept.take(0);
            drop(kept);
            free(oldest);
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
        let oldest = kept.take(0);
        drop(kept);
        if oldest.is_none() {
            return;
        }
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
