//! Patterns of `matches`, whose compilation and search are bounded: no other clock stops a host function.
//!
//! A lazy DFA takes each byte once, at the cost of new states, and gives up where these are many. What `regex` would turn to
//! then looks at each state for each byte: that is for what is short.

use regex_automata::Input;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::pikevm::{self, PikeVM};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};

/// Bytes of a source: of a class of letters they become thousands before any other limit holds.
const LONGEST: usize = 8 << 10;
/// Bytes that the compiled pattern may take.
const MAX_SIZE: usize = 1 << 20;
/// Bytes that the states of the DFA may take. When they are full they are thrown away, once for free.
const STATES: usize = 1 << 20;
/// From then on so many bytes must come of each new one.
const BYTES_A_STATE: usize = 100;
/// States of the pattern times bytes of the text. With both of the above this is some 20 ms at worst.
const MOST: usize = 400 << 20;
/// Where each is looked at for each byte: as long.
const MOST_SLOWLY: usize = 2 << 20;

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    nfa: NFA,
    dfa: DFA,
    cache: Cache,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    /// It is none.
    #[error("{0}")]
    Source(String),
    /// It would take too long.
    #[error("it takes too long")]
    Slow,
}

impl Pattern {
    pub(super) fn compile(source: &str) -> Result<Self, PatternError> {
        let wrong = |reason: String| PatternError::Source(reason);
        if source.len() > LONGEST {
            return Err(wrong(format!("a pattern of more than {LONGEST} bytes")));
        }
        let limits = thompson::Config::new()
            .nfa_size_limit(Some(MAX_SIZE))
            .which_captures(WhichCaptures::None);
        let nfa = NFA::compiler().configure(limits).build(source);
        let nfa = nfa.map_err(|error| wrong(error.to_string()))?;
        let config = DFA::config()
            // It gives up at letters that are not of ASCII.
            .unicode_word_boundary(true)
            .cache_capacity(STATES)
            .skip_cache_capacity_check(true)
            .minimum_cache_clear_count(Some(1))
            .minimum_bytes_per_state(Some(BYTES_A_STATE));
        let dfa = DFA::builder().configure(config).build_from_nfa(nfa.clone());
        let dfa = dfa.map_err(|error| wrong(error.to_string()))?;
        let cache = dfa.create_cache();
        Ok(Self { nfa, dfa, cache })
    }

    /// True where it is somewhere in `text`.
    pub(super) fn is_in(&mut self, text: &str) -> Result<bool, PatternError> {
        let cost = self.nfa.states().len().saturating_mul(text.len());
        if cost > MOST {
            return Err(PatternError::Slow);
        }
        let input = Input::new(text).earliest(true);
        match self.dfa.try_search_fwd(&mut self.cache, &input) {
            Ok(found) => Ok(found.is_some()),
            Err(_) if cost > MOST_SLOWLY => Err(PatternError::Slow),
            Err(_) => {
                let slowly = PikeVM::new_from_nfa(self.nfa.clone());
                let slowly = slowly.map_err(|error| PatternError::Source(error.to_string()))?;
                let mut cache = pikevm::Cache::new(&slowly);
                Ok(slowly.is_match(&mut cache, input))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_where_regex_finds_it() {
        let texts = [
            "", "a", "ab", "xaby", "AB", "a\nb", "é", "aéb", "a b", "12-34", "ébé a", "🦀",
        ];
        for source in [
            "",
            "a",
            "^a$",
            "a.b",
            "(?s)a.b",
            "[^a]",
            "^.$",
            r"\w+",
            r"\bb",
            r"\d{2}-\d{2}$",
            "(?i)ab",
            "a|é",
            "a*?$",
            r"\bé",
            "(?m)^b",
            "🦀$",
        ] {
            let mut pattern = Pattern::compile(source).expect("a pattern");
            let other = regex::Regex::new(source).expect("a pattern");
            for text in texts {
                assert_eq!(
                    pattern.is_in(text),
                    Ok(other.is_match(text)),
                    "{source} {text}"
                );
            }
        }
        for source in ["(", "a{2,1}", r"\p{none}", "(a{1000}){1000}"] {
            assert!(
                matches!(Pattern::compile(source), Err(PatternError::Source(_))),
                "{source}"
            );
        }
    }

    #[test]
    fn what_would_take_long_is_refused() {
        assert!(Pattern::compile(&r"\w".repeat(LONGEST)).is_err());
        let ones = "1".repeat(30 << 10);
        // Ten thousand states wherever it looks, and as many different sets of them.
        let mut hostile = Pattern::compile("1[01]{10000}[23]").expect("a pattern");
        assert_eq!(hostile.is_in(&ones), Err(PatternError::Slow));
        assert_eq!(hostile.is_in("1111"), Ok(false));
        assert_eq!(hostile.is_in(&"1".repeat(1 << 20)), Err(PatternError::Slow));
        // At a letter it looks slowly, which is for short texts.
        let mut bounds = Pattern::compile(r"\bx").expect("a pattern");
        assert_eq!(bounds.is_in("é x"), Ok(true));
        assert_eq!(
            bounds.is_in(&format!("é{}", "y".repeat(1 << 20))),
            Err(PatternError::Slow)
        );
        assert_eq!(bounds.is_in(&"y".repeat(1 << 20)), Ok(false));
    }
}
