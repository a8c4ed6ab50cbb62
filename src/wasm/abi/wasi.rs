//! WASI preview 1, under both of its names: the environment, clocks, randomness and output; the rest refuses.
//!
//! Return codes are those of Envoy's host. Functions that the table of a newer toolchain adds are stubbed by `link`.

use std::time::Duration;

use wasmtime::Linker;

use super::log::MAX_MESSAGE;
use super::{Guest, Status, guard, memory, put, range, timers, write_log};
use crate::wasm::context::{Host, Phase};

/// The names of the module.
pub(super) const MODULES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

pub(super) const EBADF: u32 = 8;
pub(super) const EFAULT: u32 = 21;
pub(super) const EINVAL: u32 = 28;
pub(super) const ENOENT: u32 = 44;
pub(super) const ENOSYS: u32 = 52;
pub(super) const ENOTDIR: u32 = 20;
pub(super) const ENOTSUP: u32 = 58;
pub(super) const ENOTCAPABLE: u32 = 76;

/// Most random bytes in one call.
const MAX_RANDOM: u32 = 64 << 10;
/// Most pieces of what is written in one call, as of POSIX.
const MAX_PIECES: u32 = 1024;

type Answer = Result<u32, Status>;

fn answer(result: Answer) -> u32 {
    result.unwrap_or(EFAULT)
}

macro_rules! wasi {
    ($linker:ident, $module:ident: $($name:literal => |$guest:ident $(, $arg:ident: $type:ty)*| $body:expr;)*) => {
        $($linker.func_wrap(
            $module,
            $name,
            |#[allow(unused_mut, unused_variables, reason = "some stubs ignore the guest")] mut $guest: Guest<'_>
             $(, $arg: $type)*| -> u32 {
                $(let _ = &$arg;)*
                answer($body)
            },
        )?;)*
    };
}

/// Defines them under `module`.
#[allow(clippy::too_many_lines, reason = "a table")]
pub(super) fn link(linker: &mut Linker<Host>, module: &'static str) -> wasmtime::Result<()> {
    wasi! { linker, module:
        "args_sizes_get" => |guest, count: u32, size: u32| write_two(&mut guest, count, 0, size, 0);
        "args_get" => |guest, argv: u32, buffer: u32| Ok(0);
        "environ_sizes_get" => |guest, count: u32, size: u32| {
            let (number, bytes) = environment_size(guest.data());
            write_two(&mut guest, count, number, size, bytes)
        };
        "environ_get" => |guest, environ: u32, buffer: u32| environ_get(&mut guest, environ, buffer);
        "clock_res_get" => |guest, clock: u32, out: u32| match clock {
            0 | 1 => write_u64(&mut guest, out, 1),
            _ => Ok(ENOTSUP),
        };
        "clock_time_get" => |guest, clock: u32, precision: u64, out: u32| match clock {
            0 => write_u64(&mut guest, out, timers::wall_clock()),
            1 => write_u64(&mut guest, out, monotonic()),
            _ => Ok(ENOTSUP),
        };
        "random_get" => |guest, at: u32, len: u32| random_get(&mut guest, at, len);
        "fd_write" => |guest, fd: u32, iovs: u32, count: u32, out: u32| {
            fd_write(&mut guest, fd, iovs, count, out)
        };
        "fd_pwrite" => |guest, fd: u32, iovs: u32, count: u32, offset: u64, out: u32| {
            fd_write(&mut guest, fd, iovs, count, out)
        };
        "fd_fdstat_get" => |guest, fd: u32, out: u32| fd_fdstat_get(&mut guest, fd, out);
        "fd_tell" => |guest, fd: u32, out: u32| match fd {
            1 | 2 => write_u64(&mut guest, out, 0),
            _ => Ok(EBADF),
        };
        "fd_fdstat_set_flags" => |guest, fd: u32, flags: u32| Ok(ENOSYS);
        "fd_pread" => |guest, fd: u32, iovs: u32, count: u32, offset: u64, out: u32| Ok(ENOSYS);
        "fd_prestat_get" => |guest, fd: u32, out: u32| Ok(EBADF);
        "fd_prestat_dir_name" => |guest, fd: u32, at: u32, len: u32| Ok(ENOSYS);
        "fd_filestat_get" => |guest, fd: u32, out: u32| Ok(EBADF);
        "fd_readdir" => |guest, fd: u32, at: u32, len: u32, cookie: u64, out: u32| {
            // Envoy's says how much was read before it says that nothing can be; likewise below.
            write_u32(&mut guest, out, 0).map(|_| ENOTDIR)
        };
        "fd_renumber" => |guest, fd: u32, to: u32| Ok(match output_only(fd).max(output_only(to)) {
            0 => ENOTSUP,
            code => code,
        });
        "fd_advise" => |guest, fd: u32, offset: u64, len: u64, advice: u32| Ok(0);
        "fd_allocate" => |guest, fd: u32, offset: u64, len: u64| Ok(output_only(fd));
        "fd_datasync" => |guest, fd: u32| Ok(output_only(fd));
        "fd_sync" => |guest, fd: u32| Ok(output_only(fd));
        "fd_fdstat_set_rights" => |guest, fd: u32, base: u64, inheriting: u64| Ok(output_only(fd));
        "fd_filestat_set_size" => |guest, fd: u32, size: u64| Ok(output_only(fd));
        "fd_filestat_set_times" => |guest, fd: u32, atime: u64, mtime: u64, flags: u32| Ok(output_only(fd));
        "path_create_directory" => |guest, fd: u32, at: u32, len: u32| Ok(ENOTSUP);
        "path_filestat_get" => |guest, fd: u32, flags: u32, at: u32, len: u32, out: u32| Ok(ENOTSUP);
        "path_filestat_set_times" => |guest, fd: u32, flags: u32, at: u32, len: u32, atime: u64, mtime: u64,
            fst: u32| Ok(ENOTSUP);
        "path_link" => |guest, fd: u32, flags: u32, at: u32, len: u32, to: u32, to_at: u32, to_len: u32| Ok(ENOTSUP);
        "path_readlink" => |guest, fd: u32, at: u32, len: u32, buf: u32, buf_len: u32, out: u32| {
            write_u32(&mut guest, out, 0).map(|_| ENOTSUP)
        };
        "path_remove_directory" => |guest, fd: u32, at: u32, len: u32| Ok(ENOTSUP);
        "path_rename" => |guest, fd: u32, at: u32, len: u32, to: u32, to_at: u32, to_len: u32| Ok(ENOTSUP);
        "path_symlink" => |guest, old: u32, old_len: u32, fd: u32, new: u32, new_len: u32| Ok(ENOTSUP);
        "path_unlink_file" => |guest, fd: u32, at: u32, len: u32| Ok(ENOTSUP);
        "poll_oneoff" => |guest, subscriptions: u32, events: u32, count: u32, out: u32| {
            write_u32(&mut guest, out, 0)
        };
        "sock_accept" => |guest, fd: u32, flags: u32, out: u32| write_u32(&mut guest, out, 0).map(|_| ENOTSUP);
        "sock_recv" => |guest, fd: u32, at: u32, len: u32, flags: u32, out: u32, out_flags: u32| {
            nothing_received(&mut guest, out, out_flags)
        };
        "sock_send" => |guest, fd: u32, at: u32, len: u32, flags: u32, out: u32| {
            write_u32(&mut guest, out, 0).map(|_| ENOTSUP)
        };
        "sock_shutdown" => |guest, fd: u32, how: u32| Ok(ENOTSUP);
    }
    restricted(linker, module)
}

/// Those that trap while the module starts or allocates.
fn restricted(linker: &mut Linker<Host>, module: &'static str) -> wasmtime::Result<()> {
    linker.func_wrap(
        module,
        "fd_read",
        |guest: Guest<'_>, _: u32, _: u32, _: u32, _: u32| -> wasmtime::Result<u32> {
            guard(&guest, "fd_read").map(|()| ENOSYS)
        },
    )?;
    linker.func_wrap(
        module,
        "fd_seek",
        |guest: Guest<'_>, _: u32, _: u64, _: u32, _: u32| -> wasmtime::Result<u32> {
            guard(&guest, "fd_seek").map(|()| 0)
        },
    )?;
    linker.func_wrap(
        module,
        "fd_close",
        |guest: Guest<'_>, _: u32| -> wasmtime::Result<u32> {
            guard(&guest, "fd_close").map(|()| 0)
        },
    )?;
    linker.func_wrap(
        module,
        "path_open",
        |guest: Guest<'_>,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u64,
         _: u64,
         _: u32,
         _: u32|
         -> wasmtime::Result<u32> { guard(&guest, "path_open").map(|()| ENOENT) },
    )?;
    linker.func_wrap(
        module,
        "sched_yield",
        |guest: Guest<'_>| -> wasmtime::Result<u32> { guard(&guest, "sched_yield").map(|()| 0) },
    )?;
    linker.func_wrap(
        module,
        "proc_raise",
        |guest: Guest<'_>, _: u32| -> wasmtime::Result<u32> {
            guard(&guest, "proc_raise").map(|()| ENOSYS)
        },
    )?;
    // As in Envoy it returns, which is told to nobody who does not ask.
    linker.func_wrap(
        module,
        "proc_exit",
        |guest: Guest<'_>, code: u32| -> wasmtime::Result<()> {
            guard(&guest, "proc_exit")?;
            let plugin = &guest.data().spec().name;
            tracing::debug!(target: "wasm", "plugin {plugin}: proc_exit({code}) is ignored");
            Ok(())
        },
    )?;
    Ok(())
}

fn output_only(fd: u32) -> u32 {
    if matches!(fd, 1 | 2) { 0 } else { EBADF }
}

fn write_u32(guest: &mut Guest<'_>, at: u32, value: u32) -> Answer {
    let memory = memory(guest)?;
    put(memory.data_mut(guest), at, &value.to_le_bytes())?;
    Ok(0)
}

fn write_u64(guest: &mut Guest<'_>, at: u32, value: u64) -> Answer {
    let memory = memory(guest)?;
    put(memory.data_mut(guest), at, &value.to_le_bytes())?;
    Ok(0)
}

fn write_two(guest: &mut Guest<'_>, a: u32, a_value: u32, b: u32, b_value: u32) -> Answer {
    write_u32(guest, a, a_value)?;
    write_u32(guest, b, b_value)
}

fn nothing_received(guest: &mut Guest<'_>, out: u32, out_flags: u32) -> Answer {
    write_u32(guest, out, 0)?;
    let memory = memory(guest)?;
    put(memory.data_mut(guest), out_flags, &[0, 0])?;
    Ok(ENOTSUP)
}

/// Number of variables, and bytes of all `NAME=value` with their NULs.
fn environment_size(host: &Host) -> (u32, u32) {
    let environment = &host.env.vm.environment;
    let bytes: usize = environment
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    (
        u32::try_from(environment.len()).unwrap_or(0),
        u32::try_from(bytes).unwrap_or(0),
    )
}

fn environ_get(guest: &mut Guest<'_>, environ: u32, buffer: u32) -> Answer {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let (mut pointer, mut at) = (environ, buffer);
    for (name, value) in &host.env.vm.environment {
        put(data, pointer, &at.to_le_bytes())?;
        for part in [name.as_bytes(), b"=", value.as_bytes(), b"\0"] {
            put(data, at, part)?;
            at = at.saturating_add(u32::try_from(part.len()).unwrap_or(u32::MAX));
        }
        pointer = pointer.saturating_add(4);
    }
    Ok(0)
}

fn monotonic() -> u64 {
    static START: std::sync::OnceLock<tokio::time::Instant> = std::sync::OnceLock::new();
    // From a day before the first call, so that no guest sees zero.
    let start = START.get_or_init(tokio::time::Instant::now);
    let since = start.elapsed() + Duration::from_secs(86_400);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn random_get(guest: &mut Guest<'_>, at: u32, len: u32) -> Answer {
    if len > MAX_RANDOM {
        return Ok(EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let memory = memory(guest)?;
    let data = memory.data_mut(&mut *guest);
    let at = at as usize;
    let block = data
        .get_mut(at..at + len as usize)
        .ok_or(Status::InvalidMemoryAccess)?;
    // The kernel's, for keys and salts; 64 KiB at most, so that it does not wait.
    match std::fs::File::open("/dev/urandom")
        .and_then(|mut source| std::io::Read::read_exact(&mut source, block))
    {
        Ok(()) => Ok(0),
        Err(_) => Ok(ENOSYS),
    }
}

/// Output becomes log lines: standard output at info, standard error at error.
fn fd_write(guest: &mut Guest<'_>, fd: u32, iovs: u32, count: u32, out: u32) -> Answer {
    let level = match fd {
        1 => 2,
        2 => 4,
        _ => return Ok(EBADF),
    };
    if count > MAX_PIECES {
        return Ok(EINVAL);
    }
    let memory = memory(guest)?;
    let (message, written) = gathered(memory.data(&*guest), iovs, count)?;
    if written > 0 {
        let message = message.strip_suffix(b"\n").unwrap_or(&message);
        let text = String::from_utf8_lossy(message);
        let host = guest.data_mut();
        write_log(host, level, &text);
        if host.phase == Phase::Open && level == 4 && !text.is_empty() {
            // A panic message comes this way: it is shown with the trap.
            host.remember(&text);
        }
    }
    write_u32(guest, out, written)
}

/// What the parts have together, as much of it as one line takes, and how much it is.
fn gathered(data: &[u8], iovs: u32, count: u32) -> Result<(Vec<u8>, u32), Status> {
    let mut message = Vec::new();
    let number = |at: u32| -> Result<u32, Status> {
        let bytes = range(data, at, 4)?;
        Ok(u32::from_le_bytes(
            bytes.try_into().map_err(|_| Status::InvalidMemoryAccess)?,
        ))
    };
    let mut written = 0u32;
    for index in 0..count {
        let entry = iovs
            .checked_add(index.checked_mul(8).ok_or(Status::InvalidMemoryAccess)?)
            .ok_or(Status::InvalidMemoryAccess)?;
        let (at, len) = (number(entry)?, number(entry.saturating_add(4))?);
        if len == 0 {
            // Its place is not looked at.
            continue;
        }
        let part = range(data, at, len)?;
        written = written.saturating_add(u32::try_from(part.len()).unwrap_or(u32::MAX));
        let room = MAX_MESSAGE - message.len();
        message.extend_from_slice(&part[..part.len().min(room)]);
    }
    Ok((message, written))
}

fn fd_fdstat_get(guest: &mut Guest<'_>, fd: u32, out: u32) -> Answer {
    if !matches!(fd, 1 | 2) {
        return Ok(EBADF);
    }
    // Envoy: of an unknown kind, no flags, the right to write; and a place that is none is no error.
    let mut stat = [0; 24];
    stat[8] = 64;
    let memory = memory(guest)?;
    let _ = put(memory.data_mut(guest), out, &stat);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_parts_is_one_line_of_the_length_of_one() {
        let mut data = vec![b'x'; 256 << 10];
        let parts = [(100u32, 1u32), (64, MAX_MESSAGE as u32 - 1), (64, 70_000)];
        for (entry, (at, len)) in data.chunks_exact_mut(8).zip(parts) {
            entry[..4].copy_from_slice(&at.to_le_bytes());
            entry[4..].copy_from_slice(&len.to_le_bytes());
        }
        let (message, written) = gathered(&data, 0, 2).expect("in memory");
        assert_eq!(
            (message.len(), written as usize),
            (MAX_MESSAGE, MAX_MESSAGE)
        );
        let (message, written) = gathered(&data, 0, 3).expect("in memory");
        assert_eq!(message, vec![b'x'; MAX_MESSAGE]);
        assert_eq!(written as usize, MAX_MESSAGE + 70_000, "it was taken");
        let (message, written) = gathered(&data, 8, 2).expect("in memory");
        assert_eq!(message.len(), MAX_MESSAGE, "a part is cut");
        assert_eq!(written as usize, MAX_MESSAGE - 1 + 70_000);
    }
}
