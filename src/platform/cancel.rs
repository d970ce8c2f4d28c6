//! How a run is asked to stop: a token that its parts ask between the pieces of their work.

use crate::platform::typed::{find, through_candle};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Asks a run to stop. Its clones are one token.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// The error of a run that was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

impl Cancel {
    /// Asks whoever holds a clone to stop, for good.
    pub fn cancel(&self) {
        self.0.store(true, SeqCst);
    }

    /// Tells whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(SeqCst)
    }

    /// - Errors when it was asked to stop.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// Sleeps for so long.
    /// - Errors soon after it is asked to stop.
    pub fn sleep(&self, time: Duration) -> Result<(), Cancelled> {
        /// Between two looks.
        const NAP: Duration = Duration::from_millis(50);
        let begun = Instant::now();
        loop {
            self.check()?;
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

impl Cancelled {
    /// Tells whether it is among the causes of an error.
    pub fn caused(error: &anyhow::Error) -> bool {
        find::<Cancelled>(error).is_some()
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the run was cancelled")
    }
}

impl std::error::Error for Cancelled {}

/// Networks are asked too, whose errors are candle's.
impl From<Cancelled> for candle_core::Error {
    fn from(cancelled: Cancelled) -> Self {
        through_candle(cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn clones_are_one_token() {
        let cancel = Cancel::default();
        let other = cancel.clone();
        assert_eq!((other.check(), other.is_cancelled()), (Ok(()), false));
        cancel.cancel();
        assert_eq!((other.check(), other.is_cancelled()), (Err(Cancelled), true));
        assert_eq!(Cancel::default().check(), Ok(()));
    }

    #[test]
    fn sleep_ends_when_it_is_over_or_cancelled() {
        let cancel = Cancel::default();
        let begun = Instant::now();
        assert_eq!(cancel.sleep(Duration::from_millis(60)), Ok(()));
        assert!(begun.elapsed() >= Duration::from_millis(60));
        let other = cancel.clone();
        let thread = std::thread::spawn(move || other.sleep(Duration::from_secs(3600)));
        cancel.cancel();
        assert_eq!(thread.join().unwrap(), Err(Cancelled));
    }

    #[test]
    fn it_is_known_through_what_it_is_wrapped_in() {
        let by_candle = || -> candle_core::Result<()> {
            Cancel::default().check()?;
            Err(Cancelled)?
        };
        let errors = [
            anyhow::Error::new(Cancelled),
            anyhow::Error::new(Cancelled).context("cannot lock `a`"),
            by_candle().unwrap_err().into(),
            by_candle().context("the model").unwrap_err(),
        ];
        for error in errors {
            assert!(
                Cancelled::caused(&error) && error.root_cause().to_string() == "the run was cancelled",
                "{error:#}"
            );
        }
        assert!(!Cancelled::caused(&anyhow!("the run was cancelled")));
    }
}
