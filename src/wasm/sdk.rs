//! What a module was written with: its `producers` section, or else a guess by what it holds.

/// The sections of a module's binary form that are looked at.
const MAX_SECTIONS: usize = 1000;

/// What the module says, or gives away.
pub(crate) fn of(module: &[u8]) -> Option<String> {
    producers(module).or_else(|| {
        // Stripped modules keep the places of their panics.
        let rust = memchr::memmem::find(module, b"/rustc/").is_some();
        rust.then(|| "Rust (by its panic messages)".to_owned())
    })
}

/// As the compiler says it, such as `Rust; rustc 1.95.0`. `None` where it says nothing.
fn producers(module: &[u8]) -> Option<String> {
    let mut rest = Reader(module.get(8..)?);
    for _ in 0..MAX_SECTIONS {
        let id = rest.byte()?;
        let size = rest.number()?;
        let mut section = Reader(rest.take(size)?);
        if id == 0 && section.text()? == "producers" {
            return fields(&mut section);
        }
    }
    None
}

fn fields(section: &mut Reader<'_>) -> Option<String> {
    let (mut languages, mut tools) = (Vec::new(), Vec::new());
    for _ in 0..section.number()?.min(10) {
        let list = match section.text()? {
            "language" => &mut languages,
            "processed-by" | "sdk" => &mut tools,
            _ => &mut Vec::new(),
        };
        for _ in 0..section.number()?.min(20) {
            let (name, version) = (section.text()?, section.text()?);
            // Some write their commit into it.
            let version = version.split(" (").next().unwrap_or_default();
            list.push(format!("{name} {version}").trim_end().to_owned());
        }
    }
    languages.extend(tools);
    let text = languages.join("; ").replace(char::is_control, " ");
    (!text.is_empty()).then(|| text.chars().take(200).collect())
}

/// By names that one runtime alone exports.
pub(crate) fn guess<'a>(exports: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let mut found = None;
    for name in exports {
        match name {
            "__pin" | "__collect" => return Some("AssemblyScript (by its exports)"),
            "asyncify_start_unwind" | "tinygo_getCurrentStackPointer" | "go_scheduler" => {
                return Some("TinyGo (by its exports)");
            }
            "emscripten_stack_init" | "emscripten_stack_get_end" | "stackSave" => {
                found = Some("Emscripten (by its exports)");
            }
            _ => {}
        }
    }
    found
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// LEB128, of 32 bits.
    fn number(&mut self) -> Option<usize> {
        let mut number = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(number).ok();
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.number()?;
        std::str::from_utf8(self.take(len)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(body: &[u8]) -> Vec<u8> {
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        // A type section first.
        module.extend([1, 1, 0, 0]);
        module.push(u8::try_from(body.len() + 10).expect("short"));
        module.push(9);
        module.extend(b"producers");
        module.extend(body);
        module
    }

    #[test]
    fn compilers_say_what_they_are() {
        let module = section(
            b"\x02\x08language\x01\x04Rust\x00\x0cprocessed-by\x01\x05rustc\x0d1.95.0 (abc d)",
        );
        assert_eq!(producers(&module).as_deref(), Some("Rust; rustc 1.95.0"));
        assert_eq!(of(&module).as_deref(), Some("Rust; rustc 1.95.0"));
        let stripped = crate::wasm::testing::built("hello-v2");
        assert!(of(&stripped).is_some_and(|sdk| sdk.starts_with("Rust")));
    }

    #[test]
    fn what_is_no_section_is_nothing() {
        let module = section(b"\x02\x08language\x01\x04Rust\x00\x0cprocessed-by\x01\x05rustc\x01x");
        for len in 0..module.len() {
            assert_eq!(producers(&module[..len]), None, "{len}");
        }
        assert_eq!(producers(&section(b"\xff\xff\xff\xff\xff")), None);
        assert_eq!(producers(&section(b"\x00")), None);
        assert_eq!(producers(&crate::wasm::testing::guest("order")), None);
    }

    #[test]
    fn exports_give_some_away() {
        let guessed = |names: &[&str]| guess(names.iter().copied());
        assert_eq!(guessed(&["memory", "malloc"]), None);
        assert!(guessed(&["stackSave", "__pin"]).is_some_and(|sdk| sdk.starts_with("Assembly")));
        assert!(guessed(&["stackSave"]).is_some_and(|sdk| sdk.starts_with("Emscripten")));
    }
}
