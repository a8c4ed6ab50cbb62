//! The plugins that `bench/wasm.py` measures, on the bare ABI: one source, three modules (`build.sh`).
//!
//! `add` adds a header to the request and one to the response, `read` reads all headers of both, `body` takes the
//! whole body of a response and writes it back with another first byte. Each exports the callbacks that it needs and
//! no others, as a plugin in C would.
#![no_std]
#![no_main]

use core::ptr::addr_of_mut;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    #[cfg(plugin = "add")]
    fn proxy_add_header_map_value(map: u32, key: *const u8, key_len: usize, value: *const u8, value_len: usize) -> u32;
    #[cfg(plugin = "read")]
    fn proxy_get_header_map_pairs(map: u32, at: *mut *const u8, len: *mut usize) -> u32;
    #[cfg(plugin = "body")]
    fn proxy_get_buffer_bytes(buffer: u32, start: usize, max: usize, at: *mut *mut u8, len: *mut usize) -> u32;
    #[cfg(plugin = "body")]
    fn proxy_set_buffer_bytes(buffer: u32, start: usize, size: usize, at: *const u8, len: usize) -> u32;
}

const ROOM: usize = 1 << 20;
static mut BLOCK: [u8; ROOM] = [0; ROOM];
static mut USED: usize = 0;

/// The host's allocator for what it hands over. Nothing outlives a callback.
#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut u8 {
    unsafe {
        let at = USED;
        USED = (at + size + 7) & !7;
        if USED > ROOM { core::ptr::null_mut() } else { addr_of_mut!(BLOCK).cast::<u8>().add(at) }
    }
}

#[cfg(any(plugin = "read", plugin = "body"))]
fn begin() {
    unsafe { USED = 0 };
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(_: u32, _: u32) {}

#[cfg(plugin = "add")]
mod plugin {
    use super::*;

    fn add(map: u32) {
        let (key, value) = ("x-bench", "added by a plugin");
        unsafe { proxy_add_header_map_value(map, key.as_ptr(), key.len(), value.as_ptr(), value.len()) };
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_request_headers(_: u32, _: u32, _: u32) -> u32 {
        add(0);
        0
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_response_headers(_: u32, _: u32, _: u32) -> u32 {
        add(2);
        0
    }
}

#[cfg(plugin = "read")]
mod plugin {
    use super::*;

    /// What is read is used: the host cannot skip it, nor the compiler.
    static mut SUM: u32 = 0;

    fn read(map: u32) {
        begin();
        let (mut at, mut len) = (core::ptr::null(), 0);
        unsafe {
            if proxy_get_header_map_pairs(map, &mut at, &mut len) == 0 {
                let pairs = core::slice::from_raw_parts(at, len);
                SUM = pairs.iter().fold(SUM, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
            }
        }
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_request_headers(_: u32, _: u32, _: u32) -> u32 {
        read(0);
        0
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_response_headers(_: u32, _: u32, _: u32) -> u32 {
        read(2);
        (unsafe { SUM } == u32::MAX) as u32
    }
}

#[cfg(plugin = "body")]
mod plugin {
    use super::*;

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_response_body(_: u32, size: usize, end_of_stream: u32) -> u32 {
        if end_of_stream == 0 {
            // StopIterationAndBuffer: all of it at once.
            return 1;
        }
        begin();
        let (mut at, mut len) = (core::ptr::null_mut(), 0);
        unsafe {
            if proxy_get_buffer_bytes(1, 0, size, &mut at, &mut len) == 0 && len > 0 {
                *at = b'#';
                proxy_set_buffer_bytes(1, 0, len, at, len);
            }
        }
        0
    }
}
