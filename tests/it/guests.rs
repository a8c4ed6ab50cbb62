//! The guests of `tests/guests`: each is text that compiles. What comes of it is left below `target/tmp`, for the suites
//! that work on the binary.

use std::path::Path;

#[test]
fn every_guest_is_text_that_compiles() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    std::fs::create_dir_all(&out).expect("a folder");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the guests") {
        let path = entry.expect("an entry").path();
        let module = wat::parse_file(&path).unwrap_or_else(|error| panic!("{error}"));
        let name = path.file_stem().expect("a name");
        std::fs::write(out.join(name).with_extension("wasm"), module).expect("a file");
        count += 1;
    }
    assert!(count > 20, "{count} guests");
}
