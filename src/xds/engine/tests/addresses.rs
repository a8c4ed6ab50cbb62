//! Which listeners cannot be beside others.

use super::*;

/// A listener of this name at these ports, which answers without a control plane.
fn at(name: &str, ports: &[u16]) -> String {
    let address =
        |port: &u16| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    let more: Vec<_> = ports[1..]
        .iter()
        .map(|port| format!("{{address: {}}}", address(port)))
        .collect();
    let text = listener(name, "r", "").replace(
        "rds: {route_config_name: r, config_source: {ads: {}, initial_fetch_timeout: 5s}}",
        "route_config: {}",
    );
    let text = text.replace(&address(&0), &address(&ports[0]));
    format!("{text}additional_addresses: [{}]\n", more.join(", "))
}

/// The ports of what is served.
fn ports(side: &Side) -> Vec<String> {
    let listeners = side.snapshot.listeners.values();
    let shown = listeners.map(|listener| {
        let mut addresses = listener.addresses.iter().map(|address| {
            let address = address.to_string();
            address.trim_start_matches("127.0.0.1:").to_owned()
        });
        let first = addresses.next().into_iter().chain(addresses);
        format!("{}:{}", listener.name, first.collect::<Vec<_>>().join("+"))
    });
    shown.collect()
}

/// What is served after a first and a second response, and the names that the second was refused for.
fn after(delta: bool, first: &[String], second: &[String]) -> (Vec<String>, String) {
    let mut side = at_listeners(delta);
    side.respond(LDS, first);
    side.said();
    side.respond(LDS, second);
    let refused = side.stat("listener_manager.lds.update_rejected");
    let dump = side.engine.status().resources(LDS);
    let names = dump.iter().filter_map(|resource| {
        let error = resource.error.as_ref()?;
        let worded = format!(
            "error adding listener: '{}' has duplicate address '127.0.0.1:",
            resource.name
        );
        assert!(error.details.starts_with(&worded), "{}", error.details);
        Some(resource.name.to_string())
    });
    let names = names.collect::<Vec<_>>().join(" ");
    assert_eq!(refused, u64::from(!names.is_empty()));
    (ports(&side), names)
}

#[tokio::test]
async fn what_meets_a_listener_that_stays_is_refused() {
    let (a1, b2) = (at("a", &[1]), at("b", &[2]));
    for delta in [false, true] {
        let both = [a1.clone(), b2.clone()];
        let with = |second: &[String]| after(delta, &both, second);
        let (served, refused) = with(&[a1.clone(), at("b", &[1])]);
        assert_eq!((served.join(" "), &*refused), ("a:1 b:2".to_owned(), "b"));
        // Where each of the two is refused alone, both stay.
        let (served, refused) = with(&[a1.clone(), b2.clone(), at("c", &[3, 2]), at("d", &[4])]);
        assert_eq!(
            (served.join(" "), &*refused),
            ("a:1 b:2 d:4".to_owned(), "c")
        );
    }
}

#[tokio::test]
async fn who_keeps_its_address_comes_first() {
    let first = [at("b", &[2, 1])];
    let (served, refused) = after(false, &first, &[at("a", &[1]), at("b", &[1])]);
    assert_eq!((served.join(" "), &*refused), ("b:1".to_owned(), "a"));
}

#[tokio::test]
async fn of_two_that_come_together_the_second_is_refused() {
    let (served, refused) = after(false, &[], &[at("b", &[1]), at("a", &[2, 1])]);
    assert_eq!((served.join(" "), &*refused), ("b:1".to_owned(), "a"));
}

#[tokio::test]
async fn addresses_may_change_hands_in_any_order() {
    let first = [at("a", &[1]), at("b", &[2])];
    for second in [
        vec![at("a", &[2]), at("b", &[1])],
        vec![at("b", &[1]), at("a", &[2])],
    ] {
        let (served, refused) = after(false, &first, &second);
        assert_eq!((served.join(" "), &*refused), ("a:2 b:1".to_owned(), ""));
    }
    let (served, refused) = after(false, &first, &[at("c", &[1, 2])]);
    assert_eq!((served.join(" "), &*refused), ("c:1+2".to_owned(), ""));
}

#[tokio::test]
async fn who_is_refused_stays_in_the_way() {
    // `b` cannot go where `c` stays, so that `a` cannot go where `b` is.
    let first = [at("a", &[1]), at("b", &[2]), at("c", &[3])];
    let second = [at("a", &[2]), at("b", &[3]), at("c", &[3])];
    let (served, refused) = after(false, &first, &second);
    assert_eq!(
        (served.join(" "), &*refused),
        ("a:1 b:2 c:3".to_owned(), "a b")
    );
}

#[tokio::test]
async fn what_the_bootstrap_hides_has_no_address() {
    let mut side = Side::new(Options {
        cds: None,
        static_listeners: vec![parse_listener(&at("a", &[1]))],
        ..options(false)
    });
    side.respond(LDS, &[at("a", &[2])]);
    side.respond(LDS, &[at("a", &[2]), at("b", &[2]), at("c", &[1])]);
    assert_eq!(ports(&side).join(" "), "a:1 b:2");
    assert_eq!(side.stat("listener_manager.lds.update_rejected"), 1);
}

#[tokio::test]
async fn any_free_port_is_nobodys() {
    let (served, refused) = after(false, &[], &[at("a", &[0, 0]), at("b", &[0])]);
    assert_eq!((served.join(" "), &*refused), ("a:0+0 b:0".to_owned(), ""));
}
