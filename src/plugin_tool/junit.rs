//! Results as JUnit XML, which CI systems read.

use std::fmt::Write as _;
use std::time::Duration;

/// One case of a report.
pub(super) struct Entry<'a> {
    pub(super) suite: &'a str,
    pub(super) name: &'a str,
    pub(super) took: Duration,
    pub(super) result: Result<(), Fault<'a>>,
}

/// Why a case did not pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault<'a> {
    /// It failed.
    Failure(&'a str),
    /// It could not be run.
    Error(&'a str),
}

/// The report.
pub(super) fn xml(entries: &[Entry<'_>]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|entry| entry.suite == first.suite);
        let (suite, after) = rest.split_at(count.count());
        rest = after;
        let count = |which: fn(&Fault<'_>) -> bool| {
            let faults = suite.iter().filter_map(|entry| entry.result.as_ref().err());
            faults.filter(|fault| which(fault)).count()
        };
        let failures = count(|fault| matches!(fault, Fault::Failure(_)));
        let errors = count(|fault| matches!(fault, Fault::Error(_)));
        let took: Duration = suite.iter().map(|entry| entry.took).sum();
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"0\" time=\"{:.3}\">",
            escaped(first.suite),
            suite.len(),
            took.as_secs_f64(),
        );
        for entry in suite {
            let _ = write!(
                out,
                "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
                escaped(entry.suite),
                escaped(entry.name),
                entry.took.as_secs_f64(),
            );
            let (element, why) = match entry.result {
                Ok(()) => {
                    out.push_str("/>\n");
                    continue;
                }
                Err(Fault::Failure(why)) => ("failure", why),
                Err(Fault::Error(why)) => ("error", why),
            };
            let _ = writeln!(
                out,
                ">\n      <{element} message=\"{}\">{}</{element}>\n    </testcase>",
                escaped(why.lines().next().unwrap_or_default()),
                escaped(why),
            );
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

/// Without the characters that XML 1.0 cannot hold.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_by_suite_and_escaped() {
        let entry = |suite, name, result| Entry {
            suite,
            name,
            took: Duration::from_millis(1500),
            result,
        };
        let text = xml(&[
            entry("a", "one", Ok(())),
            entry(
                "a",
                "<two> & \"three\"",
                Err(Fault::Failure("first\n<second>\u{1b}")),
            ),
            entry("b", "four", Ok(())),
            entry("b", "five", Err(Fault::Error("no file"))),
        ]);
        let wanted = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<testsuites>
  <testsuite name=\"a\" tests=\"2\" failures=\"1\" errors=\"0\" skipped=\"0\" time=\"3.000\">
    <testcase classname=\"a\" name=\"one\" time=\"1.500\"/>
    <testcase classname=\"a\" name=\"&lt;two&gt; &amp; &quot;three&quot;\" time=\"1.500\">
      <failure message=\"first\">first
&lt;second&gt;\u{fffd}</failure>
    </testcase>
  </testsuite>
  <testsuite name=\"b\" tests=\"2\" failures=\"0\" errors=\"1\" skipped=\"0\" time=\"3.000\">
    <testcase classname=\"b\" name=\"four\" time=\"1.500\"/>
    <testcase classname=\"b\" name=\"five\" time=\"1.500\">
      <error message=\"no file\">no file</error>
    </testcase>
  </testsuite>
</testsuites>
";
        assert_eq!(text, wanted);
        assert_eq!(xml(&[]).matches("testsuite ").count(), 0);
    }
}
