//! Stands in for `rand` 0.8 in the simulation: the part of it that `age` calls, with bytes from the seed of the world.

pub use rand_core::{CryptoRng, Error, RngCore};

/// What every generator can do beyond raw bytes; here nothing.
pub trait Rng: RngCore {}

impl<R: RngCore + ?Sized> Rng for R {}

/// The calling thread's generator: the same as the operating system's.
pub fn thread_rng() -> rngs::OsRng {
    rngs::OsRng
}

/// Generators.
pub mod rngs {
    use super::{CryptoRng, Error, RngCore};

    /// The "operating system".
    #[derive(Debug, Clone, Copy, Default)]
    pub struct OsRng;

    impl RngCore for OsRng {
        fn next_u32(&mut self) -> u32 {
            rand_core::impls::next_u32_via_fill(self)
        }

        fn next_u64(&mut self) -> u64 {
            rand_core::impls::next_u64_via_fill(self)
        }

        fn fill_bytes(&mut self, dest: &mut [u8]) {
            keepwell_sim_entropy::fill(dest);
        }

        fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
            self.fill_bytes(dest);
            Ok(())
        }
    }

    impl CryptoRng for OsRng {}
}

/// Distributions.
pub mod distributions {
    use std::marker::PhantomData;
    use std::ops::{Range, RangeInclusive};

    use super::Rng;

    /// Gives random values.
    pub trait Distribution<T> {
        /// The next value.
        fn sample<R: Rng + ?Sized>(&self, rng: &mut R) -> T;

        /// All further values.
        fn sample_iter<R: Rng>(self, rng: R) -> DistIter<Self, R, T>
        where
            Self: Sized,
        {
            DistIter { distribution: self, rng, of: PhantomData }
        }
    }

    /// Values without end.
    #[derive(Debug)]
    pub struct DistIter<D, R, T> {
        distribution: D,
        rng: R,
        of: PhantomData<T>,
    }

    impl<D: Distribution<T>, R: Rng, T> Iterator for DistIter<D, R, T> {
        type Item = T;

        fn next(&mut self) -> Option<T> {
            Some(self.distribution.sample(&mut self.rng))
        }
    }

    /// Whole numbers between two bounds; almost even.
    #[derive(Debug, Clone, Copy)]
    pub struct Uniform<T> {
        first: u64,
        count: u64,
        of: PhantomData<T>,
    }

    /// A number type that a [`Uniform`] can give.
    pub trait SampleUniform: Copy {
        /// As a wide number.
        fn widen(self) -> u64;
        /// Back again.
        fn narrow(wide: u64) -> Self;
    }

    macro_rules! whole {
        ($($number:ty),*) => {$(
            impl SampleUniform for $number {
                fn widen(self) -> u64 {
                    self as u64
                }

                fn narrow(wide: u64) -> Self {
                    wide as Self
                }
            }
        )*};
    }

    whole!(u8, u32, usize, i32);

    impl<T: SampleUniform> From<Range<T>> for Uniform<T> {
        fn from(range: Range<T>) -> Self {
            Self {
                first: range.start.widen(),
                count: range.end.widen() - range.start.widen(),
                of: PhantomData,
            }
        }
    }

    impl<T: SampleUniform> From<RangeInclusive<T>> for Uniform<T> {
        fn from(range: RangeInclusive<T>) -> Self {
            let count = range.end().widen() - range.start().widen() + 1;
            Self { first: range.start().widen(), count, of: PhantomData }
        }
    }

    impl<T: SampleUniform> Distribution<T> for Uniform<T> {
        fn sample<R: Rng + ?Sized>(&self, rng: &mut R) -> T {
            T::narrow(self.first + rng.next_u64() % self.count)
        }
    }

    /// Letters and digits.
    #[derive(Debug, Clone, Copy)]
    pub struct Alphanumeric;

    /// Gives random text.
    pub trait DistString {
        /// Appends `len` characters.
        fn append_string<R: Rng + ?Sized>(&self, rng: &mut R, string: &mut String, len: usize);

        /// A text of `len` characters.
        fn sample_string<R: Rng + ?Sized>(&self, rng: &mut R, len: usize) -> String {
            let mut text = String::new();
            self.append_string(rng, &mut text, len);
            text
        }
    }

    impl DistString for Alphanumeric {
        fn append_string<R: Rng + ?Sized>(&self, rng: &mut R, string: &mut String, len: usize) {
            const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
            string.extend((0..len).map(|_| char::from(LETTERS[(rng.next_u64() % 62) as usize])));
        }
    }
}
