//! What becomes of plugins while the folder is watched, in lines for a person: what went live, what failed and why.

use std::collections::BTreeMap;
use std::time::Duration;

use super::screen::Screen;
use crate::base::task::OwnedTask;
use crate::wasm::Plugins;
use crate::wasm::spec::Digest;
use crate::wasm::status::{PluginStatus, State};

/// How often plugins are looked at: a person should not have to wait for the cause of what they see.
const INTERVAL: Duration = Duration::from_millis(100);

/// Tells of plugins until it is dropped.
pub(super) fn follow(plugins: &Plugins, screen: &Screen) -> OwnedTask {
    let (plugins, screen) = (plugins.clone(), screen.clone());
    OwnedTask::spawn("demo plugins", async move {
        let mut told = BTreeMap::new();
        news(&plugins.status(), &mut told);
        loop {
            tokio::time::sleep(INTERVAL).await;
            for line in news(&plugins.status(), &mut told) {
                screen.detail(&format!("plugin: {line}"));
            }
        }
    })
}

/// What is new since `told`, which is brought up to date.
fn news(
    statuses: &[PluginStatus],
    told: &mut BTreeMap<Digest, (State, Option<String>)>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for status in statuses {
        let now = (status.state, status.error.clone());
        let before = told.insert(status.key, now.clone());
        if before.as_ref() == Some(&now) {
            continue;
        }
        let digest = status.sha256.map(|sha256| sha256.to_string());
        let digest: String = digest.unwrap_or_default().chars().take(12).collect();
        let what = format!("{} {digest} is {}", status.name, status.state.as_str());
        match (&status.error, status.state) {
            (Some(error), _) => {
                let first = error.lines().next().unwrap_or_default();
                lines.push(format!("{what}: {first}"));
            }
            (None, State::Live | State::Failed) => lines.push(what),
            // On its way, or on its way out: the end will be told.
            (None, _) => {}
        }
    }
    told.retain(|key, _| statuses.iter().any(|status| status.key == *key));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(key: u8, state: State, error: Option<&str>) -> PluginStatus {
        PluginStatus {
            name: "hello".to_owned(),
            root_id: String::new(),
            vm_id: String::new(),
            key: Digest([key; 32]),
            sha256: Some(Digest([key; 32])),
            image: None,
            origin: String::new(),
            state,
            error: error.map(str::to_owned),
            slots: Vec::new(),
            vms: Vec::new(),
            history: Vec::new(),
            compile_time: None,
            unknown_imports: Vec::new(),
            trial: None,
            live: None,
        }
    }

    #[test]
    fn each_change_is_told_once_with_its_cause() {
        let mut told = BTreeMap::new();
        let live = status(1, State::Live, None);
        let lines = news(std::slice::from_ref(&live), &mut told);
        assert_eq!(lines, ["hello 010101010101 is live"]);
        let fetching = status(2, State::Fetching, None);
        assert!(news(&[live.clone(), fetching], &mut told).is_empty());
        let failed = status(2, State::Failed, Some("no module\n  0: deep inside"));
        let lines = news(&[live.clone(), failed.clone()], &mut told);
        assert_eq!(lines, ["hello 020202020202 is failed: no module"]);
        assert!(news(&[live, failed], &mut told).is_empty());
        let trapped = status(1, State::Live, Some("wasm trap: unreachable"));
        let lines = news(&[trapped], &mut told);
        assert_eq!(
            lines,
            ["hello 010101010101 is live: wasm trap: unreachable"]
        );
        assert_eq!(told.len(), 1);
    }
}
