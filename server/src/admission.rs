//! How many changes may be in flight on this node, by count and by bytes. Beyond: refused at once, so that
//! a burst waits at the clients instead of in this node's memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds the changes in flight. Invariant: what is admitted and not yet released never exceeds either limit.
#[derive(Debug)]
pub struct Admission {
    count: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    count_max: usize,
    kib_max: usize,
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
        let (count_max, kib_max) = (proposals_max, bytes_max.div_ceil(1024));
        let (count, kib) = (Arc::new(Semaphore::new(count_max)), Arc::new(Semaphore::new(kib_max)));
        Self { count, kib, count_max, kib_max }
    }

    /// How many are in flight, and their bytes, each rounded up to KiB.
    pub fn in_flight(&self) -> (usize, usize) {
        let count = self.count_max - self.count.available_permits();
        (count, (self.kib_max - self.kib.available_permits()) * 1024)
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
        assert_eq!(admission.in_flight(), (2, 3072));
        assert!(admission.admit(1).is_none(), "two of two are in flight");
        drop(a);
        assert!(admission.admit(3000).is_none(), "3,000 bytes do not fit beside 2,048 in 4,096");
        drop(b);
        assert_eq!(admission.in_flight(), (0, 0));
        assert!(admission.admit(4096).is_some());
    }
}
