//! Walks through scripted filters.

use super::testing::{chain, seen as take};
use super::*;

fn poll(chain: &mut ConnectionFilters) -> Option<Request> {
    chain.poll_request(&Context::from_waker(std::task::Waker::noop()), true)
}

#[test]
fn a_filter_is_new_to_the_connection_when_those_before_it_let_it_pass() {
    let (mut chain, seen) = chain(&[&["continue"], &["stop"], &[]]);
    assert_eq!(chain.downstream(0, false), Walk::Stopped);
    assert_eq!(take(&seen), "a new, b new");
    // What arrives walks from the first; the one that stopped the connection goes on with the data.
    chain.held().push(Towards::Upstream, b"xy");
    assert_eq!(chain.downstream(0, false), Walk::Passed);
    assert_eq!(
        take(&seen),
        "a down 2 false, b down 2 false, c new, c down 2 false"
    );
}

#[test]
fn nothing_goes_on_where_there_is_no_room() {
    let (mut chain, _seen) = chain(&[&["stop"]]);
    assert_eq!(chain.downstream(0, false), Walk::Stopped);
    chain.held.handle(0).go_on();
    let cx = Context::from_waker(std::task::Waker::noop());
    assert_eq!(chain.poll_request(&cx, false), None);
    // A close needs none.
    chain.held.handle(0).close("why");
    assert_eq!(chain.poll_request(&cx, false), Some(Request::Close("why")));
    assert_eq!(chain.poll_request(&cx, true), Some(Request::GoOn(1)));
}

#[test]
fn what_one_filter_stops_is_shown_again_to_those_before_it() {
    let (mut chain, seen) = chain(&[&[], &["continue", "stop", "stop"]]);
    assert_eq!(chain.downstream(0, false), Walk::Passed);
    take(&seen);
    chain.held().push(Towards::Upstream, b"xy");
    assert_eq!(chain.downstream(0, false), Walk::Stopped);
    chain.held().push(Towards::Upstream, b"z");
    assert_eq!(chain.downstream(0, true), Walk::Stopped);
    assert_eq!(
        take(&seen),
        "a down 2 false, b down 2 false, a down 3 true, b down 3 true"
    );
    // It asks to go on later: the walk begins behind it.
    chain.held.handle(1).go_on();
    assert_eq!(poll(&mut chain), Some(Request::GoOn(2)));
    assert_eq!(chain.downstream(2, true), Walk::Passed);
    assert_eq!(chain.held().take(Towards::Upstream), "xyz");
    assert_eq!((take(&seen), poll(&mut chain)), (String::new(), None));
}

#[test]
fn going_on_within_a_callback_overrides_its_answer() {
    let (mut chain, seen) = chain(&[&["go on", "go on"], &[]]);
    assert_eq!(chain.downstream(0, false), Walk::Passed);
    chain.held().push(Towards::Upstream, b"x");
    assert_eq!(chain.downstream(0, false), Walk::Passed);
    assert_eq!(take(&seen), "a new, b new, a down 1 false, b down 1 false");
    assert_eq!(poll(&mut chain), None);
}

#[test]
fn a_filter_may_change_what_the_next_one_sees() {
    let (mut chain, seen) = chain(&[&["continue", "longer"], &[]]);
    chain.held().push(Towards::Upstream, b"x");
    assert_eq!(chain.downstream(0, false), Walk::Passed);
    assert_eq!(take(&seen), "a new, a down 1 false, b new, b down 6 false");
}

#[test]
fn data_to_the_client_walk_the_other_way() {
    let (mut chain, seen) = chain(&[&[], &["stop"]]);
    chain.held().push(Towards::Downstream, b"xy");
    assert_eq!(chain.upstream(false), Walk::Stopped);
    chain.held().push(Towards::Downstream, b"z");
    assert_eq!(chain.upstream(true), Walk::Passed);
    assert_eq!(take(&seen), "b up 2 false, b up 3 true, a up 3 true");
}

#[test]
fn a_close_ends_the_walk_and_is_told_once() {
    let (mut chain, seen) = chain(&[&["close"], &[]]);
    assert_eq!(chain.downstream(0, false), Walk::Close("because"));
    chain.closed(Peer::Local);
    chain.closed(Peer::Remote);
    assert_eq!(take(&seen), "a new, a closed Local, b closed Local");
    chain.held.handle(1).close("late");
    assert_eq!(poll(&mut chain), Some(Request::Close("late")));
}

#[test]
fn a_plugin_that_fails_while_it_holds_the_connection_ends_it() {
    let (mut chain, _) = chain(&[&["stop"], &[]]);
    chain.held.handle(0).lose();
    // It holds nothing back yet: its next callback will tell.
    assert_eq!(poll(&mut chain), None);
    assert_eq!(chain.downstream(0, false), Walk::Stopped);
    chain.held.handle(0).lose();
    assert_eq!(poll(&mut chain), Some(Request::Close("")));
}
