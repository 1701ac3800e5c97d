//! The secret that nodes of a cluster share.

use std::{fmt, sync::Arc};

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Length of a proof, in bytes.
pub const PROOF_BYTES: usize = 32;

/// Who proves. Part of what is authenticated, so that a proof sent back to its maker is worthless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The side that connected.
    Initiator,
    /// The side that listens.
    Responder,
}

/// A secret shared by the nodes of a cluster. Proved, never sent; never printed. The side that connects proves first: a listener
/// that it connects to, and a reader of multicast announcements, can guess a short cookie offline. So it must be random and long.
#[derive(Clone)]
pub struct Cookie(Arc<[u8]>);

impl Cookie {
    /// A cookie of these bytes.
    pub fn new(secret: impl Into<Vec<u8>>) -> Self {
        Self(secret.into().into())
    }

    fn mac(&self, role: Role, transcript: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(match role {
            Role::Initiator => b"hexkv handshake: initiator",
            Role::Responder => b"hexkv handshake: responder",
        });
        for part in transcript {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }

    fn mac_of_message(&self, context: &str, message: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(context.as_bytes());
        mac.update(&[0]);
        mac.update(message);
        mac
    }

    /// Signs a message that stands alone. `context` says what it is for: a signature is worth nothing in another one.
    pub fn sign(&self, context: &str, message: &[u8]) -> [u8; PROOF_BYTES] {
        self.mac_of_message(context, message).finalize().into_bytes().into()
    }

    /// Checks what [`Self::sign`] gave, in constant time.
    pub fn is_signature(&self, context: &str, message: &[u8], signature: &[u8]) -> bool {
        self.mac_of_message(context, message).verify_slice(signature).is_ok()
    }

    /// Proves knowledge of the cookie to the other side of this very handshake, whose parts so far are `transcript`.
    pub(crate) fn prove(&self, role: Role, transcript: &[&[u8]]) -> [u8; PROOF_BYTES] {
        self.mac(role, transcript).finalize().into_bytes().into()
    }

    /// Checks the other side's proof, in constant time.
    pub(crate) fn verify(&self, role: Role, transcript: &[&[u8]], proof: &[u8]) -> bool {
        self.mac(role, transcript).verify_slice(proof).is_ok()
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_no_secret() {
        assert_eq!(format!("{:?}", Cookie::new("hunter2")), "Cookie(secret)");
    }

    #[test]
    fn a_proof_holds_for_one_role_one_transcript_and_one_cookie() {
        let cookie = Cookie::new("a");
        let parts: [&[u8]; 2] = [b"hello", b"challenge"];
        let proof = cookie.prove(Role::Initiator, &parts);
        assert!(cookie.verify(Role::Initiator, &parts, &proof));
        assert!(!cookie.verify(Role::Responder, &parts, &proof));
        assert!(!cookie.verify(Role::Initiator, &[b"hell", b"ochallenge"], &proof));
        assert!(!cookie.verify(Role::Initiator, &[b"hello", b"challenge", b""], &proof));
        assert!(!cookie.verify(Role::Initiator, &parts, &proof[..31]));
        assert!(!Cookie::new("b").verify(Role::Initiator, &parts, &proof));
    }

    #[test]
    fn a_signature_holds_for_one_context_one_message_and_one_cookie() {
        let cookie = Cookie::new("a");
        let signature = cookie.sign("here", b"message");
        assert!(cookie.is_signature("here", b"message", &signature));
        assert!(!cookie.is_signature("her", b"e\0message", &signature));
        assert!(!cookie.is_signature("there", b"message", &signature));
        assert!(!cookie.is_signature("here", b"messages", &signature));
        assert!(!cookie.is_signature("here", b"message", &signature[..31]));
        assert!(!Cookie::new("b").is_signature("here", b"message", &signature));
    }
}
