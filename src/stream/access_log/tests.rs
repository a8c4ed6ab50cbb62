//! Tests of `stream::access_log`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::sink::filesystem;
use super::*;
use crate::base::Shards;
use crate::config::access_log::AccessLogSink;
use crate::telemetry::metrics::{Registry, StatSet};

fn registry() -> Registry {
    Registry::new(Shards::for_workers(1))
}

/// Nothing is flushed but on demand.
fn lazy() -> SinkOptions {
    SinkOptions {
        flush_interval: Duration::from_secs(3600),
        flush_size: 1 << 20,
    }
}

fn stats(registry: &Registry) -> Arc<StatSet> {
    registry
        .sets()
        .into_iter()
        .find(|set| set.prefix() == "filesystem.")
        .expect("registered")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("readable")
}

#[test]
fn the_same_path_is_one_writer_and_lines_keep_their_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.log");
    let registry = registry();
    let sinks = Sinks::new(lazy(), &registry);
    let target = AccessLogSink::File(path.clone());
    let one = sinks.open(&target).expect("opened");
    let two = sinks.open(&target).expect("opened");
    assert!(Arc::ptr_eq(&one, &two));
    one.write(b"0\n");
    // The writer has been woken by the first line: it is done with it then.
    sinks.flush();
    for line in 1..100 {
        let sink = if line % 2 == 0 { &one } else { &two };
        sink.write(format!("{line}\n").as_bytes());
    }
    assert_eq!(read(&path), "0\n", "buffered");
    sinks.flush();
    let expected: String = (0..100).map(|line| format!("{line}\n")).collect();
    assert_eq!(read(&path), expected);
    let stats = stats(&registry);
    assert_eq!(stats.value(filesystem::WRITE_BUFFERED), 100);
    assert_eq!(stats.value(filesystem::WRITE_COMPLETED), 2);
    assert_eq!(stats.value(filesystem::WRITE_TOTAL_BUFFERED), 0);
}

#[test]
fn a_reopened_file_is_a_new_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.log");
    let sinks = Sinks::new(lazy(), &registry());
    let sink = sinks
        .open(&AccessLogSink::File(path.clone()))
        .expect("opened");
    sink.write(b"before\n");
    sinks.flush();
    let rotated = folder.path().join("a.log.1");
    std::fs::rename(&path, &rotated).expect("renamed");
    sink.write(b"still the old file\n");
    sinks.flush();
    sinks.reopen();
    sink.write(b"after\n");
    sinks.flush();
    assert_eq!(read(&rotated), "before\nstill the old file\n");
    assert_eq!(read(&path), "after\n");
}

#[test]
fn what_is_buffered_is_written_when_everything_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.log");
    let sinks = Sinks::new(lazy(), &registry());
    let sink = sinks
        .open(&AccessLogSink::File(path.clone()))
        .expect("opened");
    sink.write(b"last\n");
    drop(sink);
    drop(sinks);
    assert_eq!(read(&path), "last\n");
}

#[test]
fn a_sink_that_nobody_holds_is_closed_after_its_last_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.log");
    let sinks = Sinks::new(lazy(), &registry());
    let sink = sinks
        .open(&AccessLogSink::File(path.clone()))
        .expect("opened");
    let held = Arc::downgrade(&sink);
    sink.write(b"line\n");
    drop(sink);
    sinks.flush();
    assert_eq!(read(&path), "line\n");
    assert!(held.upgrade().is_none());
}

#[test]
fn a_stalled_device_costs_lines_and_no_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = registry();
    let sinks = Sinks::new(
        SinkOptions {
            flush_interval: Duration::from_secs(3600),
            flush_size: usize::MAX,
        },
        &registry,
    );
    let sink = sinks
        .open(&AccessLogSink::File(folder.path().join("a.log")))
        .expect("opened");
    // The first line is written at once; nothing after it.
    sink.write(b"first\n");
    sinks.flush();
    let line = vec![b'x'; 1 << 20];
    for _ in 0..20 {
        sink.write(&line);
    }
    let dropped = registry
        .metrics()
        .into_iter()
        .find(|metric| metric.name() == "access_log.lines_dropped")
        .expect("registered");
    assert_eq!(dropped.value(), 4);
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error() {
    let sinks = Sinks::new(lazy(), &registry());
    let target = AccessLogSink::File("/nonexistent/folder/a.log".into());
    assert!(sinks.open(&target).is_err());
}

#[test]
fn standard_output_has_one_writer_under_both_names() {
    let sinks = Sinks::new(lazy(), &registry());
    let by_path = sinks.open(&AccessLogSink::File("/dev/stdout".into()));
    let by_kind = sinks.open(&AccessLogSink::Stdout);
    assert!(Arc::ptr_eq(
        &by_path.expect("opened"),
        &by_kind.expect("opened")
    ));
}
