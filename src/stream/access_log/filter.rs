//! Access log filters: which streams are logged, and which local replies are mapped.

use tokio::time::Instant;

use crate::config::access_log::{AccessLogFilter, Comparison};
use crate::route::matcher::{absent_matches, header_matches};
use crate::stream::format::{Scope, grpc_status_of};

/// True where `scope` passes `filter`.
pub(in crate::stream) fn passes(filter: &AccessLogFilter, scope: &Scope<'_>) -> bool {
    match filter {
        AccessLogFilter::Status(comparison, value) => {
            let status = scope
                .status
                .or_else(|| scope.response.map(|head| head.status.as_u16()))
                .map_or(0, u64::from);
            compare(*comparison, status, *value)
        }
        AccessLogFilter::Duration(comparison, value) => {
            let end = scope.info.end.unwrap_or_else(Instant::now);
            let duration = end.saturating_duration_since(scope.info.begin).as_millis();
            compare(
                *comparison,
                u64::try_from(duration).unwrap_or(u64::MAX),
                *value,
            )
        }
        AccessLogFilter::NotHealthCheck => !scope.info.health_check,
        // Nothing is traced.
        AccessLogFilter::Traceable => false,
        AccessLogFilter::Fraction {
            numerator,
            denominator,
            independent,
        } => {
            let value = match independent {
                true => None,
                false => request_id_number(scope),
            };
            value.unwrap_or_else(|| fastrand::u64(..)) % u64::from(*denominator).max(1)
                < u64::from(*numerator)
        }
        AccessLogFilter::And(filters) => filters.iter().all(|filter| passes(filter, scope)),
        AccessLogFilter::Or(filters) => filters.iter().any(|filter| passes(filter, scope)),
        // A head that was not understood has no headers, not even a method.
        AccessLogFilter::Header(matcher) if scope.info.without_head => absent_matches(matcher),
        AccessLogFilter::Header(matcher) => header_matches(matcher, scope.request),
        AccessLogFilter::ResponseFlags(wanted) => {
            if wanted.is_empty() {
                return !scope.info.flags.is_empty();
            }
            scope
                .info
                .flags
                .iter()
                .any(|flag| wanted.iter().any(|name| **name == *flag.short()))
        }
        AccessLogFilter::GrpcStatus(wanted, exclude) => {
            // An answer that says nothing is UNKNOWN.
            let status = grpc_status_of(scope).unwrap_or(2);
            wanted.contains(&status) != *exclude
        }
        AccessLogFilter::LogType(wanted, exclude) => {
            let name = scope.log_type.as_str();
            wanted.iter().any(|wanted| **wanted == *name) != *exclude
        }
    }
}

fn compare(comparison: Comparison, left: u64, right: u32) -> bool {
    let right = u64::from(right);
    match comparison {
        Comparison::Eq => left == right,
        Comparison::Ge => left >= right,
        Comparison::Le => left <= right,
        Comparison::Ne => left != right,
    }
}

/// The number that stands for a request id: all proxies on its way draw the same lot.
fn request_id_number(scope: &Scope<'_>) -> Option<u64> {
    let id = scope.request.headers.get("x-request-id")?.to_str().ok()?;
    u64::from_str_radix(id.get(..8)?, 16).ok()
}
