//! What is only asked for, by filters that do not serve yet.

use super::*;

/// Asks for `new` until it is there, in builds whose filters wait: those with `old` serve.
pub(super) async fn ask_beside(
    bench: &Bench,
    old: &PluginSpec,
    new: &Arc<PluginSpec>,
    done: impl Fn(&Resolution) -> bool,
) -> Resolution {
    let ask = || {
        let resolution = bench.plugins.ask("slot", new);
        serve(bench, old);
        resolution
    };
    bench.again(ask, done).await
}

fn serve(bench: &Bench, spec: &PluginSpec) {
    bench.plugins.settle(&[("slot".into(), spec.key())].into());
}

fn status(bench: &Bench, spec: &PluginSpec) -> Option<PluginStatus> {
    let mut statuses = bench.plugins.status().into_iter();
    statuses.find(|status| status.key == spec.key())
}

#[tokio::test]
async fn what_is_only_asked_for_takes_no_slot() {
    let bench = Bench::new(None);
    let old = spec(config(guest("add-header"), ""));
    let serving = bench.ready(&old).await;
    let new = spec(config(guest("add-header"), "next"));
    let ready = |resolution: &Resolution| matches!(resolution, Resolution::Ready(_));
    ask_beside(&bench, &old, &new, ready).await;
    for spec in [&old, &new] {
        let status = status(&bench, spec).expect("kept");
        assert_eq!(status.state, State::Live);
        assert_eq!(status.slots, ["slot"]);
    }
    let live = bench.plugins.serving("slot").expect("served");
    assert!(Arc::ptr_eq(&live, &serving));
    // Its successor waits still, in this build too; those that serve are built anew.
    bench.plugins.ask("slot", &new);
    let Resolution::Ready(again) = bench.plugins.ask("slot", &old) else {
        panic!("it has served all the while");
    };
    assert!(Arc::ptr_eq(&again, &serving));
    serve(&bench, &old);
    assert!(status(&bench, &new).is_some());
    // Nobody waits any more.
    serve(&bench, &old);
    assert!(status(&bench, &new).is_none());
    assert_eq!(status(&bench, &old).expect("kept").slots, ["slot"]);
}

#[tokio::test]
async fn where_nothing_serves_what_was_ready_stands_in_for_what_fails() {
    let bench = Bench::new(None);
    let good = spec(config(guest("queue"), ""));
    let bad = spec(config(guest("queue"), "no"));
    for (spec, state) in [(&good, State::Live), (&bad, State::Failed)] {
        let ask = || {
            let resolution = bench.plugins.ask("slot", spec);
            bench.plugins.settle(&BTreeSet::new());
            resolution
        };
        let told = |_: &Resolution| status(&bench, spec).expect("asked for").state == state;
        bench.again(ask, told).await;
    }
    let Resolution::Previous(plugin) = bench.plugins.ask("slot", &bad) else {
        panic!("nothing stands in");
    };
    serve(&bench, &bad);
    let serving = bench.plugins.serving("slot").expect("served");
    assert!(Arc::ptr_eq(&serving, &plugin) && serving.spec().key() == good.key());
    // Its place is gone, and so is what stood in.
    bench.plugins.settle(&BTreeSet::new());
    bench.plugins.settle(&BTreeSet::new());
    assert!(status(&bench, &bad).is_none() && bench.plugins.serving("slot").is_none());
}

/// A host where this version serves, and its successors are tried.
async fn trying(old: &Arc<PluginSpec>) -> Bench {
    let bench = Bench::with_defaults("rollout: {share_percent: 10}");
    bench.ready(old).await;
    bench
}

fn on_trial(resolution: &Resolution) -> bool {
    matches!(resolution, Resolution::Trial(..))
}

#[tokio::test]
async fn a_trial_ends_with_its_last_place_though_another_waits_with_the_version() {
    let old = spec(config(guest("add-header"), ""));
    let bench = trying(&old).await;
    let new = spec(config(guest("add-header"), "next"));
    ask_beside(&bench, &old, &new, on_trial).await;
    let build = |first: &PluginSpec, second: &PluginSpec| {
        let asked = [("slot".into(), first.key()), ("other".into(), second.key())];
        bench.plugins.settle(&asked.into());
    };
    bench.plugins.ask("slot", &new);
    bench.plugins.ask("other", &old);
    build(&new, &old);
    let told = status(&bench, &new).expect("kept");
    assert_eq!((told.state, told.trial.is_some()), (State::Trial, true));
    bench.plugins.ask("slot", &old);
    bench.plugins.ask("other", &new);
    build(&old, &old);
    let told = status(&bench, &new).expect("it is waited with");
    assert_eq!((told.state, told.trial), (State::Live, None));
    assert_eq!(bench.plugins.rollout("test", RolloutCommand::Promote), 0);
}

#[tokio::test]
async fn a_trial_begins_when_its_filters_serve() {
    let old = spec(config(guest("add-header"), ""));
    let bench = trying(&old).await;
    let new = spec(config(guest("add-header"), "next"));
    ask_beside(&bench, &old, &new, on_trial).await;
    let told = status(&bench, &new).expect("kept");
    assert_eq!((told.state, told.trial), (State::Live, None));
    assert_eq!(bench.plugins.rollout("test", RolloutCommand::Promote), 0);
    assert!(on_trial(&bench.plugins.ask("slot", &new)));
    serve(&bench, &new);
    let told = status(&bench, &new).expect("kept");
    assert_eq!(told.state, State::Trial);
    assert!(told.trial.is_some());
    assert_eq!(bench.plugins.rollout("test", RolloutCommand::Promote), 1);
}
