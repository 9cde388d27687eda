//! The head of an HTTP/1 request: where it ends, and whether it has one meaning.
//!
//! hyper parses requests and is strict, but it mends some things silently: a `Content-Length` beside a
//! `Transfer-Encoding` is dropped, equal lengths are folded into one, a bare line feed ends a line, and what
//! follows a `#` in the target is cut off. Each of these is a request that somebody else could read in
//! another way. And what hyper cannot read it answers itself, which nobody would hear of. So a head is
//! judged here first, by the parser that hyper uses; whatever passes, hyper reads too.

use std::mem::MaybeUninit;

use http::{Method, StatusCode, Uri};
use httparse::{Error, Header, Request, Status};

use crate::http::{BadRequest, Misread};

/// Fields that a head may have; hyper's own limit.
const FIELDS: usize = 100;
/// The longest target that hyper takes.
const TARGET: usize = 65_534;

/// What comes after a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next request.
    Request,
    /// A body of so many bytes.
    Body(u64),
    /// A body in chunks.
    Chunks,
    /// Anything: the request asks for another protocol. The answer decides; one that is not 101 closes the
    /// connection.
    Anything,
}

/// A request that is refused, and what hyper gets in its place.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) misread: Misread,
    /// A request that hyper can read: with what says who asks and what kind of answer they can use.
    pub(super) stand_in: Vec<u8>,
}

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    Incomplete,
    /// It is so many bytes long.
    Whole(usize),
    /// The line that ends here ends in a line feed alone.
    BareLineFeed(usize),
}

/// Looks for the end of a head. `from`: so many bytes were looked at before; kept for the next time.
pub(super) fn scan(bytes: &[u8], from: &mut usize) -> Scan {
    for at in memchr::memchr_iter(b'\n', bytes.get(*from..).unwrap_or_default()) {
        let line = bytes.get(..*from + at + 1).unwrap_or_default();
        if !line.ends_with(b"\r\n") {
            return Scan::BareLineFeed(line.len());
        }
        if line.ends_with(b"\r\n\r\n") {
            *from = 0;
            return Scan::Whole(line.len());
        }
    }
    *from = bytes.len();
    Scan::Incomplete
}

/// Reads a whole head.
///
/// # Errors
/// When hyper could not read it, or somebody could read it in another way.
pub(super) fn judge(head: &[u8]) -> Result<Next, Refused> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut request = Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(head, &mut fields);
    let verdict = match parsed {
        Ok(Status::Complete(length)) if length == head.len() => read(&request),
        Ok(_) => Err(bad("its lines end in different ways")),
        Err(error) => Err(unreadable(error)),
    };
    verdict.map_err(|(status, reason)| refused(status, reason, &request))
}

/// What is known of a request that is refused before its head was whole.
pub(super) fn refuse(head: &[u8], status: StatusCode, reason: &'static str) -> Refused {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut request = Request::new(&mut []);
    // Whatever can be read of it is for the record.
    let _ = request.parse_with_uninit_headers(head, &mut fields);
    refused(status, BadRequest(reason), &request)
}

type Trouble = (StatusCode, BadRequest);

const fn bad(reason: &'static str) -> Trouble {
    (StatusCode::BAD_REQUEST, BadRequest(reason))
}

const fn unreadable(error: Error) -> Trouble {
    match error {
        Error::TooManyHeaders => {
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, BadRequest("it has more than 100 header fields"))
        }
        Error::HeaderName => bad("the name of a header field holds a character that is not allowed there"),
        Error::HeaderValue => bad("the value of a header field holds a control character"),
        Error::NewLine => bad("it has a line that does not end with CR LF"),
        Error::Version => bad("it does not say that it is HTTP/1.1 or HTTP/1.0"),
        Error::Token | Error::Status => bad("its method or its target is malformed"),
    }
}

fn read(request: &Request<'_, '_>) -> Result<Next, Trouble> {
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(bad("it has no target"));
    };
    if target.len() > TARGET {
        return Err((StatusCode::URI_TOO_LONG, BadRequest("its target is too long")));
    }
    if !is_plain(target) {
        if target.contains('#') {
            return Err(bad("its target holds a `#`"));
        }
        if target.parse::<Uri>().is_err() {
            return Err(bad("its target is malformed"));
        }
    }
    let (mut length, mut encodings, mut chunked, mut upgrade) = (None, 0, false, method == "CONNECT");
    for Header { name, value } in request.headers.iter() {
        match name.len() {
            14 if name.eq_ignore_ascii_case("content-length") => {
                if length.is_some() {
                    return Err(bad("it has more than one `Content-Length`"));
                }
                length = Some(number(value).ok_or(bad("its `Content-Length` is not a number"))?);
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                encodings += 1;
                chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            }
            7 if name.eq_ignore_ascii_case("upgrade") => upgrade = true,
            _ => {}
        }
    }
    match (encodings, length) {
        (0, None | Some(0)) if upgrade => Ok(Next::Anything),
        (0, None | Some(0)) => Ok(Next::Request),
        (0, Some(length)) => Ok(Next::Body(length)),
        (_, Some(_)) => Err(bad("it has both a `Content-Length` and a `Transfer-Encoding`")),
        (1, None) if request.version != Some(1) => {
            Err(bad("it has a `Transfer-Encoding`, which HTTP/1.0 does not know"))
        }
        (1, None) if chunked => Ok(Next::Chunks),
        (1, None) => Err(bad("its `Transfer-Encoding` is not `chunked`")),
        (_, None) => Err(bad("it has more than one `Transfer-Encoding`")),
    }
}

/// A path, and perhaps a query, of which every byte is one that a URI may hold (RFC 3986 §3.3).
fn is_plain(target: &str) -> bool {
    const PLAIN: [bool; 256] = {
        let mut table = [false; 256];
        let allowed = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/?%";
        let mut at = 0;
        while at < allowed.len() {
            #[allow(clippy::indexing_slicing, reason = "a byte is an index into 256")]
            {
                table[allowed[at] as usize] = true;
            }
            at += 1;
        }
        table
    };
    target.starts_with('/') && target.bytes().all(|byte| PLAIN.get(usize::from(byte)) == Some(&true))
}

fn number(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    // The largest lengths are hyper's marks for something else.
    text?.parse().ok().filter(|length| *length < u64::MAX - 2)
}

fn refused(status: StatusCode, reason: BadRequest, request: &Request<'_, '_>) -> Refused {
    let path = request.path.map(|target| target.split(['?', '#']).next().unwrap_or_default().to_owned());
    let method = request.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
    Refused { misread: Misread { status, reason, method, path }, stand_in: stand_in(request) }
}

fn stand_in(request: &Request<'_, '_>) -> Vec<u8> {
    const KEPT: [&str; 9] = [
        "host",
        "accept",
        "content-type",
        "sec-fetch-mode",
        "sec-fetch-dest",
        "user-agent",
        "x-forwarded-for",
        "x-request-id",
        "x-requested-with",
    ];
    let method = if request.method == Some("HEAD") { "HEAD" } else { "GET" };
    let mut bytes = format!("{method} / HTTP/1.1\r\n").into_bytes();
    for Header { name, value } in request.headers.iter() {
        if KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(name)) {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason(head: &str) -> &'static str {
        judge(head.as_bytes()).unwrap_err().misread.reason.0
    }

    #[test]
    fn plain_heads_say_what_follows() {
        for (head, next) in [
            ("GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n", Next::Request),
            ("POST /b HTTP/1.1\r\nContent-Length: 5\r\n\r\n", Next::Body(5)),
            ("POST /b HTTP/1.1\r\ncontent-length: 0\r\n\r\n", Next::Request),
            ("POST /c HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n", Next::Chunks),
            ("GET /c HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", Next::Anything),
            ("POST /c HTTP/1.1\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\n", Next::Body(3)),
            ("GET http://a.test/x HTTP/1.0\r\n\r\n", Next::Request),
            ("OPTIONS * HTTP/1.1\r\n\r\n", Next::Request),
        ] {
            assert_eq!(judge(head.as_bytes()).unwrap(), next, "{head:?}");
        }
    }

    #[test]
    fn whatever_is_not_framed_in_the_one_plain_way_is_refused() {
        for (head, said) in [
            ("GET / HTTP/1.1\r\nHost: a\r\rX: b\r\n\r\n", "control character"),
            ("GET /admin#/public HTTP/1.1\r\n\r\n", "`#`"),
            ("GET /a<b HTTP/1.1\r\n\r\n", "malformed"),
            ("GET http://[::1 HTTP/1.1\r\n\r\n", "malformed"),
            ("GET / HTTP/2.0\r\n\r\n", "HTTP/1.1"),
            ("PRI * HTTP/2.0\r\n\r\n", "HTTP/1.1"),
            ("GET / HTTP/1.1\r\nX Y: z\r\n\r\n", "name of a header"),
            ("GET / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n", "name of a header"),
            ("GET / HTTP/1.1\r\nX: y\r\n folded\r\n\r\n", "name of a header"),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0"),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "both"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "both"),
            ("POST / HTTP/1.1\r\nTRANSFER-encoding: xchunked\r\ncontent-LENGTH: 0\r\n\r\n", "both"),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "more than one `Content"),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "more than one `Content"),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                "more than one `Transfer",
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n",
                "more than one",
            ),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n", "not `chunked`"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "not `chunked`"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", "not `chunked`"),
            ("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", "not a number"),
            ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", "not a number"),
            ("POST / HTTP/1.1\r\nContent-Length: \r\n\r\n", "not a number"),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", "not a number"),
            ("POST / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n", "not a number"),
        ] {
            assert!(reason(head).contains(said), "{head:?}: {}", reason(head));
        }
    }

    #[test]
    fn a_refused_head_keeps_what_says_who_asks_and_no_query() {
        let refused =
            judge(b"GET /a?code=secret#x HTTP/1.1\r\nHost: a.test\r\nCookie: s=1\r\nAccept: */*\r\n\r\n")
                .unwrap_err();
        assert_eq!(refused.misread.method, Some(Method::GET));
        assert_eq!(refused.misread.path.as_deref(), Some("/a"));
        assert_eq!(refused.stand_in, b"GET / HTTP/1.1\r\nHost: a.test\r\nAccept: */*\r\n\r\n");
    }

    #[test]
    fn the_end_is_found_wherever_the_bytes_are_cut() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest\r\n\r\n";
        for cut in 1..head.len() {
            let mut from = 0;
            let first = scan(&head[..cut], &mut from);
            let whole = Scan::Whole(27);
            assert_eq!(first, if cut < 27 { Scan::Incomplete } else { whole }, "{cut}");
            assert_eq!(scan(head, &mut from), whole, "{cut}");
        }
        assert_eq!(scan(b"GET / HTTP/1.1\nHost", &mut 0), Scan::BareLineFeed(15));
        assert_eq!(scan(b"GET / HTTP/1.1\r\nHost: a\n\r\n", &mut 0), Scan::BareLineFeed(24));
    }

    /// Whether hyper hands a request out, or answers itself.
    fn hyper_reads(head: &[u8]) -> bool {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(256 * 1024);
            let service = hyper::service::service_fn(async |_| {
                let reply = http::Response::builder().status(299).header("connection", "close");
                Ok::<_, std::convert::Infallible>(
                    reply.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap(),
                )
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            let served = builder
                .max_header_size(64 * 1024)
                .serve_connection(hyper_util::rt::TokioIo::new(server), service);
            client.write_all(head).await.unwrap();
            let mut answer = Vec::new();
            let (_, read) = tokio::join!(served, async { client.read_to_end(&mut answer).await });
            read.unwrap();
            answer.starts_with(b"HTTP/1.1 299") || answer.starts_with(b"HTTP/1.0 299")
        })
    }

    proptest! {
        /// A head that passes here and not there would be answered by hyper, and nobody would hear of it.
        #[test]
        fn what_passes_here_hyper_reads_too(
            method in "[A-Z]{1,4}|GET|CONNECT|[!-~]{1,3}",
            target in "/[ -~]{0,6}|\\*|[a-z:/\\[\\]@%#?]{1,12}|/[\\x00-\\xff]{0,3}|http://[a-z:\\[\\]@.]{0,8}(/[!-~]{0,4})?",
            version in "HTTP/1\\.[01]|HTTP/[0-9]\\.[0-9]",
            fields in "((Host|Content-Length|Transfer-Encoding|Upgrade|Expect|[!-~]{1,4}): ?([0-9]{0,20}|chunked|[ -~]{0,6}|[\\x00-\\xff]{0,2})\r\n){0,4}",
        ) {
            let head = format!("{method} {target} {version}\r\n{fields}\r\n");
            if scan(head.as_bytes(), &mut 0) == Scan::Whole(head.len()) && judge(head.as_bytes()).is_ok() {
                prop_assert!(hyper_reads(head.as_bytes()), "{head:?}");
            }
        }
    }
}
