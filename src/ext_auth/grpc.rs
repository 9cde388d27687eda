//! Single calls over gRPC: one message in, one message out (the gRPC protocol over HTTP/2).

use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderMap, HeaderValue, Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, Limited};
use prost::Message;

pub use crate::http::grpc::{frame, status};
use crate::http::headers::{GRPC_MESSAGE, GRPC_STATUS};
use crate::http::{Body, BodyError, Stream};

/// The largest message that is read.
const LARGEST: usize = 1024 * 1024;
/// How long a message may take to arrive.
const SLOWEST: Duration = Duration::from_secs(30);

/// The service that says whether others are up.
pub const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Why a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its number (google.rpc.Code).
    pub code: &'static str,
    /// What to say about it: printable ASCII without `%`.
    pub message: &'static str,
}

/// What the health service is asked (grpc.health.v1.HealthCheckRequest).
#[derive(Clone, PartialEq, Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// What it answers (grpc.health.v1.HealthCheckResponse): 1 is `SERVING`.
#[derive(Clone, PartialEq, Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// A message and its trailers.
struct Reply {
    message: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Stream for Reply {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let message = self.message.take().map(Frame::data);
        Poll::Ready(message.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn size_hint(&self) -> SizeHint {
        // With a size, the trailers would not be waited for.
        SizeHint::default()
    }
}

impl Status {
    /// The request cannot be read.
    pub const fn malformed(message: &'static str) -> Self {
        Self { code: "3", message }
    }

    /// There is no such service or method.
    pub const UNKNOWN: Self = Self { code: "12", message: "there is no such method here" };

    /// The answer that says so.
    pub fn answer(self) -> Response<Body> {
        let mut response = headers(Body::empty());
        response.headers_mut().insert(GRPC_STATUS.clone(), HeaderValue::from_static(self.code));
        response.headers_mut().insert(GRPC_MESSAGE.clone(), HeaderValue::from_static(self.message));
        response
    }
}

/// Reads the body of a call: one message in its frame.
///
/// # Errors
/// When it is too large or too slow.
pub async fn read_body(body: &mut Body) -> Result<Bytes, Status> {
    let read = tokio::time::timeout(SLOWEST, Limited::new(body, LARGEST).collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        _ => Err(Status { code: "8", message: "the message is too large or too slow" }),
    }
}

/// Reads the one message of a body.
///
/// # Errors
/// When it is compressed, or is not one message of this kind.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Status> {
    let not_one = Status::malformed("that is not one message");
    let (head, message) = bytes.split_first_chunk::<5>().ok_or(not_one)?;
    let [compressed, length @ ..] = *head;
    if compressed != 0 {
        return Err(Status { code: "12", message: "compressed messages are not read" });
    }
    if u32::from_be_bytes(length) as usize != message.len() {
        return Err(not_one);
    }
    M::decode(message).map_err(|_| Status::malformed("the message cannot be read"))
}

/// The answer to a call that succeeded.
pub fn reply(message: &impl Message) -> Response<Body> {
    let trailers = HeaderMap::from_iter([(GRPC_STATUS.clone(), HeaderValue::from_static("0"))]);
    headers(Body::stream(Box::new(Reply { message: Some(frame(message)), trailers: Some(trailers) })))
}

/// Answers whether a service is up. Without a name: whether anything is.
pub fn health(body: &[u8], services: &[&str]) -> Response<Body> {
    match decode::<HealthRequest>(body) {
        Ok(asked) if asked.service.is_empty() || services.contains(&asked.service.as_str()) => {
            reply(&HealthResponse { status: 1 })
        }
        Ok(_) => Status { code: "5", message: "there is no such service here" }.answer(),
        Err(status) => status.answer(),
    }
}

fn headers(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let written = frame(&HealthRequest { service: "envoy".into() });
        assert_eq!(decode::<HealthRequest>(&written).unwrap().service, "envoy");
        assert_eq!(decode::<HealthRequest>(&frame(&HealthRequest::default())).unwrap().service, "");
        let mut longer = written.to_vec();
        longer.push(0);
        let mut compressed = written.to_vec();
        compressed[0] = 1;
        let broken = frame(&HealthRequest { service: "x".into() }).to_vec();
        let broken = [&broken[..5], &[0x0a, 0x7f]].concat();
        for (bytes, code) in
            [(&b""[..], "3"), (&[0, 0, 0, 0], "3"), (&written[..7], "3"), (&longer, "3"), (&compressed, "12")]
        {
            assert_eq!(decode::<HealthRequest>(bytes).unwrap_err().code, code, "{bytes:?}");
        }
        assert!(decode::<HealthRequest>(&broken).is_err());
    }
}
