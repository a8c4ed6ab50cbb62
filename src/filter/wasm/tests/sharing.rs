//! Plugins that share a VM, and those that do not.

use super::*;

#[tokio::test]
async fn plugins_of_one_key_are_root_contexts_of_one_vm_in_envoys_order() {
    let bench = Bench::new();
    let a = bench.plugin_at("a", rooted("A", "x")).await;
    let b = bench.plugin_at("b", rooted("B", "y")).await;
    assert_eq!(vms(&bench), 1);
    let began = shared(&bench, "roots").await;
    assert_eq!(began, "C1Ax V1A F1Ax C2By V2B F2By ");
    let (a, b) = (bench.chain_of(Some(a), None), bench.chain_of(Some(b), None));
    assert_eq!(b.get("/").await.status, 200);
    assert_eq!(a.get("/").await.status, 200);
    let served = wrote(&bench, &began, "X4A ").await;
    assert_eq!(served, "C3B H3B L3B D3B X3B C4A H4A L4A D4A X4A ");
}

#[tokio::test]
async fn another_configuration_is_another_root_context_and_the_old_one_leaves_after_its_streams() {
    let bench = Bench::new();
    let old = bench.chain(rooted("A", "w")).await;
    let held = {
        let (filters, stream) = (
            Arc::clone(&old.filters),
            old.stream(RequestHead::new(Method::GET, "h", "/")),
        );
        let run = filters.run(Arc::clone(&stream), Body::empty(), Arc::new(()));
        OwnedTask::spawn("held", async move {
            let _ = run.await;
        })
    };
    let began = wrote(&bench, "", "H2A ").await;
    assert_eq!(began, "C1Aw V1A F1Aw C2A H2A ");
    let new = bench.chain(rooted("A", "x")).await;
    drop(old);
    assert_eq!(new.get("/").await.status, 200);
    let swapped = wrote(&bench, &began, "X4A ").await;
    assert_eq!(swapped, "C3Ax V3A F3Ax C4A H4A L4A D4A X4A ");
    assert_eq!(vms(&bench), 1);
    drop(held);
    let gone = wrote(&bench, &format!("{began}{swapped}"), "X1A ").await;
    assert_eq!(gone, "L2A D2A X2A D1A X1A ");
}

#[tokio::test]
async fn a_root_context_that_is_not_done_leaves_when_it_says_so() {
    let bench = Bench::new();
    drop(bench.plugin(rooted("A", "p")).await);
    let stays = bench.plugin(rooted("A", "x")).await;
    let all = wrote(&bench, "", "X1A ").await;
    assert_eq!(all, "C1Ap V1A F1Ap C2Ax V2A F2Ax D1A T1A X1A ");
    drop(stays);
}

#[tokio::test]
async fn vms_are_not_shared_where_that_is_switched_off_or_their_keys_differ() {
    let isolated =
        Bench::with(|options| options.settings.defaults.vm_sharing = VmSharing::Isolated);
    let held = [
        isolated.plugin_at("a", rooted("A", "x")).await,
        isolated.plugin_at("b", rooted("B", "x")).await,
    ];
    assert_eq!(vms(&isolated), 2);
    drop(held);
    let bench = Bench::new();
    let mut held = vec![bench.plugin_at("a", rooted("A", "x")).await];
    for (slot, change) in [
        (
            "id",
            &(|vm: &mut pb_wasm::VmConfig| vm.vm_id = "other".to_owned())
                as &dyn Fn(&mut pb_wasm::VmConfig),
        ),
        ("configuration", &|vm: &mut pb_wasm::VmConfig| {
            vm.configuration = Some(pb::pack(&"other".to_owned()));
        }),
        ("environment", &|vm: &mut pb_wasm::VmConfig| {
            vm.environment_variables = Some(pb_wasm::EnvironmentVariables {
                host_env_keys: Vec::new(),
                key_values: [("k".to_owned(), "v".to_owned())].into(),
            });
        }),
    ] {
        let mut config = rooted("A", "x");
        if let Some(pb_wasm::plugin_config::Vm::VmConfig(vm)) = &mut config.vm {
            change(vm);
        }
        held.push(bench.plugin_at(slot, config).await);
    }
    assert_eq!(vms(&bench), 4);
}

#[tokio::test]
async fn who_is_slow_or_refuses_to_configure_harms_no_vm_in_use() {
    let bench =
        Bench::with(|options| options.settings.defaults.callback_hard = Duration::from_millis(20));
    let first = bench.plugin_at("a", rooted("A", "x")).await;
    let slow = bench.plugin_at("slow", rooted("S", "s")).await;
    assert_eq!(vms(&bench), 2, "the slow one is by itself");
    assert!(!Arc::ptr_eq(
        &first.place().expect("a VM").vm,
        &slow.place().expect("a VM").vm
    ));
    let refused = spec(rooted("N", "n"));
    let mut changed = bench.plugins.changed();
    let error = loop {
        match bench.plugins.resolve("n", &refused) {
            Resolution::Failed(error) => break error,
            Resolution::Pending => changed.changed().await.expect("the host lives"),
            other => panic!("{other:?}"),
        }
    };
    assert!(
        error.contains("proxy_on_configure returned false"),
        "{error}"
    );
    assert!(first.place().is_some());
    assert_eq!(bench.status(LifeState::Live).expect("live").vms[0].traps, 0);
}
