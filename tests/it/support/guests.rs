//! Guests of `tests/guests`, and some made from them.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Differs in each run: nothing of an earlier one is in a cache under it.
pub static RUN: LazyLock<String> = LazyLock::new(|| {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    format!("r{}", now.expect("after 1970").as_nanos())
});

fn path(name: &str) -> String {
    format!("{}/tests/guests/{name}.wat", env!("CARGO_MANIFEST_DIR"))
}

/// A module of `tests/guests`.
pub fn guest(name: &str) -> Vec<u8> {
    wat::parse_file(path(name)).expect("valid text")
}

/// Adds `x-guest: <version>` to responses. It is another module in each test and each run: the proxies of this machine share a
/// folder of compiled modules.
pub fn marker(test: &str, version: u8) -> Vec<u8> {
    let text = std::fs::read_to_string(path("add-header")).expect("the guest is there");
    let run = &*RUN;
    let name = format!("x-guest{version}\") (data (i32.const 4096) \"{test} {run}");
    wat::parse_str(text.replace("x-guest1", &name)).expect("valid text")
}
