//! Content negotiation of a key: its raw value, or its record as JSON, by `Accept` (RFC 9110 section 12.5.1).

use axum::http::{HeaderMap, header};

use super::super::preconditions::Representation;

const JSON: &str = "application/json";
/// Quality 1, in thousandths.
const QUALITY_FULL: u16 = 1000;

/// What a client gets of a key whose value has the type `stored`: JSON where `Accept` names `application/json` itself, and rates the raw
/// value's type no higher. A client that accepts neither gets the raw value, as one that sends no `Accept`.
pub fn representation(headers: &HeaderMap, stored: &str) -> Representation {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let ranges: Vec<MediaRange> = lines.flat_map(elements).filter_map(MediaRange::parse).collect();
    let json = ranges.iter().filter(|range| range.kind.eq_ignore_ascii_case(JSON)).map(|range| range.quality).max();
    match json {
        Some(json) if json > 0 && json >= quality(&ranges, essence(stored)) => Representation::Json,
        _ => Representation::Raw,
    }
}

/// How much the media type `kind` is wanted: the most specific range decides.
fn quality(ranges: &[MediaRange<'_>], kind: &str) -> u16 {
    let of = |matches: &dyn Fn(&str) -> bool| {
        ranges.iter().filter(|range| matches(range.kind)).map(|range| range.quality).max()
    };
    let family = kind.split('/').next().unwrap_or_default();
    of(&|range| range.eq_ignore_ascii_case(kind))
        .or_else(|| of(&|range| range.strip_suffix("/*").is_some_and(|range| range.eq_ignore_ascii_case(family))))
        .or_else(|| of(&|range| range == "*/*"))
        .unwrap_or(0)
}

/// The type without its parameters.
fn essence(kind: &str) -> &str {
    kind.split(';').next().unwrap_or_default().trim()
}

/// One element of `Accept`, without parameters but `q`.
#[derive(Debug)]
struct MediaRange<'a> {
    kind: &'a str,
    /// In thousandths.
    quality: u16,
}

impl<'a> MediaRange<'a> {
    /// None where the element is malformed: it is not counted.
    fn parse(element: &'a str) -> Option<Self> {
        let mut parts = element.split(';').map(str::trim);
        let kind = parts.next().filter(|kind| kind.contains('/'))?;
        let weight =
            parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
        let quality = match weight {
            None => QUALITY_FULL,
            Some((_, text)) => {
                let quality: f32 = text.trim().parse().ok()?;
                (0.0..=1.0).contains(&quality).then_some((quality * f32::from(QUALITY_FULL)).round() as u16)?
            }
        };
        Some(Self { kind, quality })
    }
}

/// The elements of a list: commas inside of quotes separate nothing.
fn elements(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    line.split(move |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_given_where_it_is_named_and_rated_no_lower() {
        for (accept, of_octets, of_text) in [
            ("application/json", true, true),
            ("Application/JSON", true, true),
            ("application/json; charset=utf-8", true, true),
            ("application/json;profile=\"a,b\";q=0.3", true, true),
            ("application/json;q=0", false, false),
            ("application/json;q=0.0", false, false),
            ("application/json; Q=0.5, text/*;q=0.4", true, true),
            ("application/json;q=0.5, text/*", true, false),
            ("application/json;q=0.9, */*", false, false),
            ("application/json, text/plain, */*", true, true),
            ("text/plain;q=0.2, application/json;q=0.1, */*;q=0.05", true, false),
            ("*/*", false, false),
            ("application/*", false, false),
            ("text/html", false, false),
            ("application/jsonp", false, false),
            ("application/json;q=2, application/json;q=x", false, false),
            ("nonsense, application/json", true, true),
            ("", false, false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().expect("a header value"))]);
            let is_json = |stored| representation(&headers, stored) == Representation::Json;
            let found = (is_json("application/octet-stream"), is_json("Text/Plain; charset=utf-8"));
            assert_eq!(found, (of_octets, of_text), "Accept: {accept}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        let mut headers = HeaderMap::new();
        headers.append(header::ACCEPT, "text/plain;q=0.5".parse().expect("a header value"));
        headers.append(header::ACCEPT, "application/json".parse().expect("a header value"));
        assert_eq!(representation(&headers, "text/plain"), Representation::Json);
    }
}
