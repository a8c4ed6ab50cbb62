//! Which modules move, and what an instance is after it has.

use super::*;
use crate::wasm::testing::{built, guest};

fn is_portable(text: &str) -> bool {
    let module = wat::parse_str(text).expect("valid text");
    Portable::of(&module).is_some()
}

#[test]
fn a_module_moves_unless_its_instances_are_more_than_a_memory_and_numbers() {
    const MEMORY: &str = r#"(memory (export "memory") 1)"#;
    for rest in [
        "",
        "(global (mut i64) (i64.const 1)) (global funcref (ref.null func))",
        "(table 3 funcref) (func $f) (elem (i32.const 1) $f)",
        "(data $d \"abc\") (func (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)))",
        "(func (memory.copy (i32.const 0) (i32.const 1) (i32.const 1)))",
        "(table $t (export \"t\") 3 funcref) (func (drop (table.size $t)) (drop (table.get $t (i32.const 0))))",
    ] {
        assert!(is_portable(&format!("(module {MEMORY} {rest})")), "{rest}");
    }
    for rest in [
        "(global (mut funcref) (ref.null func))",
        "(func $f) (start $f)",
        "(data $d \"abc\") (func (data.drop $d))",
        "(elem $e func) (func (elem.drop $e))",
        "(table $t 3 funcref) (func (table.set $t (i32.const 0) (ref.null func)))",
        "(table $t 3 funcref) (func (drop (table.grow $t (ref.null func) (i32.const 1))))",
        "(table $t 3 funcref) (func (table.fill $t (i32.const 0) (ref.null func) (i32.const 1)))",
        "(table $t 3 funcref) (func (table.copy $t $t (i32.const 0) (i32.const 0) (i32.const 0)))",
        "(table $t 3 funcref) (elem $e func) (func (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 0)))",
        "(memory 1)",
        "(global (export \"plenipo:global:0\") i32 (i32.const 1))",
    ] {
        assert!(!is_portable(&format!("(module {MEMORY} {rest})")), "{rest}");
    }
    for whole in [
        "(module)",
        "(module (memory 1))",
        "(module (memory (export \"m\") 1))",
        "(module (memory (export \"memory\") 1 2 shared))",
        "(module (func (export \"memory\")))",
        "(module (import \"env\" \"memory\" (memory 1)) (export \"memory\" (memory 0)))",
        "(module (import \"env\" \"g\" (global i32)) (memory (export \"memory\") 1))",
    ] {
        assert!(!is_portable(whole), "{whole}");
    }
    assert!(Portable::of(b"\0asm\x01\0\0\0\x07\x05").is_none());
    // Nobody collects what a few kilobytes, unpacked, say there is.
    let exports = |count: u32| {
        let exports = (0..count).map(|number| format!("(export \"{number}\" (memory 0))"));
        let exports: String = exports.collect();
        is_portable(&format!("(module {MEMORY} {exports})"))
    };
    assert!(exports(MAX_ENTRIES - 1) && !exports(MAX_ENTRIES));
}

#[test]
fn what_the_rust_sdk_makes_moves() {
    for name in ["hello", "redact-json", "request-auth"] {
        assert!(Portable::of(&built(name)).is_some(), "{name}");
    }
}

/// A module with sections on both sides of its exports, instantiated as it is and as it moves.
#[test]
fn places_in_the_code_are_those_of_the_original() {
    let original = guest("counter");
    let portable = Portable::of(&original).expect("it moves");
    let begin = |module: &[u8]| {
        let mut payloads = Parser::new(0).parse_all(module);
        let code = payloads.find_map(|payload| match payload.expect("valid") {
            Payload::CodeSectionStart { range, .. } => Some(range.start),
            _ => None,
        });
        i64::try_from(code.expect("functions")).expect("small")
    };
    assert!(portable.shift > 0);
    assert_eq!(begin(&portable.bytes) - portable.shift, begin(&original));
    wasmparser::validate(&portable.bytes).expect("still valid");
}

#[test]
fn an_instance_goes_on_where_another_was() {
    let text = r#"(module
        (memory (export "memory") 1 4)
        (data (i32.const 5) "abc")
        (global $a (mut i32) (i32.const 7))
        (global $b i32 (i32.const 9))
        (global $c (mut f64) (f64.const 0.5))
        (func (export "run")
            (drop (memory.grow (i32.const 2)))
            (i32.store8 (i32.const 6) (i32.const 0))
            (i32.store8 (i32.const 66000) (i32.const 3))
            (i32.store8 (i32.const 196607) (i32.const 4))
            (global.set $a (i32.add (global.get $a) (global.get $b)))
            (global.set $c (f64.const -0)))
        (func (export "a") (result i32) (global.get $a))
        (func (export "c") (result f64) (global.get $c)))"#;
    let module = wat::parse_str(text).expect("valid text");
    let portable = Portable::of(&module).expect("it moves");
    let engine = wasmtime::Engine::default();
    let code = wasmtime::Module::new(&engine, &portable.bytes).expect("compiles");
    let make = |max: usize| {
        let limits = wasmtime::StoreLimitsBuilder::new().memory_size(max).build();
        let mut store = Store::new(&engine, limits);
        store.limiter(|limits| limits);
        let instance = Instance::new(&mut store, &code, &[]).expect("no imports");
        (store, instance)
    };
    let (mut store, instance) = make(1 << 20);
    let run = instance.get_typed_func::<(), ()>(&mut store, "run");
    run.expect("there").call(&mut store, ()).expect("no trap");

    // To another module it does not go.
    let text = r#"(module (memory (export "memory") 1) (global (mut i32) (i32.const 0)))"#;
    let another = Portable::of(&wat::parse_str(text).expect("valid text")).expect("it moves");
    let another = wasmtime::Module::new(&engine, &another.bytes).expect("compiles");
    let mut strange = Store::new(&engine, wasmtime::StoreLimits::default());
    let other = Instance::new(&mut strange, &another, &[]).expect("no imports");
    assert!(move_state((&mut store, &instance), (&mut strange, &other)).is_err());

    // Where there is no room it stays.
    let (mut narrow, other) = make(1 << 16);
    let moved = move_state((&mut store, &instance), (&mut narrow, &other));
    assert!(moved.is_err());

    let (mut new_store, new) = make(1 << 20);
    move_state((&mut store, &instance), (&mut new_store, &new)).expect("room");
    let bytes = |instance: &Instance, store: &mut Store<_>| {
        let memory = instance.get_memory(&mut *store, MEMORY).expect("there");
        memory.data(&*store).to_vec()
    };
    let moved = bytes(&new, &mut new_store);
    assert_eq!(moved.len(), 3 << 16);
    assert_eq!(&moved[5..8], b"a\0c");
    assert_eq!((moved[66_000], moved[196_607]), (3, 4));
    assert!(moved == bytes(&instance, &mut store));
    let a = new.get_typed_func::<(), i32>(&mut new_store, "a");
    let a = a.expect("there").call(&mut new_store, ()).expect("no trap");
    let c = new.get_typed_func::<(), f64>(&mut new_store, "c");
    let c = c.expect("there").call(&mut new_store, ()).expect("no trap");
    assert_eq!((a, c.to_bits()), (16, (-0.0_f64).to_bits()));
}
