//! Content negotiation: media types of requests and responses (RFC 9110 sections 8.3 and 12.5.1).

use axum::http::{HeaderMap, HeaderValue, header};

/// Media type of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/json`: accepted by every client.
    Json,
    /// `application/graphql-response+json`: the status code reflects the outcome.
    GraphqlResponse,
    /// `text/event-stream`: one event per response.
    EventStream,
}

impl Media {
    /// The value of the `Content-Type` header.
    pub const fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json; charset=utf-8",
            Self::GraphqlResponse => "application/graphql-response+json; charset=utf-8",
            Self::EventStream => "text/event-stream; charset=utf-8",
        })
    }

    const fn parts(self) -> (&'static str, &'static str) {
        match self {
            Self::Json => ("application", "json"),
            Self::GraphqlResponse => ("application", "graphql-response+json"),
            Self::EventStream => ("text", "event-stream"),
        }
    }
}

/// The supported type that the client prefers, or `None` if it accepts none. Without a preference
/// it is `application/json`. An event stream must be requested by name.
pub fn negotiate(headers: &HeaderMap) -> Option<Media> {
    let accepted: Vec<&str> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    if accepted.iter().all(|value| value.trim().is_empty()) {
        return Some(Media::Json);
    }
    let ranges: Vec<MediaRange<'_>> = accepted
        .iter()
        .flat_map(|value| value.split(','))
        .filter_map(MediaRange::parse)
        .collect();
    // On equal quality a named type wins over a wildcard, and among named types the later one in
    // this list. A client that accepts everything gets no event stream for a single response.
    let candidates = [Media::EventStream, Media::Json, Media::GraphqlResponse];
    let liked = candidates.iter().enumerate().filter_map(|(order, media)| {
        let range = ranges
            .iter()
            .filter(|range| range.matches(*media))
            .max_by_key(|range| range.specificity())?;
        let named = range.specificity() == 2;
        if range.quality == 0 || (*media == Media::EventStream && !named) {
            return None;
        }
        Some((
            (
                range.quality,
                range.specificity(),
                if named {
                    order
                } else {
                    candidates.len() - order
                },
            ),
            *media,
        ))
    });
    liked.max_by_key(|(rank, _)| *rank).map(|(_, media)| media)
}

/// Whether the client accepts an event stream at all, as a subscription requires, whatever it
/// prefers.
pub fn accepts_stream(headers: &HeaderMap) -> bool {
    let accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut ranges = accepted
        .flat_map(|value| value.split(','))
        .filter_map(MediaRange::parse);
    ranges.any(|range| {
        range.specificity() == 2 && range.quality > 0 && range.matches(Media::EventStream)
    })
}

/// Whether `Accept` names a media type of GraphQL responses. A browser never does so for an image
/// or a script.
pub fn accepts_graphql(headers: &HeaderMap) -> bool {
    let accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut ranges = accepted
        .flat_map(|value| value.split(','))
        .filter_map(MediaRange::parse);
    ranges.any(|range| {
        let media = [Media::Json, Media::GraphqlResponse, Media::EventStream];
        range.specificity() == 2 && media.into_iter().any(|media| range.matches(media))
    })
}

/// Whether `Content-Type` is JSON in UTF-8.
pub fn is_json_utf8(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let Ok(value) = value.to_str() else {
        return false;
    };
    let mut parts = value.split(';');
    let essence = parts.next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") && parts.all(is_utf8_if_charset)
}

fn is_utf8_if_charset(parameter: &str) -> bool {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let value = value.trim().trim_matches('"');
    !name.trim().eq_ignore_ascii_case("charset") || value.eq_ignore_ascii_case("utf-8")
}

struct MediaRange<'a> {
    main: &'a str,
    sub: &'a str,
    /// In thousandths.
    quality: u16,
}

impl<'a> MediaRange<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';');
        let (main, sub) = parts.next()?.trim().split_once('/')?;
        let mut quality = 1_000;
        for parameter in parts {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if name.trim().eq_ignore_ascii_case("q") {
                let value: f32 = value
                    .trim()
                    .parse()
                    .ok()
                    .filter(|value| (0.0..=1.0).contains(value))?;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "from 0 to 1000"
                )]
                {
                    quality = (value * 1_000.0) as u16;
                }
            } else if !is_utf8_if_charset(parameter) {
                return None;
            }
        }
        Some(Self { main, sub, quality })
    }

    fn matches(&self, media: Media) -> bool {
        let (main, sub) = media.parts();
        match self.specificity() {
            0 => true,
            1 => self.main.eq_ignore_ascii_case(main),
            _ => self.main.eq_ignore_ascii_case(main) && self.sub.eq_ignore_ascii_case(sub),
        }
    }

    /// The more precise range decides (RFC 9110 section 12.5.1).
    fn specificity(&self) -> u8 {
        match (self.main, self.sub) {
            ("*", "*") => 0,
            (_, "*") => 1,
            _ => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn the_answer_has_the_type_that_is_liked_best() {
        let cases = [
            ("", Some(Media::Json)),
            ("*/*", Some(Media::Json)),
            ("application/*", Some(Media::Json)),
            ("application/json", Some(Media::Json)),
            ("APPLICATION/JSON; charset=UTF-8", Some(Media::Json)),
            (
                "application/graphql-response+json",
                Some(Media::GraphqlResponse),
            ),
            (
                "application/graphql-response+json, application/json",
                Some(Media::GraphqlResponse),
            ),
            (
                "application/json, application/graphql-response+json",
                Some(Media::GraphqlResponse),
            ),
            (
                "application/graphql-response+json, application/json;q=0.9",
                Some(Media::GraphqlResponse),
            ),
            (
                "application/graphql-response+json;q=0.1, application/json",
                Some(Media::Json),
            ),
            ("text/event-stream", Some(Media::EventStream)),
            (
                "text/event-stream, application/json;q=0.5",
                Some(Media::EventStream),
            ),
            (
                "application/json, text/event-stream, multipart/mixed",
                Some(Media::Json),
            ),
            ("text/event-stream, */*", Some(Media::EventStream)),
            ("application/json;q=0, */*", Some(Media::GraphqlResponse)),
            (
                "text/html, application/xhtml+xml, */*;q=0.8",
                Some(Media::Json),
            ),
            ("text/*", None),
            ("text/html", None),
            ("application/json; charset=iso-8859-1", None),
            ("application/json;q=0", None),
        ];
        for (accept, expected) in cases {
            assert_eq!(negotiate(&of(header::ACCEPT, accept)), expected, "{accept}");
        }
        assert_eq!(negotiate(&HeaderMap::new()), Some(Media::Json));
    }

    #[test]
    fn a_stream_has_to_be_named() {
        for named in [
            "text/event-stream",
            "application/json, text/event-stream;q=0.1",
        ] {
            assert!(accepts_stream(&of(header::ACCEPT, named)), "{named}");
        }
        for other in [
            "",
            "*/*",
            "text/*",
            "application/json",
            "text/event-stream;q=0",
        ] {
            assert!(!accepts_stream(&of(header::ACCEPT, other)), "{other}");
        }
    }

    #[test]
    fn only_json_in_utf8_is_read() {
        for right in [
            "application/json",
            "Application/JSON; charset=\"UTF-8\"",
            "application/json;charset=utf-8; a=b",
        ] {
            assert!(is_json_utf8(&of(header::CONTENT_TYPE, right)), "{right}");
        }
        for wrong in [
            "text/plain",
            "application/json; charset=utf-16",
            "application/json5",
            "application/graphql",
            "",
        ] {
            assert!(!is_json_utf8(&of(header::CONTENT_TYPE, wrong)), "{wrong}");
        }
        assert!(!is_json_utf8(&HeaderMap::new()));
    }
}
