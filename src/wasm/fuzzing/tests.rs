//! The fuzzers' bodies on their seeds, and on what chance makes of these: the same in every run. `PLENIPO_FUZZ_SECONDS`
//! gives each body so much time instead of a number of inputs.

use tokio::time::Instant;

use super::*;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .expect("the seeds")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let seeds: Vec<_> = paths
        .iter()
        .map(|path| std::fs::read(path).expect("a file"))
        .collect();
    assert!(seeds.len() > 3, "{folder}");
    seeds
}

/// A seed with a few of its bytes changed, cut, or taken from another.
fn changed(seeds: &[Vec<u8>], chance: &mut fastrand::Rng) -> Vec<u8> {
    let mut input = chance.choice(seeds).expect("there are some").clone();
    for _ in 0..chance.usize(1..6) {
        let at = chance.usize(0..=input.len());
        match chance.u8(0..5) {
            0 => input.truncate(at),
            1 => input.insert(at, chance.u8(..)),
            2 => {
                let other = chance.choice(seeds).expect("there are some");
                let from = chance.usize(0..=other.len());
                let to = (from + chance.usize(0..32)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = chance.u8(..);
                }
            }
        }
    }
    input
}

fn run(target: &str, body: fn(&[u8]), inputs: usize) {
    let seeds = seeds(target);
    for seed in &seeds {
        body(seed);
    }
    let seconds = std::env::var("PLENIPO_FUZZ_SECONDS").ok();
    let limit = seconds.map(|text| Duration::from_secs(text.parse().expect("seconds")));
    let mut chance = fastrand::Rng::with_seed(match limit {
        // Longer runs are for what has not been tried yet.
        Some(_) => fastrand::u64(..),
        None => 7,
    });
    let begin = Instant::now();
    let mut count = 0;
    while limit.map_or(count < inputs, |limit| begin.elapsed() < limit) {
        let input = changed(&seeds, &mut chance);
        let result = std::panic::catch_unwind(|| body(&input));
        assert!(result.is_ok(), "{target} fails on {input:02x?}");
        count += 1;
    }
    println!("{target}: {count} inputs in {:?}", begin.elapsed());
}

#[test]
fn no_form_of_a_map_breaks_its_reader() {
    run("pairs", pairs, 20_000);
}

#[test]
fn no_calls_break_the_host() {
    run("hostcalls", hostcalls, 2_000);
}

#[test]
fn no_code_breaks_its_loading() {
    run("module", module, 300);
}
