//! Whose fault an error is: by what it is, and not by when it came.

use crate::platform::cancel::Cancelled;
use crate::platform::typed::{find, innermost, through_candle};
use candle_core::Error as Candle;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The user can mend it: flags, files, sizes. So is all of which nothing else is known: what is checked says so in words.
    Input,
    /// A disk, memory, a device, a network, or the program itself.
    Machine,
    /// The run was asked to stop.
    Cancelled,
}

impl Fault {
    /// Tells whose fault an error is: by a mark, by the types in it, by kinds of the system's errors.
    pub fn of(error: &anyhow::Error) -> Self {
        if Cancelled::caused(error) {
            return Fault::Cancelled;
        }
        if let Some(marked) = find::<Marked>(error) {
            return marked.fault;
        }
        let known = error.is::<CannotWrite>() || error.chain().any(by_machine);
        if known { Fault::Machine } else { Fault::Input }
    }

    /// Tells whose fault an error of the system's is.
    /// - `kind`: what is not there, may not be read or is something else is a path that the user can correct.
    pub fn of_kind(kind: ErrorKind) -> Self {
        use ErrorKind::*;
        match kind {
            StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem | WriteZero | OutOfMemory
            | ResourceBusy => Fault::Machine,
            Interrupted | BrokenPipe | TimedOut | WouldBlock | Deadlock | StaleNetworkFileHandle => Fault::Machine,
            ConnectionRefused | ConnectionReset | ConnectionAborted | NotConnected => Fault::Machine,
            HostUnreachable | NetworkUnreachable | NetworkDown | AddrInUse | AddrNotAvailable => Fault::Machine,
            _ => Fault::Input,
        }
    }
}

fn by_machine(cause: &(dyn std::error::Error + 'static)) -> bool {
    let by_system = |error: &io::Error| Fault::of_kind(error.kind()) == Fault::Machine || is_hardware(error);
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return by_system(error);
    }
    match cause.downcast_ref::<Candle>().map(innermost) {
        Some(Candle::Io(error)) => by_system(error),
        // a text is ours, and says what is wrong with the weights; so does what is wrong with their file
        Some(Candle::Msg(_) | Candle::SafeTensor(_) | Candle::UnsupportedSafeTensorDtype(_)) => is_full(cause),
        Some(Candle::CannotFindTensor { .. }) => false,
        // devices, and operations on what does not go together
        Some(_) => true,
        None => false,
    }
}

/// Whether it is an error of the system's that has no kind of its own: a disk that fails, or too many files.
fn is_hardware(error: &io::Error) -> bool {
    #[cfg(unix)]
    let known = [libc::EIO, libc::EMFILE, libc::ENFILE, libc::ENXIO, libc::ENODEV];
    #[cfg(not(unix))]
    let known = [];
    error.raw_os_error().is_some_and(|code| known.contains(&code))
}

/// Whether a device has run out of memory, by what its libraries say.
pub fn out_of_memory(error: &anyhow::Error) -> bool {
    error.chain().any(is_full)
}

fn is_full(cause: &(dyn std::error::Error + 'static)) -> bool {
    let text = cause.to_string().to_lowercase();
    ["out of memory", "out_of_memory", "alloc_failed", "allocation_failed"].iter().any(|words| text.contains(words))
}

/// The head of errors of writing, `cannot write ...`.
#[derive(Debug)]
pub struct CannotWrite(pub PathBuf);

impl fmt::Display for CannotWrite {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "cannot write `{}`", self.0.display())
    }
}

/// An error of which is said whose fault it is. It reads as it did before.
#[derive(Debug)]
pub struct Marked {
    fault: Fault,
    error: anyhow::Error,
}

impl Marked {
    /// An error that is nothing but words.
    pub fn new(fault: Fault, text: &'static str) -> Self {
        Self { fault, error: anyhow::Error::msg(text) }
    }
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.error)
    }
}

impl std::error::Error for Marked {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source() // the error itself is what this one says
    }
}

impl From<Marked> for Candle {
    fn from(marked: Marked) -> Self {
        through_candle(marked)
    }
}

/// Says whose fault an error is, where its type does not, or is wrong.
pub trait Mark {
    type Output;

    /// Marks it; a cancelled run stays one.
    fn fault(self, fault: Fault) -> Self::Output;
}

impl Mark for anyhow::Error {
    type Output = anyhow::Error;

    fn fault(self, fault: Fault) -> anyhow::Error {
        if Cancelled::caused(&self) { self } else { Marked { fault, error: self }.into() }
    }
}

impl<T, E: Into<anyhow::Error>> Mark for Result<T, E> {
    type Output = anyhow::Result<T>;

    fn fault(self, fault: Fault) -> anyhow::Result<T> {
        self.map_err(|error| error.into().fault(fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn types_say_whose_fault_an_error_is() {
        let io = |kind: ErrorKind| anyhow::Error::from(io::Error::from(kind)).context("cannot read `a`");
        let candle = |error: Candle| anyhow::Error::from(error).context("the model");
        let cases = [
            (anyhow!("--frames 0 is too few\n  fix: more"), Fault::Input),
            (io(ErrorKind::NotFound), Fault::Input),
            (io(ErrorKind::PermissionDenied), Fault::Input),
            (io(ErrorKind::InvalidData), Fault::Input),
            (io(ErrorKind::StorageFull), Fault::Machine),
            (io(ErrorKind::OutOfMemory), Fault::Machine),
            (io(ErrorKind::BrokenPipe), Fault::Machine),
            (io(ErrorKind::ConnectionReset), Fault::Machine),
            // whatever kept it from being written
            (io(ErrorKind::PermissionDenied).context(CannotWrite("a.gif".into())), Fault::Machine),
            (anyhow!("x").context(CannotWrite("a.gif".into())).context("join"), Fault::Machine),
            (candle(Candle::Msg("tensor `a` has no shape\n  fix: other weights".to_string())), Fault::Input),
            (candle(Candle::Msg("CUDA_ERROR_OUT_OF_MEMORY".to_string())), Fault::Machine),
            (candle(Candle::Cuda("no kernel image".into())), Fault::Machine),
            (candle(Candle::Cuda("no kernel image".into()).context("in a layer")), Fault::Machine),
            (candle(Candle::Io(io::Error::from(ErrorKind::NotFound))), Fault::Input),
            (candle(Candle::Io(io::Error::from(ErrorKind::StorageFull))), Fault::Machine),
            (candle(Candle::UnwrapNone), Fault::Machine),
            (anyhow::Error::new(Cancelled).context(CannotWrite("a.gif".into())), Fault::Cancelled),
            (candle(Cancelled.into()), Fault::Cancelled),
        ];
        for (error, fault) in cases {
            assert_eq!(Fault::of(&error), fault, "{error:#}");
        }
        #[cfg(unix)]
        assert_eq!(Fault::of(&io::Error::from_raw_os_error(libc::EIO).into()), Fault::Machine);
    }

    #[test]
    fn a_mark_changes_whose_fault_it_is_and_no_word() {
        let plain = || anyhow::Error::from(io::Error::from(ErrorKind::StorageFull)).context("cannot keep `a`");
        let said = |error: &anyhow::Error| (error.to_string(), format!("{error:#}"), error.chain().count());
        for fault in [Fault::Input, Fault::Machine] {
            let marked = plain().fault(fault);
            assert_eq!(said(&marked), said(&plain()));
            let around = marked.context("around");
            assert_eq!((Fault::of(&around), said(&around)), (fault, said(&plain().context("around"))));
            // the last one to speak knows best
            let again = around.fault(Fault::Machine);
            assert_eq!((Fault::of(&again), said(&again)), (Fault::Machine, said(&plain().context("around"))));
            let words = Marked::new(fault, "no numbers\n  fix: others");
            let through = anyhow::Error::from(Candle::from(words)).context("the VAE");
            assert_eq!(
                (Fault::of(&through), through.root_cause().to_string()),
                (fault, "no numbers\n  fix: others".into())
            );
        }
        let result: Result<(), io::Error> = Err(ErrorKind::NotFound.into());
        assert_eq!(Fault::of(&result.fault(Fault::Machine).unwrap_err()), Fault::Machine);
        let cancelled = Err::<(), _>(Cancelled).context("cannot lock `a`").fault(Fault::Machine).unwrap_err();
        assert_eq!(Fault::of(&cancelled), Fault::Cancelled);
    }

    #[test]
    fn a_full_device_is_known_by_what_its_libraries_say() {
        for text in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        ] {
            assert!(out_of_memory(&anyhow!(text).context("the VAE")), "{text}");
        }
        assert!(!out_of_memory(&anyhow!("CUDNN_STATUS_NOT_SUPPORTED")));
    }
}
