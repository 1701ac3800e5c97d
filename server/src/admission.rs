//! How many changes may be in flight on this node, by count and by bytes. Beyond: refused at once, so that
//! a burst waits at the clients instead of in this node's memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds the changes in flight. Invariant: what is admitted and not yet released never exceeds either limit.
#[derive(Debug)]
pub struct Admission {
    count: Arc<Semaphore>,
    kib: Arc<Semaphore>,
}

/// Room for one change; released on drop.
#[derive(Debug)]
pub struct Admitted {
    _count: OwnedSemaphorePermit,
    _kib: OwnedSemaphorePermit,
}

impl Admission {
    /// At most `proposals_max` changes of together `bytes_max` bytes (counted in KiB, rounded up).
    pub fn new(proposals_max: usize, bytes_max: usize) -> Self {
        Self { count: Arc::new(Semaphore::new(proposals_max)), kib: Arc::new(Semaphore::new(bytes_max.div_ceil(1024))) }
    }

    /// Room for a change of `bytes`, or None when there is none now.
    pub fn admit(&self, bytes: usize) -> Option<Admitted> {
        let count = self.count.clone().try_acquire_owned().ok()?;
        let kib = u32::try_from(bytes.div_ceil(1024).max(1)).ok()?;
        let kib = self.kib.clone().try_acquire_many_owned(kib).ok()?;
        Some(Admitted { _count: count, _kib: kib })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_up_to_either_limit_and_again_after_release() {
        let admission = Admission::new(2, 4096);
        let a = admission.admit(1).expect("room");
        let b = admission.admit(2048).expect("room");
        assert!(admission.admit(1).is_none(), "two of two are in flight");
        drop(a);
        assert!(admission.admit(3000).is_none(), "3,000 bytes do not fit beside 2,048 in 4,096");
        drop(b);
        assert!(admission.admit(4096).is_some());
    }
}
