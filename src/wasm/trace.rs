//! The last host calls of a VM, for whoever asks what a plugin did before it trapped.

use std::fmt;

/// So many are kept.
const KEPT: usize = 16;

/// A ring of host calls with the statuses that they returned.
#[derive(Debug)]
pub(crate) struct Trace {
    calls: [(&'static str, u32); KEPT],
    next: usize,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            calls: [("", 0); KEPT],
            next: 0,
        }
    }
}

impl Trace {
    #[inline]
    pub(crate) fn push(&mut self, name: &'static str, status: u32) {
        self.calls[self.next % KEPT] = (name, status);
        self.next = self.next.wrapping_add(1);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.calls[0].0.is_empty()
    }
}

/// Oldest first, without the prefix that all share: `get_property=1, log=0`.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for offset in 0..KEPT {
            let (name, status) = self.calls[self.next.wrapping_add(offset) % KEPT];
            if name.is_empty() {
                continue;
            }
            let name = name.strip_prefix("proxy_").unwrap_or(name);
            write!(f, "{separator}{name}={status}")?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_in_order() {
        let mut trace = Trace::default();
        assert!(trace.is_empty());
        assert_eq!(trace.to_string(), "");
        trace.push("proxy_log", 0);
        trace.push("fd_write", 8);
        assert!(!trace.is_empty());
        assert_eq!(trace.to_string(), "log=0, fd_write=8");
        for status in 0..40 {
            trace.push("proxy_get_property", status);
        }
        let text = trace.to_string();
        assert!(text.starts_with("get_property=24, "), "{text}");
        assert!(text.ends_with(", get_property=39"), "{text}");
    }
}
