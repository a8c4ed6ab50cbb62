//! `plenipo demo`: the main job, seen in one process. A tour under load, then a playground that watches its folder.

mod load;
mod screen;
mod servers;
mod stage;
mod tour;
mod watch;

use std::time::Duration;

use crate::cli::DemoArgs;
use load::Load;
use screen::Screen;
use stage::{Port, Stage};

/// How long Ctrl-C waits for requests in flight.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the demonstration until the tour is over (`--once`) or Ctrl-C.
///
/// # Errors
/// A step that did not hold, or a request that failed.
pub fn run(arguments: &DemoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(demonstrate(arguments));
    runtime.shutdown_background();
    result
}

async fn demonstrate(arguments: &DemoArgs) -> anyhow::Result<()> {
    let screen = Screen::new();
    screen.line("Plenipo: a control plane, two upstreams, a file server for plugins, and the proxy, in one process.");
    let stage = Stage::set(&screen).await?;
    screen.line(&format!(
        "The proxy was started as `plenipo -c {}` would start it, and is live.",
        stage.folder.join("bootstrap.yaml").display()
    ));
    let load = Load::start(stage.address(Port::Web), 8, Duration::from_millis(2));
    let moving = screen.follow(&load.counts);
    let toured = tokio::select! {
        toured = tour::tour(&stage, &screen, &load) => toured,
        stopped = told_to_stop() => {
            drain(&stage, &screen).await;
            stopped?;
            // Whoever asked for the tour alone wants to know that it was not all of it.
            anyhow::ensure!(!arguments.once, "the tour was interrupted");
            return Ok(());
        }
    };
    drop(moving);
    let (sent, failed) = (load.counts.sent(), load.counts.failed());
    screen.line(&format!(
        "\nThe tour sent {sent} requests; {failed} failed."
    ));
    if let Some(reason) = load.counts.first_failure() {
        screen.line(&format!("The first that failed: {reason}"));
    }
    toured?;
    anyhow::ensure!(failed == 0, "{failed} of {sent} requests failed");
    if arguments.once {
        drop(load);
        drain(&stage, &screen).await;
        return Ok(());
    }
    drop(load);
    stage.control_plane.overlay(Vec::new());
    invite(&stage, &screen);
    let _told = watch::follow(&stage.proxy.server.plugins, &screen);
    told_to_stop().await?;
    drain(&stage, &screen).await;
    Ok(())
}

/// Ends with SIGINT or SIGTERM. Either way what the demo wrote is cleared away.
async fn told_to_stop() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn invite(stage: &Stage, screen: &Screen) {
    let folder = stage.folder.display();
    let (web, admin) = (stage.address(Port::Web), stage.address(Port::Admin));
    screen.line(&format!(
        "\nNow it is yours. The folder is served again as it is on the disk.\n\n\
         \u{20}  curl -i http://{web}/            a request through the plugin\n\
         \u{20}  curl -i http://{web}/green       another route\n\
         \u{20}  curl http://{admin}/wasm           plugins: versions, states, errors\n\
         \u{20}  curl http://{admin}/config_dump    what was accepted, and what was refused\n\
         \u{20}  curl http://{admin}/stats?usedonly\n\n\
         Edit {folder}/routes.yaml, or:\n\n\
         \u{20}  cp {folder}/plugins/hello-v2.wasm {folder}/plugins/hello.wasm\n\n\
         What the proxy says to a change, and what becomes of plugins, appears here. Ctrl-C ends.\n"
    ));
}

/// Lets requests in flight end, as a drain does.
async fn drain(stage: &Stage, screen: &Screen) {
    screen.line("draining");
    let server = &stage.proxy.server;
    let _ = server.start_drain(false);
    server.stop_accepting(false).await;
    let idle = async {
        while active(stage) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(DRAIN, idle).await.is_err() {
        screen.line(&format!(
            "{} requests did not end within {DRAIN:?}",
            active(stage)
        ));
    }
}

/// Requests in flight.
fn active(stage: &Stage) -> u64 {
    use crate::generation::stats::http::DOWNSTREAM_RQ_ACTIVE;
    let sets = stage.proxy.server.metrics.sets();
    sets.iter()
        .filter(|set| set.family() == "http" && set.prefix() == "http.web.")
        .map(|set| set.value(DOWNSTREAM_RQ_ACTIVE))
        .sum()
}
