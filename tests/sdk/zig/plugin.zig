//! A plugin in Zig on the bare ABI: it redacts a response's body as it passes, chunk by chunk, and tells what it saw.

const std = @import("std");

extern "env" fn proxy_get_buffer_bytes(kind: u32, start: u32, length: u32, data: *[*]u8, size: *usize) u32;
extern "env" fn proxy_set_buffer_bytes(kind: u32, start: u32, length: u32, data: [*]const u8, size: usize) u32;
extern "env" fn proxy_add_header_map_value(map: u32, key: [*]const u8, key_size: usize, value: [*]const u8, value_size: usize) u32;
extern "env" fn proxy_remove_header_map_value(map: u32, key: [*]const u8, key_size: usize) u32;
extern "env" fn proxy_log(level: u32, text: [*]const u8, size: usize) u32;

const request_headers: u32 = 0;
const response_headers: u32 = 2;
const response_body: u32 = 1;

export fn proxy_abi_version_0_2_1() void {}

export fn proxy_on_memory_allocate(size: usize) ?[*]u8 {
    const block = std.heap.wasm_allocator.alloc(u8, size) catch return null;
    return block.ptr;
}

export fn proxy_on_vm_start(_: u32, _: u32) u32 {
    return 1;
}

export fn proxy_on_configure(_: u32, _: u32) u32 {
    return 1;
}

fn add(map: u32, key: []const u8, value: []const u8) void {
    _ = proxy_add_header_map_value(map, key.ptr, key.len, value.ptr, value.len);
}

export fn proxy_on_request_headers(_: u32, _: u32, _: u32) u32 {
    add(request_headers, "x-sdk", "zig");
    return 0;
}

export fn proxy_on_response_headers(_: u32, _: u32, _: u32) u32 {
    add(response_headers, "x-sdk", "zig");
    const length = "content-length";
    _ = proxy_remove_header_map_value(response_headers, length, length.len);
    return 0;
}

export fn proxy_on_response_body(_: u32, size: u32, end: u32) u32 {
    if (end == 0) return 1;
    var data: [*]u8 = undefined;
    var length: usize = 0;
    if (proxy_get_buffer_bytes(response_body, 0, size, &data, &length) != 0 or length == 0) return 0;
    const body = data[0..length];
    defer std.heap.wasm_allocator.free(body);
    const secret = "hunter2";
    var found: u32 = 0;
    var at: usize = 0;
    while (std.mem.indexOfPos(u8, body, at, secret)) |place| {
        @memset(body[place .. place + secret.len], '*');
        at = place + secret.len;
        found += 1;
    }
    if (found > 0) {
        _ = proxy_set_buffer_bytes(response_body, 0, size, body.ptr, body.len);
        const text = "redacted";
        _ = proxy_log(2, text, text.len);
    }
    return 0;
}
