//! Which parts of a statistic's name are labels: `cluster.a.upstream_cx_total` is `cluster.upstream_cx_total` of cluster
//! `a`.
//!
//! Works on the name alone, as Envoy does, so that a bootstrap's own rules (`stats_tags`) see what Envoy's would, and a
//! dashboard gets the very series that it was made for. Envoy's default rules are matched by hand here: a scrape looks at
//! every name.

use std::borrow::Cow;
use std::ops::Range;

use smallvec::SmallVec;

/// Names and values.
pub type Labels<'a> = SmallVec<[(Cow<'a, str>, Cow<'a, str>); 4]>;

/// A rule of `stats_config.stats_tags`.
#[derive(Debug)]
struct Rule {
    label: String,
    /// What the name must begin with, for a quick no.
    prefix: String,
    regex: fancy_regex::Regex,
}

/// Finds labels in names.
#[derive(Debug)]
pub struct TagExtractor {
    defaults: bool,
    fixed: Vec<(String, String)>,
    rules: Vec<Rule>,
}

impl Default for TagExtractor {
    /// Envoy's default rules alone.
    fn default() -> Self {
        Self {
            defaults: true,
            fixed: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// What was found in one name.
#[derive(Default)]
struct Found<'a> {
    labels: Labels<'a>,
    cut: SmallVec<[Range<usize>; 4]>,
}

impl<'a> Found<'a> {
    fn add(
        &mut self,
        label: impl Into<Cow<'a, str>>,
        value: impl Into<Cow<'a, str>>,
        cut: Range<usize>,
    ) {
        let label = label.into();
        if !self.labels.iter().any(|(name, _)| *name == label) {
            self.labels.push((label, value.into()));
        }
        if !cut.is_empty() {
            self.cut.push(cut);
        }
    }
}

impl TagExtractor {
    /// `fixed` labels are on everything; `rules` are (label, regular expression); `defaults` adds Envoy's own rules.
    ///
    /// # Errors
    /// A regular expression that does not compile.
    pub fn new(
        defaults: bool,
        fixed: Vec<(String, String)>,
        rules: Vec<(String, String)>,
    ) -> Result<Self, Box<fancy_regex::Error>> {
        let rules = rules
            .into_iter()
            .map(|(label, regex)| {
                Ok(Rule {
                    label: sanitized(&label),
                    prefix: literal_prefix(&regex),
                    regex: fancy_regex::Regex::new(&regex)?,
                })
            })
            .collect::<Result<_, Box<fancy_regex::Error>>>()?;
        let fixed = fixed
            .into_iter()
            .map(|(label, value)| (sanitized(&label), value))
            .collect();
        Ok(Self {
            defaults,
            fixed,
            rules,
        })
    }

    /// The name without its labels, and the labels.
    pub fn extract<'a>(&'a self, name: &'a str) -> (Cow<'a, str>, Labels<'a>) {
        let mut found = Found::default();
        for (label, value) in &self.fixed {
            found.add(label.as_str(), value.as_str(), 0..0);
        }
        if self.defaults {
            default_rules(name, &mut found);
        }
        for rule in &self.rules {
            if !name.starts_with(&rule.prefix) {
                continue;
            }
            // A rule that takes too long on a name does not match it.
            let Ok(Some(captures)) = rule.regex.captures(name) else {
                continue;
            };
            let Some(cut) = captures.get(1) else {
                continue;
            };
            let value = captures.get(2).unwrap_or(cut);
            found.add(rule.label.as_str(), value.as_str(), cut.range());
        }
        (without(name, found.cut), found.labels)
    }
}

/// `name` without the ranges, which may overlap.
fn without(name: &str, mut cut: SmallVec<[Range<usize>; 4]>) -> Cow<'_, str> {
    if cut.is_empty() {
        return name.into();
    }
    cut.sort_unstable_by_key(|range| range.start);
    let mut out = String::with_capacity(name.len());
    let mut at = 0;
    for range in cut {
        if range.start > at {
            out.push_str(&name[at..range.start]);
        }
        at = at.max(range.end);
    }
    out.push_str(&name[at..]);
    out.into()
}

/// A label's name for Prometheus.
pub(super) fn sanitized(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 1);
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        out.push('_');
    }
    out.extend(name.chars().map(|c| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c
        } else {
            '_'
        }
    }));
    out
}

/// What every match of an anchored expression begins with.
fn literal_prefix(regex: &str) -> String {
    let Some(rest) = regex.strip_prefix('^') else {
        return String::new();
    };
    if regex.contains('|') {
        // The anchor may belong to one side only.
        return String::new();
    }
    let mut prefix = String::new();
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        let literal = match c {
            '\\' if chars.peek() == Some(&'.') => {
                chars.next();
                '.'
            }
            c if c.is_ascii_alphanumeric() || c == '_' => c,
            _ => break,
        };
        if matches!(chars.peek(), Some('?' | '*' | '+' | '{')) {
            break;
        }
        prefix.push(literal);
    }
    prefix
}

/// The end of the token that starts at `start`, where a dot follows it.
fn token(name: &str, start: usize) -> Option<usize> {
    let length = name[start..].find('.')?;
    (length > 0).then_some(start + length)
}

/// Labels the token at `start` and cuts it with its dot; gives the place after it.
fn take<'a>(
    name: &'a str,
    start: usize,
    label: &'static str,
    found: &mut Found<'a>,
) -> Option<usize> {
    let end = token(name, start)?;
    found.add(label, &name[start..end], start..end + 1);
    Some(end + 1)
}

/// Envoy's rules, in its order, which is that of the labels.
fn default_rules<'a>(name: &'a str, found: &mut Found<'a>) {
    response_code(name, found);
    let Some(first) = name.find('.') else {
        return;
    };
    let start = first + 1;
    match &name[..first] {
        "cluster" => {
            take(name, start, "envoy_cluster_name", found);
        }
        "http" => http(name, start, found),
        "listener" => listener(name, start, found),
        "vhost" => virtual_host(name, start, found),
        "server" | "thread_local_cluster_manager" | "listener_manager" => {
            worker(name, start, found);
        }
        "sds" => {
            take(name, start, "envoy_xds_resource_name", found);
        }
        "tcp" => {
            take(name, start, "envoy_tcp_prefix", found);
        }
        "udp" => {
            take(name, start, "envoy_udp_prefix", found);
        }
        "ratelimit" => {
            take(name, start, "envoy_ratelimit_prefix", found);
        }
        "mongo" => {
            take(name, start, "envoy_mongo_prefix", found);
        }
        "redis" => {
            take(name, start, "envoy_redis_prefix", found);
        }
        "thrift" => {
            take(name, start, "envoy_thrift_prefix", found);
        }
        "connection_limit" => {
            take(name, start, "envoy_connection_limit_prefix", found);
        }
        // `<prefix>.http_local_rate_limit.enabled`
        prefix if name[start..].starts_with("http_local_rate_limit.") => {
            found.add("envoy_local_http_ratelimit_prefix", prefix, 0..start);
        }
        _ => {}
    }
}

/// `…_rq_2xx` and `…_rq_200`.
fn response_code<'a>(name: &'a str, found: &mut Found<'a>) {
    let bytes = name.as_bytes();
    let Some(underscore) = bytes.len().checked_sub(4) else {
        return;
    };
    if bytes[underscore] != b'_' || !name[..underscore].ends_with("_rq") {
        return;
    }
    let code = &bytes[underscore + 1..];
    if code.iter().all(u8::is_ascii_digit) {
        found.add(
            "envoy_response_code",
            &name[underscore + 1..],
            underscore..name.len(),
        );
    } else if code[0].is_ascii_digit() && &code[1..] == b"xx" {
        let digit = underscore + 1..underscore + 2;
        found.add("envoy_response_code_class", &name[digit.clone()], digit);
    }
}

/// `worker_3.`: labels the number.
fn worker<'a>(name: &'a str, start: usize, found: &mut Found<'a>) {
    let Some(end) = token(name, start) else {
        return;
    };
    let Some(number) = name[start..end].strip_prefix("worker_") else {
        return;
    };
    if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) {
        found.add("envoy_worker_id", number, end - number.len()..end + 1);
    }
}

/// `http.<prefix>.`, `http.<prefix>.rds.<route configuration, with dots>.<stat>`, `http.<prefix>.user_agent.<agent>.`.
fn http<'a>(name: &'a str, start: usize, found: &mut Found<'a>) {
    let Some(end) = token(name, start) else {
        return;
    };
    let rest = end + 1;
    if let Some(after) = name[rest..].strip_prefix("rds.") {
        let from = name.len() - after.len();
        if let Some(last) = after.rfind('.') {
            found.add(
                "envoy_rds_route_config",
                &after[..last],
                from..from + last + 1,
            );
        }
    } else if name[rest..].starts_with("user_agent.") {
        take(
            name,
            rest + "user_agent.".len(),
            "envoy_http_user_agent",
            found,
        );
    }
    found.add(
        "envoy_http_conn_manager_prefix",
        &name[start..end],
        start..rest,
    );
}

/// `vhost.<name>.vcluster.<name>.` and `vhost.<name>.route.<name>.`.
fn virtual_host<'a>(name: &'a str, start: usize, found: &mut Found<'a>) {
    let Some(end) = token(name, start) else {
        return;
    };
    let rest = end + 1;
    for (kind, label) in [
        ("vcluster.", "envoy_virtual_cluster"),
        ("route.", "envoy_route"),
    ] {
        if name[rest..].starts_with(kind) {
            take(name, rest + kind.len(), label, found);
        }
    }
    found.add("envoy_virtual_host", &name[start..end], start..rest);
}

/// `listener.<address>.…`; the admin listener's has no label.
fn listener<'a>(name: &'a str, start: usize, found: &mut Found<'a>) {
    let Some(end) = listener_address(name, start) else {
        return;
    };
    let rest = end + 1;
    worker(name, rest, found);
    if let Some(ssl) = name[rest..].strip_prefix("ssl.") {
        let from = name.len() - ssl.len();
        for (kind, label) in [
            ("ciphers", "envoy_ssl_cipher"),
            ("curves", "envoy_ssl_curve"),
            ("sigalgs", "envoy_ssl_sigalg"),
            ("versions", "envoy_ssl_version"),
        ] {
            if let Some(value) = ssl
                .strip_prefix(kind)
                .and_then(|rest| rest.strip_prefix('.'))
            {
                // With the dot before it.
                found.add(label, value, from + kind.len()..name.len());
            }
        }
        if ssl.starts_with("certificate.") {
            take(
                name,
                from + "certificate.".len(),
                "envoy_tls_certificate",
                found,
            );
        }
    }
    if name[rest..].starts_with("http.") {
        take(
            name,
            rest + "http.".len(),
            "envoy_http_conn_manager_prefix",
            found,
        );
    }
    if &name[start..end] != "admin" {
        found.add("envoy_listener_address", &name[start..end], start..rest);
    }
}

/// An IPv4 address has dots of its own.
fn listener_address(name: &str, start: usize) -> Option<usize> {
    let mut end = token(name, start)?;
    let digits = |range: &str| !range.is_empty() && range.bytes().all(|b| b.is_ascii_digit());
    let mut at = end;
    for part in 0..3 {
        if !digits(&name[start..end]) && part == 0 {
            return Some(end);
        }
        let Some(next) = token(name, at + 1) else {
            return Some(end);
        };
        let text = &name[at + 1..next];
        let fits = if part == 2 {
            text.split_once('_')
                .is_some_and(|(host, port)| digits(host) && digits(port))
        } else {
            digits(text)
        };
        if !fits {
            return Some(end);
        }
        at = next;
    }
    end = at;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(extractor: &TagExtractor, name: &str) -> String {
        let (rest, labels) = extractor.extract(name);
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        format!("{rest} {}", labels.join(" "))
    }

    #[test]
    fn default_rules_are_envoys() {
        let extractor = TagExtractor::default();
        for (name, expected) in [
            (
                "cluster.a.upstream_cx_total",
                "cluster.upstream_cx_total envoy_cluster_name=a",
            ),
            // Envoy's own view of names with dots.
            (
                "cluster.a.b.upstream_cx_total",
                "cluster.b.upstream_cx_total envoy_cluster_name=a",
            ),
            (
                "listener.my.prefix.downstream_cx_total",
                "listener.prefix.downstream_cx_total envoy_listener_address=my",
            ),
            (
                "listener.[__1]_80.downstream_cx_total",
                "listener.downstream_cx_total envoy_listener_address=[__1]_80",
            ),
            (
                "listener.10.0.0.1_80.x",
                "listener.x envoy_listener_address=10.0.0.1_80",
            ),
            ("listener.10.x", "listener.x envoy_listener_address=10"),
            (
                "listener.admin.downstream_cx_total",
                "listener.admin.downstream_cx_total ",
            ),
            (
                "cluster.upstream_rq_2xx",
                "cluster.upstream_rq_xx envoy_response_code_class=2",
            ),
            ("cluster.", "cluster. "),
            ("rq_200", "rq_200 "),
            ("_rq_200", "_rq envoy_response_code=200"),
            ("server.live", "server.live "),
            (
                "x.http_local_rate_limit.enabled",
                "http_local_rate_limit.enabled envoy_local_http_ratelimit_prefix=x",
            ),
        ] {
            assert_eq!(shown(&extractor, name), expected, "{name}");
        }
    }

    #[test]
    fn own_rules_cut_group_one_and_show_group_two() {
        let rules = vec![
            (
                "cluster_name".to_owned(),
                r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)".to_owned(),
            ),
            (
                "http.prefix".to_owned(),
                r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"
                    .to_owned(),
            ),
            ("one".to_owned(), r"(_total)$".to_owned()),
        ];
        let extractor =
            TagExtractor::new(false, vec![("foo".to_owned(), "bar".to_owned())], rules).unwrap();
        assert_eq!(
            shown(
                &extractor,
                "cluster.outbound|80||a.b.svc.cluster.local.upstream_cx_total"
            ),
            "cluster.upstream_cx foo=bar cluster_name=outbound|80||a.b.svc.cluster.local one=_total"
        );
        assert_eq!(
            shown(
                &extractor,
                "listener.0.0.0.0_80.http.10.1_2.downstream_rq_2xx"
            ),
            "listener.0.0.0.0_80.http.downstream_rq_2xx foo=bar http_prefix=10.1_2",
            "the default rules are off"
        );
        assert!(TagExtractor::new(true, vec![], vec![("a".to_owned(), "(".to_owned())]).is_err());
    }

    #[test]
    fn a_quick_no_is_never_wrong() {
        for (regex, prefix) in [
            (r"^cluster\.((.+?)\.)", "cluster."),
            (r"^listener(?=\.)", "listener"),
            (r"^ab?c", "a"),
            (r"^a|b", ""),
            ("x", ""),
        ] {
            assert_eq!(literal_prefix(regex), prefix, "{regex}");
        }
    }
}
