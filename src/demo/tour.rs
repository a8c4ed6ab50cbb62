//! The steps of the tour. Each shows what it did, and fails where the proxy did otherwise.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::time::{Instant, sleep};

use super::load::{Answer, Client, Load};
use super::screen::Screen;
use super::stage::{Port, Stage};
use crate::pb;
use crate::wasm::PluginStatus;
use crate::xds::ResourceType;

/// How long a change may take to show before the step has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long each step's result stands before the next, for whoever watches.
const PAUSE: Duration = Duration::from_millis(700);

/// Walks through all steps.
///
/// # Errors
/// The first step that did not hold.
pub(super) async fn tour(stage: &Stage, screen: &Screen, load: &Load) -> anyhow::Result<()> {
    let mut tour = Tour {
        stage,
        screen,
        load,
        client: Client::new(stage.address(Port::Web)),
    };
    tour.routed(1).await.context("step 1")?;
    tour.plugin(2).await.context("step 2")?;
    let new = tour.new_version(3).await.context("step 3")?;
    tour.broken_inline(4, &new).await.context("step 4")?;
    tour.wrong_digest(5, &new).await.context("step 5")?;
    tour.route_and_endpoint(6, &new).await.context("step 6")?;
    Ok(())
}

struct Tour<'a> {
    stage: &'a Stage,
    screen: &'a Screen,
    load: &'a Load,
    client: Client,
}

impl Tour<'_> {
    async fn routed(&mut self, number: usize) -> anyhow::Result<()> {
        self.screen
            .step(number, "A request, routed by what the control plane said");
        for (path, wanted) in [
            ("/", "I am blue."),
            ("/green", "I am green."),
            ("/ping", "pong"),
        ] {
            let answer = self.get(path).await?;
            ensure!(
                answer.status == 200 && answer.body.trim() == wanted,
                "GET {path}: {} {}",
                answer.status,
                answer.body
            );
            self.screen.detail(&format!(
                "GET {path:<7} {}  {}",
                answer.status,
                answer.body.trim()
            ));
        }
        self.rest().await;
        Ok(())
    }

    async fn plugin(&mut self, number: usize) -> anyhow::Result<()> {
        self.screen.step(
            number,
            "A Wasm plugin, fetched by its URL and checked by its digest",
        );
        let answer = self.get("/").await?;
        ensure!(
            answer.header("x-hello").starts_with("v1"),
            "x-hello is {:?}",
            answer.header("x-hello")
        );
        self.screen
            .detail(&format!("x-hello: {}", answer.header("x-hello")));
        self.show_plugins(|_| true);
        self.rest().await;
        Ok(())
    }

    async fn new_version(&mut self, number: usize) -> anyhow::Result<pb::Any> {
        self.screen.step(
            number,
            "A new version of the plugin, pushed by ECDS while traffic flows",
        );
        let text = self
            .stage
            .file("plugin.yaml")?
            .replace("hello.wasm", "hello-v2.wasm");
        let new = self.resource(&text)?;
        let (sent, failed) = (self.load.counts.sent(), self.load.counts.failed());
        let pushed = Instant::now();
        self.stage.control_plane.overlay(vec![new.clone()]);
        let answer = self
            .until("/", |answer| answer.header("x-hello").starts_with("v2"))
            .await?;
        let took = pushed.elapsed();
        self.screen
            .detail(&format!("x-hello: {}", answer.header("x-hello")));
        // Fetched, verified, compiled, configured on every worker; the old version served meanwhile.
        sleep(Duration::from_millis(300)).await;
        self.screen.detail(&format!(
            "first reply of v2 {} ms after the push; {} requests meanwhile, {} failed",
            took.as_millis(),
            self.load.counts.sent() - sent,
            self.load.counts.failed() - failed
        ));
        self.rest().await;
        Ok(new)
    }

    async fn broken_inline(&mut self, number: usize, good: &pb::Any) -> anyhow::Result<()> {
        self.screen.step(
            number,
            "A plugin that panics when it is configured, pushed inline: refused",
        );
        let text = self.stage.file("plugin.yaml")?;
        let (head, _) = text
            .split_once("        remote:")
            .context("plugin.yaml has remote code")?;
        let inline = format!(
            "{head}        local:\n          inline_bytes: ${{base64:plugins/broken.wasm}}\n"
        );
        let broken = self.resource(&inline)?;
        let control_plane = self.stage.control_plane.control_plane();
        let type_url = ResourceType::Extension.type_url();
        while !control_plane.events().is_empty() && self.take_answer(type_url).await.is_some() {}
        self.stage.control_plane.overlay(vec![broken]);
        let refused = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(error) = control_plane.next_answer(type_url).await.error {
                    return error;
                }
            }
        });
        let text = refused.await.context("the plugin was not refused")?;
        self.screen.detail(&format!("NACK: {text}"));
        self.still_new().await?;
        self.stage.control_plane.overlay(vec![good.clone()]);
        self.rest().await;
        Ok(())
    }

    async fn take_answer(&self, type_url: &str) -> Option<()> {
        let next = self
            .stage
            .control_plane
            .control_plane()
            .next_answer(type_url);
        tokio::time::timeout(Duration::from_millis(1), next)
            .await
            .ok()
            .map(|_| ())
    }

    async fn wrong_digest(&mut self, number: usize, good: &pb::Any) -> anyhow::Result<()> {
        self.screen.step(
            number,
            "A plugin whose code does not have the digest it should: never goes live",
        );
        let zeros = "0".repeat(64);
        let text = self
            .stage
            .file("plugin.yaml")?
            .replace("${sha256:plugins/hello.wasm}", &zeros);
        let wrong = self.resource(&text)?;
        self.stage.control_plane.overlay(vec![wrong]);
        let begin = Instant::now();
        loop {
            let failed = |status: &PluginStatus| {
                status
                    .sha256
                    .is_some_and(|sha256| sha256.to_string() == zeros)
                    && status.error.is_some()
            };
            if self.stage.proxy.server.plugins.status().iter().any(failed) {
                self.show_plugins(failed);
                break;
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "/wasm does not tell of the wrong digest"
            );
            sleep(Duration::from_millis(20)).await;
        }
        self.still_new().await?;
        self.stage.control_plane.overlay(vec![good.clone()]);
        self.rest().await;
        Ok(())
    }

    async fn route_and_endpoint(&mut self, number: usize, plugin: &pb::Any) -> anyhow::Result<()> {
        self.screen.step(number, "A route and an endpoint changed");
        let routes = self
            .stage
            .file("routes.yaml")?
            .replace("name: default", "name: changed");
        let routes = self.resource(&routes)?;
        self.stage
            .control_plane
            .overlay(vec![plugin.clone(), routes.clone()]);
        let answer = self
            .until("/", |answer| answer.header("x-route") == "changed")
            .await?;
        self.screen
            .detail(&format!("x-route: {}", answer.header("x-route")));
        let green = self.stage.port(Port::Green);
        let moved = format!(
            "'@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n\
             cluster_name: blue\n\
             endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
             {{address: 127.0.0.1, port_value: {green}}}}}}}}}]}}]\n"
        );
        let moved = self.resource(&moved)?;
        self.stage
            .control_plane
            .overlay(vec![plugin.clone(), routes, moved]);
        let answer = self
            .until("/", |answer| answer.header("x-upstream") == "green")
            .await?;
        self.screen.detail(&format!(
            "GET /: {} (the endpoint of `blue` is now green's)",
            answer.body.trim()
        ));
        self.rest().await;
        Ok(())
    }

    /// The plugin of step 3 serves on.
    async fn still_new(&mut self) -> anyhow::Result<()> {
        let answer = self.get("/").await?;
        let said = answer.header("x-hello");
        ensure!(said.starts_with("v2"), "x-hello is {said:?}");
        self.screen
            .detail(&format!("still serving: x-hello: {said}"));
        Ok(())
    }

    fn show_plugins(&self, which: impl Fn(&PluginStatus) -> bool) {
        for status in self
            .stage
            .proxy
            .server
            .plugins
            .status()
            .iter()
            .filter(|status| which(status))
        {
            let digest = status.sha256.map(|sha256| sha256.to_string());
            let digest: String = digest.unwrap_or_default().chars().take(12).collect();
            let mut line = format!(
                "/wasm: {} {digest} {}, {} VMs",
                status.name,
                status.state.as_str(),
                status.vms.len()
            );
            if let Some(error) = &status.error {
                line.push_str(&format!(": {error}"));
            }
            self.screen.detail(&line);
        }
    }

    fn resource(&self, text: &str) -> anyhow::Result<pb::Any> {
        self.stage
            .control_plane
            .resource(text)
            .map_err(|error| anyhow::anyhow!(error))
    }

    async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.client
            .get(path)
            .await
            .map_err(|error| anyhow::anyhow!("GET {path}: {error}"))
    }

    /// Asks until an answer is as wanted.
    async fn until(
        &mut self,
        path: &str,
        wanted: impl Fn(&Answer) -> bool,
    ) -> anyhow::Result<Answer> {
        let begin = Instant::now();
        loop {
            let answer = self.get(path).await?;
            if wanted(&answer) {
                return Ok(answer);
            }
            if begin.elapsed() > PATIENCE {
                for status in self.stage.proxy.server.plugins.status() {
                    if let Some(error) = status.error {
                        bail!(
                            "no such answer within {PATIENCE:?}; plugin {}: {error}",
                            status.name
                        );
                    }
                }
                bail!(
                    "no such answer within {PATIENCE:?}; the last: {} {:?}",
                    answer.status,
                    answer.headers
                );
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn rest(&self) {
        sleep(PAUSE).await;
    }
}
