//! Decoders of other people's making panic on some damaged files. Here that is an error like any other damage.

use anyhow::{Result, bail};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// This thread is at work within `guarded`.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Does the work, and turns its panic into an error. Nothing is printed meanwhile; panics of other threads are told as ever.
/// - What the work had in hand is not to be used after an error.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                print(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    match result {
        Ok(result) => result,
        Err(_) => bail!("it is damaged: its decoder gave up on it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_work_goes_on() -> Result<()> {
        let broken: Result<u8> = guarded(|| Ok([1u8, 2][std::hint::black_box(5)]));
        assert!(broken.err().is_some_and(|error| error.to_string().contains("damaged")));
        assert!(guarded(|| guarded::<u8>(|| panic!("inside"))).is_err() && !GUARDED.get());
        assert_eq!(guarded(|| Ok(7))?, 7);
        Ok(())
    }
}
