//! Errors of ours that are known by their type, whatever they came through: anyhow's contexts, and candle's errors, of which those
//! alone that stand for an error of the system's keep what they were made of.

use candle_core::Error;
use std::io;

/// Makes an error of ours one of candle's, for what is called within a network.
pub fn through_candle(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Io(io::Error::other(error))
}

/// Finds an error of ours among the causes of another.
pub fn find<T: std::error::Error + 'static>(error: &anyhow::Error) -> Option<&T> {
    error.chain().find_map(|cause| match cause.downcast_ref().map(innermost) {
        Some(Error::Io(error)) => error.get_ref().and_then(|inner| inner.downcast_ref()),
        _ => cause.downcast_ref(),
    })
}

/// Takes off what candle puts around its errors on their way.
pub fn innermost(error: &Error) -> &Error {
    match error {
        Error::Context { inner, .. } | Error::WithPath { inner, .. } | Error::WithBacktrace { inner, .. } => {
            innermost(inner)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};
    use std::fmt;

    #[derive(Debug)]
    struct Ours;

    impl fmt::Display for Ours {
        fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("ours")
        }
    }

    impl std::error::Error for Ours {}

    #[test]
    fn ours_is_found_through_what_is_around_it() {
        let errors = [
            anyhow::Error::new(Ours),
            anyhow::Error::new(Ours).context("a").context("b"),
            through_candle(Ours).into(),
            anyhow::Error::new(through_candle(Ours).context("a").with_path("b")).context("c"),
        ];
        for error in errors {
            assert!(find::<Ours>(&error).is_some(), "{error:#}");
        }
        assert_eq!(through_candle(Ours).to_string(), "ours");
        let others =
            [anyhow!("ours"), Error::Msg("ours".to_string()).into(), Error::Io(io::Error::other("ours")).into()];
        assert!(others.iter().all(|error| find::<Ours>(error).is_none()));
        assert!(Err::<(), _>(Error::UnwrapNone).context("a").is_err_and(|error| find::<Ours>(&error).is_none()));
    }
}
