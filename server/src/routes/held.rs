//! Answers that are large enough to count: they hold their room in memory until the client has taken them.

use axum::{
    body::Body,
    http::{Response, header},
};
use bytes::Bytes;
use futures_util::stream;

use crate::{admission::Admitted, error::Error, node::Node};

/// Answers up to this size, in bytes, are sent in one piece and not counted; larger ones in such pieces.
pub const PIECE_BYTES: usize = 64 * 1024;

/// A response with the body `bytes`.
///
/// # Errors
/// 429 while other answers that are being sent take all the room there is.
pub fn respond(node: &Node, bytes: Bytes) -> Result<Response<Body>, Error> {
    if bytes.len() <= PIECE_BYTES {
        return Ok(Response::new(Body::from(bytes)));
    }
    let room = node.answers.admit(bytes.len()).ok_or_else(Error::answers_overloaded)?;
    let length = bytes.len();
    let mut response = Response::new(in_pieces(bytes, room));
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}

/// The body that lets go of `room` with its last piece: the pieces before it were taken by then.
fn in_pieces(bytes: Bytes, room: Admitted) -> Body {
    Body::from_stream(stream::unfold((bytes, room), |(mut rest, room)| async move {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        (!piece.is_empty()).then(|| (Ok::<_, Error>(piece), (rest, room)))
    }))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::admission::Admission;

    #[tokio::test]
    async fn room_is_held_until_the_last_piece_is_taken() {
        let admission = Admission::new(10, 4 * PIECE_BYTES);
        let bytes = Bytes::from((0..3 * PIECE_BYTES + 5).map(|i| i as u8).collect::<Vec<_>>());
        let mut body = in_pieces(bytes.clone(), admission.admit(4 * PIECE_BYTES).expect("room"));
        let mut taken = Vec::new();
        while let Some(frame) = body.frame().await {
            assert!(admission.admit(1).is_none(), "the answer is not sent yet");
            taken.extend_from_slice(&frame.expect("no error").into_data().expect("data"));
        }
        assert_eq!(taken, bytes);
        assert!(admission.admit(1).is_some());
    }
}
