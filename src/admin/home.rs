//! `/`: the list of endpoints as a page, with a button for what changes something.

use std::fmt::Write as _;

use super::Context;
use super::endpoints::ENDPOINTS;
use super::request::{Kind, Request, Response};

pub(super) fn page(_: &Context, _: &Request) -> Response {
    let mut body = String::from(
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<title>Plenipo Admin</title>\n<style>\n\
         body { font-family: sans-serif; margin: 2em; }\ntd { padding: 4px 12px 4px 0; vertical-align: top; }\n\
         tr:nth-child(even) { background: #eee; }\nsmall { color: #555; }\n</style>\n</head>\n<body>\n\
         <h1>Plenipo</h1>\n<table>\n",
    );
    for endpoint in &ENDPOINTS {
        let path = endpoint.path;
        let link = if endpoint.changes {
            format!("<form action='{path}' method='post'><button>{path}</button></form>")
        } else {
            format!("<a href='{path}'>{path}</a>")
        };
        let _ = write!(body, "<tr><td>{link}</td><td>{}", endpoint.help);
        for (name, meaning) in endpoint.params {
            let name = name.replace('<', "&lt;").replace('>', "&gt;");
            let _ = write!(body, "<br><small>{name}: {meaning}</small>");
        }
        body.push_str("</td></tr>\n");
    }
    body.push_str("</table>\n</body>\n</html>\n");
    Response {
        kind: Kind::Html,
        body,
        ..Response::default()
    }
}
