//! What gRPC is over HTTP/2: a message in a frame, and a status at the end.

use ::http::HeaderMap;
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;

use super::headers::{GRPC_MESSAGE, GRPC_STATUS};

/// A message in its frame.
pub fn frame(message: &impl Message) -> Bytes {
    let mut out = begin(message.encoded_len());
    // There is room for it.
    let _ = message.encode(&mut out);
    out.freeze()
}

/// A message that is encoded already, in its frame.
pub fn frame_encoded(message: &[u8]) -> Bytes {
    let mut out = begin(message.len());
    out.put_slice(message);
    out.freeze()
}

/// What comes before a message: that it is not compressed, and its length.
fn begin(length: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out
}

/// The status in the trailers of an answer, or in its head, and what is said about it; `None` when there is none.
pub fn status(fields: &HeaderMap) -> Option<(&str, &str)> {
    let text = |name| fields.get(name).and_then(|value| value.to_str().ok());
    Some((text(&GRPC_STATUS)?, text(&GRPC_MESSAGE).unwrap_or_default()))
}
