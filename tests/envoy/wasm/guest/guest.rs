//! A raw-ABI Proxy-Wasm guest that runs a script: any host call with any arguments in any callback.
//!
//! A stream's script is the request header that the plugin's configuration names, in hex; a root's is in the
//! configuration itself. `../script.py` writes scripts and says what their bytes mean. Each callback ends with one log
//! line: its arguments, and for each host call its status and what it gave. Ids that depend on what ran before (tokens,
//! CAS values) are shown by the order in which a context first saw them.
//!
//! No SDK, no allocator to speak of, no loop that a script controls: what it measures is the host.
#![no_std]
#![allow(static_mut_refs, clippy::missing_safety_doc)]

extern crate alloc;

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32::{memory_grow, memory_size, unreachable};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unreachable()
}

/// Gives and never takes back: a VM of a test is short-lived.
struct Bump;

static mut HEAP: usize = 0;
static mut HEAP_END: usize = 0;

unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if HEAP == 0 {
            HEAP = memory_size(0) << 16;
            HEAP_END = HEAP;
        }
        let at = (HEAP + layout.align() - 1) & !(layout.align() - 1);
        let end = at + layout.size();
        if end > HEAP_END {
            let pages = (end - HEAP_END + 0xffff) >> 16;
            if memory_grow(0, pages) == usize::MAX {
                return core::ptr::null_mut();
            }
            HEAP_END += pages << 16;
        }
        HEAP = end;
        at as *mut u8
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Bump = Bump;

// What the host allocates lives until the next host call.
const ARENA: usize = 4 << 20;
static mut BLOCKS: [u64; ARENA / 8] = [0; ARENA / 8];
static mut BLOCKS_USED: usize = 0;
/// How `malloc` behaves: 0 well, 1 gives 0, 2 gives an address that is none, 3 calls the host, 4 traps, 5 logs first.
static mut MALLOC: u32 = 0;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: u32) -> u32 {
    match MALLOC {
        1 => return 0,
        2 => return 0xffff_fff0,
        3 => {
            let mut out = 0u32;
            proxy_get_header_map_size(0, &mut out as *mut u32 as u32);
        }
        4 => unreachable(),
        5 => {
            proxy_log(2, b"malloc".as_ptr() as u32, 6);
        }
        _ => {}
    }
    let at = BLOCKS_USED;
    let size = (size as usize + 7) & !7;
    if at + size > ARENA {
        return 0;
    }
    BLOCKS_USED = at + size;
    BLOCKS.as_ptr() as u32 + at as u32
}

macro_rules! calls {
    ($module:literal $(#[$all:meta])* $($(#[$meta:meta])* $id:literal $name:ident($($kind:ident),*);)*) => {
        #[link(wasm_import_module = $module)]
        unsafe extern "C" {
            $($(#[$meta])* fn $name($(_: $kind),*) -> u32;)*
        }
    };
}

calls! { "env"
    0 proxy_log(u32, u32, u32);
    2 proxy_get_status(u32, u32, u32);
    3 proxy_get_property(u32, u32, u32, u32);
    4 proxy_set_property(u32, u32, u32, u32);
    7 proxy_send_local_response(u32, u32, u32, u32, u32, u32, u32, u32);
    8 proxy_get_buffer_bytes(u32, u32, u32, u32, u32);
    9 proxy_get_buffer_status(u32, u32, u32);
    10 proxy_set_buffer_bytes(u32, u32, u32, u32, u32);
    11 proxy_get_header_map_value(u32, u32, u32, u32, u32);
    12 proxy_add_header_map_value(u32, u32, u32, u32, u32);
    13 proxy_replace_header_map_value(u32, u32, u32, u32, u32);
    14 proxy_remove_header_map_value(u32, u32, u32);
    15 proxy_get_header_map_pairs(u32, u32, u32);
    16 proxy_set_header_map_pairs(u32, u32, u32);
    17 proxy_get_header_map_size(u32, u32);
    18 proxy_http_call(u32, u32, u32, u32, u32, u32, u32, u32, u32, u32);
    19 proxy_grpc_call(u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32);
    20 proxy_grpc_stream(u32, u32, u32, u32, u32, u32, u32, u32, u32);
    21 proxy_grpc_send(u32, u32, u32, u32);
    22 proxy_grpc_cancel(u32);
    23 proxy_grpc_close(u32);
    24 proxy_get_shared_data(u32, u32, u32, u32, u32);
    25 proxy_set_shared_data(u32, u32, u32, u32, u32);
    26 proxy_register_shared_queue(u32, u32, u32);
    27 proxy_resolve_shared_queue(u32, u32, u32, u32, u32);
    28 proxy_enqueue_shared_queue(u32, u32, u32);
    29 proxy_dequeue_shared_queue(u32, u32, u32);
    30 proxy_define_metric(u32, u32, u32, u32);
    31 proxy_increment_metric(u32, u64);
    32 proxy_record_metric(u32, u64);
    33 proxy_get_metric(u32, u32);
    34 proxy_set_tick_period_milliseconds(u32);
    35 proxy_get_current_time_nanoseconds(u32);
    36 proxy_set_effective_context(u32);
    37 proxy_done();
    38 proxy_call_foreign_function(u32, u32, u32, u32, u32, u32);
}

#[cfg(not(abi_0_1_0))]
calls! { "env"
    1 proxy_get_log_level(u32);
    5 proxy_continue_stream(u32);
    6 proxy_close_stream(u32);
}

#[cfg(abi_0_1_0)]
calls! { "env"
    39 proxy_clear_route_cache();
    40 proxy_get_configuration(u32, u32);
    41 proxy_continue_request();
    42 proxy_continue_response();
}

calls! { "wasi_snapshot_preview1"
    60 args_sizes_get(u32, u32);
    61 args_get(u32, u32);
    62 environ_sizes_get(u32, u32);
    63 environ_get(u32, u32);
    64 clock_res_get(u32, u32);
    65 clock_time_get(u32, u64, u32);
    66 random_get(u32, u32);
    67 fd_write(u32, u32, u32, u32);
    68 fd_read(u32, u32, u32, u32);
    69 fd_seek(u32, u64, u32, u32);
    70 fd_close(u32);
    71 fd_fdstat_get(u32, u32);
    72 fd_fdstat_set_flags(u32, u32);
    73 fd_prestat_get(u32, u32);
    74 fd_prestat_dir_name(u32, u32, u32);
    75 fd_filestat_get(u32, u32);
    76 fd_tell(u32, u32);
    77 fd_sync(u32);
    78 poll_oneoff(u32, u32, u32, u32);
    79 sched_yield();
    81 path_open(u32, u32, u32, u32, u32, u64, u64, u32, u32);
    82 fd_advise(u32, u64, u64, u32);
    83 fd_readdir(u32, u32, u32, u64, u32);
    84 path_filestat_get(u32, u32, u32, u32, u32);
    85 fd_renumber(u32, u32);
    86 sock_recv(u32, u32, u32, u32, u32, u32);
    87 fd_pread(u32, u32, u32, u64, u32);
    88 fd_allocate(u32, u64, u64);
    89 path_unlink_file(u32, u32, u32);
    90 fd_pwrite(u32, u32, u32, u64, u32);
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn proc_exit(_: u32);
}

/// `a` are the words of the arguments in order, `w` the wide ones.
unsafe fn call(function: u8, a: &[u32; 16], w: &[u64; 2]) -> u32 {
    match function {
        0 => proxy_log(a[0], a[1], a[2]),
        #[cfg(not(abi_0_1_0))]
        1 => proxy_get_log_level(a[0]),
        2 => proxy_get_status(a[0], a[1], a[2]),
        3 => proxy_get_property(a[0], a[1], a[2], a[3]),
        4 => proxy_set_property(a[0], a[1], a[2], a[3]),
        #[cfg(not(abi_0_1_0))]
        5 => proxy_continue_stream(a[0]),
        #[cfg(not(abi_0_1_0))]
        6 => proxy_close_stream(a[0]),
        7 => proxy_send_local_response(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]),
        8 => proxy_get_buffer_bytes(a[0], a[1], a[2], a[3], a[4]),
        9 => proxy_get_buffer_status(a[0], a[1], a[2]),
        10 => proxy_set_buffer_bytes(a[0], a[1], a[2], a[3], a[4]),
        11 => proxy_get_header_map_value(a[0], a[1], a[2], a[3], a[4]),
        12 => proxy_add_header_map_value(a[0], a[1], a[2], a[3], a[4]),
        13 => proxy_replace_header_map_value(a[0], a[1], a[2], a[3], a[4]),
        14 => proxy_remove_header_map_value(a[0], a[1], a[2]),
        15 => proxy_get_header_map_pairs(a[0], a[1], a[2]),
        16 => proxy_set_header_map_pairs(a[0], a[1], a[2]),
        17 => proxy_get_header_map_size(a[0], a[1]),
        18 => proxy_http_call(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]),
        19 => proxy_grpc_call(
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11],
        ),
        20 => proxy_grpc_stream(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]),
        21 => proxy_grpc_send(a[0], a[1], a[2], a[3]),
        22 => proxy_grpc_cancel(a[0]),
        23 => proxy_grpc_close(a[0]),
        24 => proxy_get_shared_data(a[0], a[1], a[2], a[3], a[4]),
        25 => proxy_set_shared_data(a[0], a[1], a[2], a[3], a[4]),
        26 => proxy_register_shared_queue(a[0], a[1], a[2]),
        27 => proxy_resolve_shared_queue(a[0], a[1], a[2], a[3], a[4]),
        28 => proxy_enqueue_shared_queue(a[0], a[1], a[2]),
        29 => proxy_dequeue_shared_queue(a[0], a[1], a[2]),
        30 => proxy_define_metric(a[0], a[1], a[2], a[3]),
        31 => proxy_increment_metric(a[0], w[0]),
        32 => proxy_record_metric(a[0], w[0]),
        33 => proxy_get_metric(a[0], a[1]),
        34 => proxy_set_tick_period_milliseconds(a[0]),
        35 => proxy_get_current_time_nanoseconds(a[0]),
        36 => proxy_set_effective_context(a[0]),
        37 => proxy_done(),
        38 => proxy_call_foreign_function(a[0], a[1], a[2], a[3], a[4], a[5]),
        #[cfg(abi_0_1_0)]
        39 => proxy_clear_route_cache(),
        #[cfg(abi_0_1_0)]
        40 => proxy_get_configuration(a[0], a[1]),
        #[cfg(abi_0_1_0)]
        41 => proxy_continue_request(),
        #[cfg(abi_0_1_0)]
        42 => proxy_continue_response(),
        60 => args_sizes_get(a[0], a[1]),
        61 => args_get(a[0], a[1]),
        62 => environ_sizes_get(a[0], a[1]),
        63 => environ_get(a[0], a[1]),
        64 => clock_res_get(a[0], a[1]),
        65 => clock_time_get(a[0], w[0], a[1]),
        66 => random_get(a[0], a[1]),
        67 => fd_write(a[0], a[1], a[2], a[3]),
        68 => fd_read(a[0], a[1], a[2], a[3]),
        69 => fd_seek(a[0], w[0], a[1], a[2]),
        70 => fd_close(a[0]),
        71 => fd_fdstat_get(a[0], a[1]),
        72 => fd_fdstat_set_flags(a[0], a[1]),
        73 => fd_prestat_get(a[0], a[1]),
        74 => fd_prestat_dir_name(a[0], a[1], a[2]),
        75 => fd_filestat_get(a[0], a[1]),
        76 => fd_tell(a[0], a[1]),
        77 => fd_sync(a[0]),
        78 => poll_oneoff(a[0], a[1], a[2], a[3]),
        79 => sched_yield(),
        80 => {
            proc_exit(a[0]);
            0
        }
        81 => path_open(a[0], a[1], a[2], a[3], a[4], w[0], w[1], a[5], a[6]),
        82 => fd_advise(a[0], w[0], w[1], a[1]),
        83 => fd_readdir(a[0], a[1], a[2], w[0], a[3]),
        84 => path_filestat_get(a[0], a[1], a[2], a[3], a[4]),
        85 => fd_renumber(a[0], a[1]),
        86 => sock_recv(a[0], a[1], a[2], a[3], a[4], a[5]),
        87 => fd_pread(a[0], a[1], a[2], w[0], a[3]),
        88 => fd_allocate(a[0], w[0], w[1]),
        89 => path_unlink_file(a[0], a[1], a[2]),
        90 => fd_pwrite(a[0], a[1], a[2], w[0], a[3]),
        _ => 999,
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The trace
// ---------------------------------------------------------------------------------------------------------------------

const TRACE: usize = 60 << 10;
static mut LINE: [u8; TRACE] = [0; TRACE];
static mut LINE_LEN: usize = 0;

unsafe fn put(byte: u8) {
    if LINE_LEN < TRACE {
        LINE[LINE_LEN] = byte;
        LINE_LEN += 1;
    }
}

unsafe fn text(text: &str) {
    for byte in text.bytes() {
        put(byte);
    }
}

unsafe fn number(number: u64) {
    let mut digits = [0u8; 20];
    let (mut left, mut at) = (number, 20);
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    for digit in &digits[at..] {
        put(*digit);
    }
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b":-_./(){}<>,=?&*+@!'\"[]~".contains(&byte)
}

unsafe fn escaped(bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        if plain(*byte) {
            put(*byte);
        } else {
            put(b'%');
            put(HEX[(byte >> 4) as usize]);
            put(HEX[(byte & 15) as usize]);
        }
    }
}

unsafe fn sum(bytes: &[u8]) {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    number(sum);
}

unsafe fn flush() {
    proxy_log(2, LINE.as_ptr() as u32, LINE_LEN as u32);
    LINE_LEN = 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Contexts
// ---------------------------------------------------------------------------------------------------------------------

struct Context {
    id: u32,
    root: u32,
    case: u32,
    tag: u8,
    /// Without a script the callbacks of a stream say nothing.
    script: Vec<u8>,
    calls: [u8; PHASES],
    registers: [u32; 8],
    /// Values by class, in the order in which they were seen.
    seen: [Vec<u32>; 4],
    /// The header that holds a stream's script.
    header: Vec<u8>,
    /// What every stream of this root does at its creation.
    on_create: Vec<u8>,
}

const PHASES: usize = 24;
const CONTEXT_CREATE: u8 = 0;
const VM_START: u8 = 1;
const CONFIGURE: u8 = 2;
const TICK: u8 = 12;

static mut CONTEXTS: Vec<Context> = Vec::new();
/// Whose call, queue or stream a token is.
static mut TOKENS: Vec<(u8, u32, u32)> = Vec::new();

fn context(id: u32, root: u32) -> Context {
    Context {
        id,
        root,
        case: 0,
        tag: b'?',
        script: Vec::new(),
        calls: [0; PHASES],
        registers: [0; 8],
        seen: [Vec::new(), Vec::new(), Vec::new(), Vec::new()],
        header: Vec::new(),
        on_create: Vec::new(),
    }
}

unsafe fn find(id: u32) -> Option<usize> {
    CONTEXTS.iter().rposition(|context| context.id == id)
}

/// The owner of a token, else the root itself.
unsafe fn owner(class: u8, token: u32, root: u32) -> u32 {
    TOKENS
        .iter()
        .rev()
        .find(|entry| entry.0 == class && entry.1 == token)
        .map_or(root, |entry| entry.2)
}

fn unhex(hex: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => 0,
    };
    hex.chunks_exact(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

/// Asks the host for bytes: `get` is given where to put their place and length.
unsafe fn ask(get: impl FnOnce(u32, u32) -> u32) -> Vec<u8> {
    BLOCKS_USED = 0;
    let mut out = [0u32; 2];
    let at = out.as_mut_ptr() as u32;
    if get(at, at + 4) != 0 || core::ptr::read_volatile(&out[1]) == 0 {
        return Vec::new();
    }
    let (at, len) = (core::ptr::read_volatile(&out[0]), core::ptr::read_volatile(&out[1]));
    core::slice::from_raw_parts(at as *const u8, len as usize).to_vec()
}

/// A root's configuration: tag, length and name of the header, length and script of stream creation, the root's script.
unsafe fn configure(index: usize, hex: &[u8]) {
    let bytes = unhex(hex);
    if bytes.len() < 4 {
        return;
    }
    let context = &mut CONTEXTS[index];
    context.tag = bytes[0];
    let header = bytes[1] as usize;
    context.header = bytes[2..2 + header].to_vec();
    let at = 2 + header;
    let create = u16::from_le_bytes([bytes[at], bytes[at + 1]]) as usize;
    context.on_create = bytes[at + 2..at + 2 + create].to_vec();
    let script = &bytes[at + 2 + create..];
    if script.len() >= 4 {
        context.case = u32::from_le_bytes([script[0], script[1], script[2], script[3]]);
        context.script = script[4..].to_vec();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Running a script
// ---------------------------------------------------------------------------------------------------------------------

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let len = len.min(self.0.len());
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }
    fn short(&mut self) -> u16 {
        let bytes = self.take(2);
        if bytes.len() < 2 {
            return 0;
        }
        u16::from_le_bytes([bytes[0], bytes[1]])
    }
    fn word(&mut self) -> u32 {
        u32::from(self.short()) | u32::from(self.short()) << 16
    }
}

/// Places for what a host call gives.
static mut OUT: [u64; 8] = [0; 8];
static mut IOV: [u32; 2] = [0; 2];
const UNTOUCHED: u64 = 0xeeee_eeee_eeee_eeee;

#[derive(Clone, Copy)]
enum Give {
    Word { mode: u8, register: u8, at: usize },
    Wide { mode: u8, at: usize },
    Bytes { mode: u8, at: usize },
}

unsafe fn token(index: usize, class: usize, value: u32) {
    if value == 0 {
        put(b'0');
        return;
    }
    let seen = &mut CONTEXTS[index].seen[class];
    let place = match seen.iter().position(|known| *known == value) {
        Some(place) => place,
        None => {
            seen.push(value);
            seen.len() - 1
        }
    };
    put(b'#');
    number(place as u64);
}

unsafe fn operation(index: usize, running: u32, reader: &mut Reader<'_>) {
    let function = reader.byte();
    let count = reader.byte();
    let (mut words, mut wide) = ([0u32; 16], [0u64; 2]);
    let (mut used, mut used_wide, mut outs) = (0, 0, 0);
    let mut gives = [Give::Wide { mode: 255, at: 0 }; 8];
    let mut given = 0;
    OUT = [UNTOUCHED; 8];
    for _ in 0..count {
        let kind = reader.byte();
        let mut push = |word: u32| {
            words[used & 15] = word;
            used += 1;
        };
        match kind {
            0 => push(reader.word()),
            1 => push(CONTEXTS[index].registers[reader.byte() as usize & 7]),
            2 => {
                let len = reader.short();
                let bytes = reader.take(len as usize);
                push(bytes.as_ptr() as u32);
                push(bytes.len() as u32);
            }
            3 => push(CONTEXTS[index].id),
            4 | 5 | 6 => {
                let (mode, register) = (reader.byte(), reader.byte());
                let place = OUT.as_ptr() as u32 + 8 * outs as u32;
                push(place);
                if kind == 6 {
                    push(place + 4);
                }
                gives[given & 7] = match kind {
                    4 => Give::Word { mode, register, at: outs },
                    5 => Give::Wide { mode, at: outs },
                    _ => Give::Bytes { mode, at: outs },
                };
                given += 1;
                outs = (outs + 1) & 7;
            }
            7 => {
                wide[used_wide & 1] = u64::from(reader.word()) | u64::from(reader.word()) << 32;
                used_wide += 1;
            }
            8 => {
                // A register's bytes.
                let register = reader.byte() as usize & 7;
                push(&CONTEXTS[index].registers[register] as *const u32 as u32);
                push(4);
            }
            9 => push(CONTEXTS[index].root),
            10 => {
                let len = reader.short();
                let bytes = reader.take(len as usize);
                IOV = [bytes.as_ptr() as u32, bytes.len() as u32];
                push(IOV.as_ptr() as u32);
                push(1);
            }
            _ => {}
        }
    }
    match function {
        200 => {
            // What was traced so far would be lost.
            flush();
            match words[0] {
                1 => {
                    core::ptr::read_volatile(0xffff_ff00u32 as *const u32);
                }
                2 => {
                    number(u64::from(recurse(core::hint::black_box(1))));
                }
                3 => {
                    let function: extern "C" fn(u64) -> u64 =
                        core::mem::transmute(core::hint::black_box(0x7fff_ffffusize));
                    number(function(1));
                }
                _ => unreachable(),
            }
            return;
        }
        201 => {
            MALLOC = words[0];
            return;
        }
        202 => {
            flush();
            prefix(index, running, "more");
            return;
        }
        _ => {}
    }
    BLOCKS_USED = 0;
    let status = call(function, &words, &wide);
    put(b' ');
    number(u64::from(function));
    put(b':');
    number(u64::from(status));
    for give in &gives[..given] {
        put(b':');
        match *give {
            Give::Word { mode, register, at } => {
                let value = core::ptr::read_volatile(&OUT[at]) as u32;
                if value == UNTOUCHED as u32 {
                    put(b'-');
                    continue;
                }
                CONTEXTS[index].registers[register as usize & 7] = value;
                match mode {
                    0 => number(u64::from(value)),
                    9 => {}
                    class => token(index, class as usize & 3, value),
                }
                if status == 0 && value != 0 && matches!(function, 18..=20 | 26) {
                    let class = if function == 26 { 1 } else { 0 };
                    TOKENS.push((class, value, CONTEXTS[index].id));
                }
            }
            Give::Wide { mode, at } => {
                let value = core::ptr::read_volatile(&OUT[at]);
                match mode {
                    _ if value == UNTOUCHED => put(b'-'),
                    0 => number(value),
                    _ => put(if value == 0 { b'0' } else { b'n' }),
                }
            }
            Give::Bytes { mode, at } => {
                let value = core::ptr::read_volatile(&OUT[at]);
                let (at, len) = (value as u32, (value >> 32) as u32);
                if value == UNTOUCHED {
                    put(b'-');
                    continue;
                }
                if at as u64 == UNTOUCHED & 0xffff_ffff || len as u64 == UNTOUCHED & 0xffff_ffff {
                    text("half");
                    continue;
                }
                if len == 0 {
                    text(if at == 0 { "empty" } else { "empty-at" });
                    continue;
                }
                let bytes = core::slice::from_raw_parts(at as *const u8, len as usize);
                match mode {
                    0 if bytes.len() <= 2000 => escaped(bytes),
                    1 => {
                        put(b'l');
                        number(u64::from(len));
                    }
                    2 => put(b'?'),
                    _ => {
                        put(b'l');
                        number(u64::from(len));
                        put(b's');
                        sum(bytes);
                    }
                }
            }
        }
    }
}

#[inline(never)]
#[allow(unconditional_recursion)]
fn recurse(depth: u32) -> u32 {
    let frame = core::hint::black_box([depth; 64]);
    recurse(core::hint::black_box(frame[1] + 1)) + frame[2]
}

unsafe fn prefix(index: usize, running: u32, name: &str) {
    LINE_LEN = 0;
    let context = &CONTEXTS[index];
    text("~");
    number(u64::from(context.case));
    text("~");
    put(context.tag);
    text(if context.id == context.root {
        "root "
    } else if running == context.root {
        "stream@root "
    } else {
        "stream "
    });
    text(name);
}

const NAMES: [&str; PHASES] = [
    "context_create",
    "vm_start",
    "configure",
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
    "log",
    "done",
    "delete",
    "tick",
    "queue_ready",
    "http_call_response",
    "grpc_initial",
    "grpc_receive",
    "grpc_trailing",
    "grpc_close",
    "foreign",
    "request_metadata",
    "response_metadata",
    "",
    "",
];

/// One callback: the section of the script that is for it, or for every such call. Gives its return value.
unsafe fn phase(running: u32, owner: u32, phase: u8, arguments: &[u32], default: u32) -> u32 {
    let Some(index) = find(owner) else {
        return default;
    };
    let context = &mut CONTEXTS[index];
    if context.case == 0 && context.script.is_empty() {
        return default;
    }
    let turn = context.calls[phase as usize];
    context.calls[phase as usize] = turn.saturating_add(1);
    // The bytes stay where they are: nothing is ever freed.
    let script: &'static [u8] =
        core::slice::from_raw_parts(context.script.as_ptr(), context.script.len());
    let mut every: Option<(u32, &[u8])> = None;
    let mut exact: Option<(u32, &[u8])> = None;
    let mut reader = Reader(script);
    while !reader.0.is_empty() {
        let (of, at) = (reader.byte(), reader.byte());
        let result = reader.word();
        let len = reader.short();
        let operations = reader.take(len as usize);
        if of == phase && at == 255 {
            every.get_or_insert((result, operations));
        } else if of == phase && at == turn {
            exact.get_or_insert((result, operations));
        }
    }
    prefix(index, running, NAMES[phase as usize]);
    for argument in arguments {
        put(b' ');
        number(u64::from(*argument));
    }
    text(" |");
    let Some((result, operations)) = exact.or(every) else {
        flush();
        return default;
    };
    let mut reader = Reader(operations);
    while !reader.0.is_empty() {
        operation(index, running, &mut reader);
    }
    flush();
    result
}

// ---------------------------------------------------------------------------------------------------------------------
// Callbacks
// ---------------------------------------------------------------------------------------------------------------------

#[cfg(abi_0_1_0)]
#[unsafe(no_mangle)]
pub extern "C" fn proxy_abi_version_0_1_0() {}
#[cfg(not(abi_0_1_0))]
#[unsafe(no_mangle)]
pub extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_context_create(id: u32, parent: u32) {
    let mut made = context(id, if parent == 0 { id } else { parent });
    if parent == 0 {
        CONTEXTS.push(made);
        let index = CONTEXTS.len() - 1;
        let hex = ask(|at, len| proxy_get_buffer_bytes(7, 0, 1 << 24, at, len));
        configure(index, &hex);
        phase(id, id, CONTEXT_CREATE, &[], 0);
        return;
    }
    if let Some(root) = find(parent) {
        let root = &CONTEXTS[root];
        made.tag = root.tag;
        if root.on_create.len() >= 4 {
            let script = &root.on_create;
            made.case = u32::from_le_bytes([script[0], script[1], script[2], script[3]]);
            made.script = script[4..].to_vec();
        }
    }
    CONTEXTS.push(made);
    phase(id, id, CONTEXT_CREATE, &[], 0);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_vm_start(id: u32, size: u32) -> u32 {
    phase(id, id, VM_START, &[size], 1)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_configure(id: u32, size: u32) -> u32 {
    if let Some(index) = find(id)
        && CONTEXTS[index].header.is_empty()
    {
        let hex = ask(|at, len| proxy_get_buffer_bytes(7, 0, 1 << 24, at, len));
        configure(index, &hex);
    }
    phase(id, id, CONFIGURE, &[size], 1)
}

/// The stream's script, from its header.
unsafe fn read_script(id: u32) {
    let Some(index) = find(id) else { return };
    let Some(root) = find(CONTEXTS[index].root) else {
        return;
    };
    let header = CONTEXTS[root].header.clone();
    let hex = ask(|at, len| {
        proxy_get_header_map_value(0, header.as_ptr() as u32, header.len() as u32, at, len)
    });
    let bytes = unhex(&hex);
    if bytes.len() >= 4 {
        let context = &mut CONTEXTS[index];
        context.case = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        context.script = bytes[4..].to_vec();
    }
}

#[cfg(not(abi_0_1_0))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_request_headers(id: u32, n: u32, end: u32) -> u32 {
    read_script(id);
    phase(id, id, 3, &[n, end], 0)
}
#[cfg(abi_0_1_0)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_request_headers(id: u32, n: u32) -> u32 {
    read_script(id);
    phase(id, id, 3, &[n], 0)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_request_body(id: u32, size: u32, end: u32) -> u32 {
    phase(id, id, 4, &[size, end], 0)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_request_trailers(id: u32, n: u32) -> u32 {
    phase(id, id, 5, &[n], 0)
}
#[cfg(not(abi_0_1_0))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_response_headers(id: u32, n: u32, end: u32) -> u32 {
    phase(id, id, 6, &[n, end], 0)
}
#[cfg(abi_0_1_0)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_response_headers(id: u32, n: u32) -> u32 {
    phase(id, id, 6, &[n], 0)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_response_body(id: u32, size: u32, end: u32) -> u32 {
    phase(id, id, 7, &[size, end], 0)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_response_trailers(id: u32, n: u32) -> u32 {
    phase(id, id, 8, &[n], 0)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_request_metadata(id: u32, n: u32) -> u32 {
    phase(id, id, 20, &[n], 0)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_response_metadata(id: u32, n: u32) -> u32 {
    phase(id, id, 21, &[n], 0)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_log(id: u32) {
    phase(id, id, 9, &[], 0);
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_done(id: u32) -> u32 {
    phase(id, id, 10, &[], 1)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_delete(id: u32) {
    phase(id, id, 11, &[], 0);
}

/// Every context of the root that has a section for a tick yet to come runs it; where none is left, the ticks end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_tick(root: u32) {
    let mut ids = Vec::new();
    for context in CONTEXTS.iter() {
        if context.root == root && wants_tick(context) {
            ids.push(context.id);
        }
    }
    for id in ids {
        phase(root, id, TICK, &[], 0);
    }
    if !CONTEXTS.iter().any(|context| context.root == root && wants_tick(context)) {
        proxy_set_tick_period_milliseconds(0);
    }
}

fn wants_tick(context: &Context) -> bool {
    let turn = context.calls[TICK as usize];
    let mut reader = Reader(&context.script);
    while !reader.0.is_empty() {
        let (of, at) = (reader.byte(), reader.byte());
        reader.word();
        let len = reader.short();
        reader.take(len as usize);
        if of == TICK && at == turn {
            return true;
        }
    }
    false
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_queue_ready(root: u32, token: u32) {
    let owner = owner(1, token, root);
    phase(root, owner, 13, &[], 0);
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_http_call_response(root: u32, token: u32, n: u32, size: u32, t: u32) {
    let owner = owner(0, token, root);
    phase(root, owner, 14, &[n, size, t], 0);
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_grpc_receive_initial_metadata(root: u32, token: u32, n: u32) {
    let owner = owner(0, token, root);
    phase(root, owner, 15, &[n], 0);
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_grpc_receive(root: u32, token: u32, size: u32) {
    let owner = owner(0, token, root);
    phase(root, owner, 16, &[size], 0);
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_grpc_receive_trailing_metadata(root: u32, token: u32, n: u32) {
    let owner = owner(0, token, root);
    phase(root, owner, 17, &[n], 0);
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_on_grpc_close(root: u32, token: u32, status: u32) {
    let owner = owner(0, token, root);
    phase(root, owner, 18, &[status], 0);
}
