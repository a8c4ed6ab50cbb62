//! The allocator, and what a process that has come to rest gives back to the machine.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;

/// The program's allocator: mimalloc.
///
/// Its own crate for Rust asks for an alignment at every call, which sends blocks of more than 1 KiB, and some smaller,
/// through a path of several hundred instructions. Words are aligned without asking.
#[derive(Debug)]
pub struct Allocator;

/// What every block of mimalloc is aligned to.
const ALIGNED: usize = size_of::<usize>();

#[allow(
    unsafe_code,
    reason = "an allocator is; 5 % of the instructions of a request, measured"
)]
// SAFETY: mimalloc's blocks are exclusive, at least as long as asked for and aligned to a word, or to what is asked for;
// a failure is a null pointer. Its `free` and `realloc` take any block of its own, however it was made.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        unsafe {
            if layout.align() <= ALIGNED {
                libmimalloc_sys::mi_malloc(layout.size()).cast()
            } else {
                libmimalloc_sys::mi_malloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        unsafe {
            if layout.align() <= ALIGNED {
                libmimalloc_sys::mi_zalloc(layout.size()).cast()
            } else {
                libmimalloc_sys::mi_zalloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: see above; the caller gives back what it was given.
        unsafe { libmimalloc_sys::mi_free(block.cast::<c_void>()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see above; the caller has the block of us, and asks for the same alignment.
        unsafe {
            let block = block.cast::<c_void>();
            if layout.align() <= ALIGNED {
                libmimalloc_sys::mi_realloc(block, size).cast()
            } else {
                libmimalloc_sys::mi_realloc_aligned(block, size, layout.align()).cast()
            }
        }
    }
}

/// Gives freed memory of the calling thread, and what is free in the process at large, back to the machine.
///
/// The allocator keeps what is freed for a second, and gives it back when more is allocated or freed: a process that
/// falls idle would keep it for good.
#[allow(
    unsafe_code,
    reason = "a foreign function without preconditions; the crate has no safe call"
)]
pub fn collect() {
    // SAFETY: `mi_collect` may be called at any time from any thread. Where another allocator is the global one
    // (tests), it finds nothing to do.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Unmaps the pages of the program's own code and constants; those that are needed again come back, one small fault
/// for each 64 KiB, from the page cache.
///
/// Meant for the end of the start: most of what reads flags and text, and builds everything once, does not run again.
#[cfg(target_os = "linux")]
#[allow(
    unsafe_code,
    reason = "6 MiB of resident memory, measured; there is no safe wrapper of `madvise`"
)]
pub fn forget_startup_code() {
    unsafe extern "C" fn visit(
        info: *mut libc::dl_phdr_info,
        _: libc::size_t,
        _: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the loader hands out a valid description of an object that stays loaded for the call.
        let (base, headers) = unsafe {
            let info = &*info;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
            (info.dlpi_addr, headers)
        };
        // SAFETY: a query.
        let page = match unsafe { libc::sysconf(libc::_SC_PAGESIZE) } {
            size if size > 0 => size as u64,
            _ => return 1,
        };
        for header in headers {
            // Only what is never written to: such a page is read from the file again as it was. Relocated constants
            // are in a writable segment, even where they are protected later.
            if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
                continue;
            }
            let start = (base + header.p_vaddr).next_multiple_of(page);
            let end = (base + header.p_vaddr + header.p_filesz) / page * page;
            if start < end {
                // SAFETY: the range is within a private, unmodified mapping of the program's file, whose pages the
                // kernel reads again at the next access. A refusal changes nothing.
                unsafe {
                    libc::madvise(
                        start as *mut libc::c_void,
                        (end - start) as usize,
                        libc::MADV_DONTNEED,
                    );
                }
            }
        }
        // The first object is the program; no other is looked at.
        1
    }
    // SAFETY: the callback keeps to what it is given.
    unsafe {
        libc::dl_iterate_phdr(Some(visit), std::ptr::null_mut());
    }
}

/// Nothing, on systems that do not say where a program's segments are.
#[cfg(not(target_os = "linux"))]
pub fn forget_startup_code() {}

/// Resident memory of the process, in bytes; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code, reason = "calls the allocator by hand")]
    fn blocks_are_aligned_and_keep_their_content_when_they_grow() {
        for align in [1, 2, 4, 8, 16, 64, 4096] {
            for size in [1, 3, 8, 12, 16, 24, 40, 1000, 1025, 5000, 200_000] {
                let layout = Layout::from_size_align(size, align).expect("a layout");
                // SAFETY: sizes are not zero; what is allocated is given back with the size it has by then.
                unsafe {
                    let block = Allocator.alloc_zeroed(layout);
                    assert_eq!(block as usize % align, 0, "{size} {align}");
                    assert!((0..size).all(|at| *block.add(at) == 0));
                    block.add(size - 1).write(7);
                    let block = Allocator.realloc(block, layout, size * 3);
                    assert_eq!(block as usize % align, 0, "{size} {align}");
                    assert_eq!(*block.add(size - 1), 7);
                    let grown = Layout::from_size_align(size * 3, align).expect("a layout");
                    Allocator.dealloc(block, grown);
                    let block = Allocator.alloc(layout);
                    assert_eq!(block as usize % align, 0, "{size} {align}");
                    Allocator.dealloc(block, layout);
                }
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn resident_memory_grows_with_what_is_touched() {
        const MIB: u64 = 1 << 20;
        let before = resident_bytes().expect("Linux tells");
        let block = std::hint::black_box(vec![7_u8; 64 << 20]);
        let after = resident_bytes().expect("Linux tells");
        drop(block);
        assert!(before > MIB && before < 64 << 30, "{before}");
        assert!(after > before + 32 * MIB, "{before} {after}");
    }

    #[test]
    fn a_process_goes_on_after_it_has_given_memory_back() {
        let kept: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        drop(vec![7_u8; 8 << 20]);
        super::collect();
        super::forget_startup_code();
        assert_eq!(kept[999], "999");
        assert!(std::str::from_utf8(b"constants and code come back").is_ok());
    }
}
