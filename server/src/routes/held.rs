//! Answers that are large enough to count: they hold their room in memory until the client has taken them.

use axum::{
    body::Body,
    http::{Response, header},
};
use bytes::Bytes;
use futures_util::stream;

use crate::{
    admission::Admitted,
    error::Error,
    node::Node,
    transfers::{Pieces, Transfer},
};

/// Answers up to this size, in bytes, are sent in one piece and not counted; larger ones in such pieces.
pub const PIECE_BYTES: usize = 64 * 1024;

/// Room for an answer of `bytes`. Answers that their clients take too slowly are cut off for it.
///
/// # Errors
/// 429 while other answers that are being sent take all the room there is.
pub fn room(node: &Node, bytes: usize) -> Result<Admitted, Error> {
    loop {
        match node.answers.admit(bytes) {
            Some(room) => return Ok(room),
            None if node.sending.cut_off_slowest() => {}
            None => return Err(Error::answers_overloaded()),
        }
    }
}

/// A response with the body `bytes`.
///
/// # Errors
/// As [`room`].
pub fn respond(node: &Node, bytes: Bytes) -> Result<Response<Body>, Error> {
    if bytes.len() <= PIECE_BYTES {
        return Ok(Response::new(Body::from(bytes)));
    }
    let _room = room(node, bytes.len())?;
    let length = bytes.len();
    let mut response = Response::new(body(node, Whole { rest: bytes, _room }));
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}

/// The body that lets go of the room of `pieces` with its last one: those before it were taken by then.
pub fn body(node: &Node, pieces: impl Pieces + 'static) -> Body {
    in_pieces(node.sending.begin(Box::new(pieces)))
}

fn in_pieces(transfer: Transfer<Box<dyn Pieces>>) -> Body {
    Body::from_stream(stream::try_unfold((0, transfer), |(taken, transfer)| async move {
        let piece = transfer.take(taken, |pieces| pieces.next())?;
        Ok::<_, std::io::Error>(piece.map(|piece| (piece.clone(), (piece.len(), transfer))))
    }))
}

/// An answer that is in memory as it is sent.
struct Whole {
    rest: Bytes,
    _room: Admitted,
}

impl Pieces for Whole {
    fn next(&mut self) -> Option<Bytes> {
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some(piece)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::{admission::Admission, transfers::Transfers};

    #[tokio::test]
    async fn room_is_held_until_the_last_piece_is_taken() {
        let admission = Admission::new(10, 4 * PIECE_BYTES);
        let bytes = Bytes::from((0..3 * PIECE_BYTES + 5).map(|i| i as u8).collect::<Vec<_>>());
        let _room = admission.admit(4 * PIECE_BYTES).expect("room");
        let whole: Box<dyn Pieces> = Box::new(Whole { rest: bytes.clone(), _room });
        let transfers = Transfers::default();
        let mut body = in_pieces(transfers.begin(whole));
        let mut taken = Vec::new();
        while let Some(frame) = body.frame().await {
            assert!(admission.admit(1).is_none(), "the answer is not sent yet");
            taken.extend_from_slice(&frame.expect("no error").into_data().expect("data"));
        }
        assert_eq!(taken, bytes);
        assert!(admission.admit(1).is_some());
    }
}
