//! The seam for randomness: the operating system's, or, on a thread where [`seed`] was called, a stream that the seed
//! decides. All random choices of this crate, of raft-net and of openraft come from here, so that a simulation repeats
//! exactly.

use std::{cell::RefCell, convert::Infallible};

use rand::{
    Rng, RngExt, SeedableRng, TryRng,
    distr::{
        Distribution, StandardUniform,
        uniform::{SampleRange, SampleUniform},
    },
    rngs::StdRng,
};

thread_local! {
    static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// From now on the calling thread's randomness follows from `seed`. For simulations, which run in one thread; there is
/// no way back.
pub fn seed(seed: u64) {
    SEEDED.with_borrow_mut(|seeded| *seeded = Some(StdRng::seed_from_u64(seed)));
}

/// A random value of any kind that has a uniform distribution.
pub fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    Entropy.random()
}

/// A random value within `range`.
pub fn random_range<T: SampleUniform>(range: impl SampleRange<T>) -> T {
    Entropy.random_range(range)
}

/// The calling thread's source of randomness.
#[derive(Debug, Clone, Copy)]
pub struct Entropy;

impl Entropy {
    fn with<R>(seeded: impl FnOnce(&mut StdRng) -> R, unseeded: impl FnOnce(&mut rand::rngs::ThreadRng) -> R) -> R {
        SEEDED.with_borrow_mut(|rng| match rng {
            Some(rng) => seeded(rng),
            None => unseeded(&mut rand::rng()),
        })
    }
}

impl TryRng for Entropy {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(Self::with(Rng::next_u32, Rng::next_u32))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(Self::with(Rng::next_u64, Rng::next_u64))
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Infallible> {
        // A slice can be lent to one of the two closures only.
        let seeded = SEEDED.with_borrow_mut(|rng| match rng {
            Some(rng) => {
                rng.fill_bytes(into);
                true
            }
            None => false,
        });
        if !seeded {
            rand::rng().fill_bytes(into);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn() -> (u64, [u8; 32], u32) {
        (random(), random(), random_range(0..u32::MAX))
    }

    #[test]
    fn a_seeded_thread_repeats_itself_and_others_do_not() {
        let seeded = |n| {
            std::thread::spawn(move || {
                seed(n);
                drawn()
            })
            .join()
            .unwrap()
        };
        assert_eq!(seeded(7), seeded(7));
        assert_ne!(seeded(7), seeded(8));
        assert_ne!(drawn(), drawn());
    }
}
