//! The head of a request, written, and the head of an answer, read.

use std::mem::MaybeUninit;

use ::http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, TRANSFER_ENCODING};
use ::http::{HeaderValue, Response, StatusCode};
use bytes::BytesMut;
use hyper::ext::ReasonPhrase;

use super::Outgoing;
use crate::http::Seen;
use crate::http::headers::has_token;

/// The most fields in a head, or behind a body.
pub(super) const MOST_FIELDS: usize = 100;

/// There is room for so many fields from the start: more are added on the way, and hyper keeps the map for the
/// next request, to which more still are added. Growing it costs more than both.
const USUAL_FIELDS: usize = 20;

/// An answer without its body.
pub(super) struct Head {
    pub(super) response: Response<()>,
    /// Which fields something has to be done about.
    pub(super) seen: Seen,
    pub(super) framing: Framing,
    /// Whether the connection stays open after this answer.
    pub(super) keep: bool,
}

/// Where an answer's body ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

impl Head {
    /// Another head follows (RFC 9110 §15.2).
    pub(super) fn is_interim(&self) -> bool {
        is_interim(self.response.status())
    }
}

fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// Writes a request's head. `Transfer-Encoding` is left out of it unless the body is in chunks.
pub(super) fn write(out: &mut Vec<u8>, outgoing: &Outgoing<'_>, is_chunked: bool) {
    let Outgoing { request, host, added } = outgoing;
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.extend_from_slice(if target.starts_with('?') { b" /" } else { b" " });
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_field(out, &HOST, host);
    for (name, value) in request.headers() {
        let is_left_out = *name == HOST || (!is_chunked && *name == TRANSFER_ENCODING) || added.has(name);
        if !is_left_out {
            write_field(out, name, value);
        }
    }
    for (name, value) in added.iter() {
        write_field(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Where a field lies in the bytes of a head: from and to of its name, from and to of its value.
type Span = [usize; 4];

/// What is kept from one head to the next.
#[derive(Default)]
pub(super) struct Reader {
    spans: Vec<Span>,
    names: Vec<Known>,
}

/// A name of the last head, and how it was spelt: the next one's are mostly the same, and need not be made anew.
struct Known {
    spelt: Box<[u8]>,
    name: HeaderName,
}

impl Reader {
    /// The name of the field in this place.
    fn name(&mut self, place: usize, spelt: &[u8]) -> Option<HeaderName> {
        match self.names.get(place) {
            Some(known) if *known.spelt == *spelt => Some(known.name.clone()),
            _ => self.learn(place, spelt),
        }
    }

    fn learn(&mut self, place: usize, spelt: &[u8]) -> Option<HeaderName> {
        let name = HeaderName::from_bytes(spelt).ok()?;
        let known = Known { spelt: spelt.into(), name: name.clone() };
        match self.names.get_mut(place) {
            Some(there) => *there = known,
            None => self.names.push(known),
        }
        Some(name)
    }
}

/// Takes a head from what was read; `None` when it is not all there. `is_head`: the request's method was HEAD.
/// `spent` holds the request's fields, of which nobody needs any more when this is the answer: they make room for
/// its own.
///
/// # Errors
/// When it is no head, or somebody else could read another one in it.
pub(super) fn read(
    bytes: &mut BytesMut,
    is_head: bool,
    reader: &mut Reader,
    spent: &mut HeaderMap,
) -> Result<Option<Head>, String> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(format!("its answer has more than {MOST_FIELDS} fields"));
        }
        Err(error) => return Err(format!("its answer's head is malformed: {error}")),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or("its answer's status is out of range")?;
    let is_http11 = parsed.version == Some(1);
    let reason = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    let reason = reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
    // What the fields lie in is about to be shared, so that their values need not be copied.
    let base = bytes.as_ptr() as usize;
    let mut spans = std::mem::take(&mut reader.spans);
    spans.clear();
    spans.extend(parsed.headers.iter().map(|field| {
        let (name, value) = (field.name.as_ptr() as usize - base, field.value.as_ptr() as usize - base);
        [name, name + field.name.len(), value, value + field.value.len()]
    }));
    let head = bytes.split_to(length).freeze();
    let mut response = Response::new(());
    *response.status_mut() = status;
    let (headers, mut signs) = (response.headers_mut(), Signs::default());
    if !is_interim(status) {
        *headers = std::mem::take(spent);
        headers.clear();
    }
    headers.reserve(spans.len().max(USUAL_FIELDS));
    let mut seen = Seen::default();
    for (place, &[from, to, value_from, value_to]) in spans.iter().enumerate() {
        let name = head.get(from..to).and_then(|name| reader.name(place, name));
        let value = HeaderValue::from_maybe_shared(head.slice(value_from..value_to)).ok();
        let (Some(name), Some(value)) = (name, value) else {
            return Err("a field of its answer is malformed".into());
        };
        if signs.see(&name, &value) {
            seen = seen.with(&name);
            headers.append(name, value);
        }
    }
    reader.spans = spans;
    let keep = signs.keeps(is_http11, headers);
    signs.check()?;
    let is_bodiless = is_head || status.is_informational() || matches!(status.as_u16(), 204 | 304);
    let framing = if is_bodiless { Framing::Length(0) } else { signs.framing(is_http11)? };
    if let Some(reason) = reason {
        response.extensions_mut().insert(reason);
    }
    Ok(Some(Head { response, seen, framing, keep: keep && framing != Framing::Close }))
}

/// What the fields say about where the body ends.
#[derive(Default)]
struct Signs {
    lengths: usize,
    length: Option<u64>,
    codings: usize,
    is_chunked: bool,
    /// `Connection` is `keep-alive`.
    keeps: bool,
    /// `Connection` is `close`.
    closes: bool,
    /// `Connection` says something else.
    says_more: bool,
}

impl Signs {
    /// Whether the field is of use to anybody else.
    fn see(&mut self, name: &HeaderName, value: &HeaderValue) -> bool {
        if *name == CONTENT_LENGTH {
            self.lengths += 1;
            // `parse` would let a sign through.
            let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            self.length = digits.and_then(|digits| digits.parse().ok());
        } else if *name == TRANSFER_ENCODING {
            self.codings += 1;
            self.is_chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
        } else if *name == CONNECTION {
            let is = |word: &[u8]| value.as_bytes().eq_ignore_ascii_case(word);
            let (keeps, closes) = (is(b"keep-alive"), is(b"close"));
            self.keeps |= keeps;
            self.closes |= closes;
            self.says_more |= !keeps && !closes;
            // Alone it names no other field; what is in it ends here.
            return self.says_more;
        }
        true
    }

    /// Without a body too: somebody behind us could find one.
    fn check(&self) -> Result<(), &'static str> {
        match (self.codings, self.lengths) {
            (_, 0) => Ok(()),
            (0, 1) if self.length.is_some() => Ok(()),
            (0, 1) => Err("its answer's length is no number"),
            _ => Err("its answer is framed in two ways"),
        }
    }

    fn framing(&self, is_http11: bool) -> Result<Framing, &'static str> {
        match (self.codings, self.length) {
            (0, None) => Ok(Framing::Close),
            (0, Some(length)) => Ok(Framing::Length(length)),
            // Anything but chunks nobody asked for, and HTTP/1.0 knows none (RFC 9112 §6.1).
            (1, _) if self.is_chunked && is_http11 => Ok(Framing::Chunked),
            _ => Err("its answer has a transfer coding that it must not have"),
        }
    }

    /// Whether the connection stays open (RFC 9112 §9.3).
    fn keeps(&self, is_http11: bool, headers: &HeaderMap) -> bool {
        let says = |token| self.says_more && has_token(headers, &CONNECTION, token);
        !(self.closes || says("close")) && (is_http11 || self.keeps || says("keep-alive"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_its_own_names_whatever_the_one_before_said() {
        let mut reader = Reader::default();
        let long = "X-A: 1\r\nX-B: 2\r\nX-C: 3\r\n";
        for fields in
            [long, long, "X-a: 1\r\nX-C: 3\r\n", "", "Set-Cookie: a=b\r\n", "X-B: 2\r\nX-A: 1\r\n", long]
        {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            let mut bytes = BytesMut::from(text.as_bytes());
            let mut spent = HeaderMap::from_iter([(HOST, HeaderValue::from_static("a.test"))]);
            let head = read(&mut bytes, false, &mut reader, &mut spent).unwrap().unwrap();
            let read: String = head
                .response
                .headers()
                .iter()
                .map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()))
                .collect();
            assert_eq!(read, fields.to_ascii_lowercase());
            assert_eq!(head.seen, Seen::of(head.response.headers()));
            assert_eq!(head.seen.any(Seen::SET_COOKIE), fields.starts_with("Set"));
        }
    }
}
