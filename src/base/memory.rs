//! What a process that has come to rest gives back to the machine.

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

#[cfg(test)]
mod tests {
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
