//! What ends the program from outside: interrupts, and mapped files that shrink.
//!
//! A signal that was ignored when the program began stays ignored: `nohup` does that to SIGHUP, and shells do it to SIGINT for what
//! scripts run in the background. The others are handled in an ordinary thread: what is unfinished goes, one line says so, and the
//! program ends.

use super::files;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Exit code after an interrupt.
pub const INTERRUPTED: i32 = 130;
/// Exit code where a file that is in use was cut off.
#[cfg(unix)]
const FAILED: i32 = 1;

/// How long the end of the program waits for a file that is just getting its name, and for a terminal that takes its last line.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the one line after an interrupt says of what was made.
static REMAINS: Mutex<&str> = Mutex::new(NOTHING);
const NOTHING: &str = "nothing was written";

/// What an interrupt leaves behind, for as long as this is there.
pub struct Remains(());

impl Remains {
    /// - `text`: as in `interrupted; what has come is kept`.
    pub fn set(text: &'static str) -> Self {
        *REMAINS.lock().unwrap_or_else(PoisonError::into_inner) = text;
        Self(())
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        *REMAINS.lock().unwrap_or_else(PoisonError::into_inner) = NOTHING;
    }
}

/// Why the program ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The text is all that is to be said.
    Interrupted(String),
    /// The text is an error.
    Failed(String),
}

/// Begins to listen. Where the system gives no thread for that, signals do what they do by themselves.
/// - `tell`: called once, before the program ends.
pub fn listen(tell: impl FnOnce(&End) + Send + 'static) {
    #[cfg(unix)]
    unix::listen(tell);
    #[cfg(not(unix))]
    {
        let mut tell = Some(tell);
        let handler = move || {
            if let Some(tell) = tell.take() {
                end(interrupted(), INTERRUPTED, tell)
            }
        };
        let _ = ctrlc::set_handler(handler); // without it an interrupt ends the program without a word
    }
}

fn interrupted() -> End {
    let remains = REMAINS.lock().unwrap_or_else(PoisonError::into_inner);
    End::Interrupted(format!("interrupted; {remains}"))
}

/// Ends the program. What is said goes through a thread of its own: a terminal that is stopped, or a pipe that nobody reads, holds up
/// the line but not the end.
fn end(why: End, code: i32, tell: impl FnOnce(&End) + Send + 'static) -> ! {
    files::remove_unfinished(PATIENCE);
    let (done, told) = std::sync::mpsc::channel();
    let telling = std::thread::Builder::new().spawn(move || {
        tell(&why);
        let _ = done.send(()); // it may be too late
    });
    if telling.is_ok() {
        let _ = told.recv_timeout(PATIENCE);
    }
    std::process::exit(code)
}

#[cfg(unix)]
mod unix {
    use super::super::mapped;
    use super::{End, FAILED, INTERRUPTED, end, interrupted};
    use libc::{SIGBUS, SIGHUP, SIGINT, SIGTERM, SIGXFSZ, c_int, c_void, siginfo_t};
    use std::io::{PipeReader, PipeWriter, Read, Write};
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// Wakes the thread that handles signals: one byte, the signal's number.
    static WAKE: OnceLock<PipeWriter> = OnceLock::new();
    /// What SIGBUS did before: the standard library's guard of the stack.
    static BUS_BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
    /// The address that could not be read.
    static FAULT: AtomicUsize = AtomicUsize::new(0);

    pub fn listen(tell: impl FnOnce(&End) + Send + 'static) {
        let Ok((woken, wake)) = std::io::pipe() else { return };
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || wait(woken, tell));
        if thread.is_err() || WAKE.set(wake).is_err() {
            return;
        }
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if action(signal).is_none_or(|action| action.sa_sigaction != libc::SIG_IGN) {
                handle(signal, on_signal);
            }
        }
        // so that a write beyond `ulimit -f` is an error and no end
        handle(SIGXFSZ, on_nothing);
        if let Some(before) = action(SIGBUS)
            && BUS_BEFORE.set(before).is_ok()
        {
            handle(SIGBUS, on_fault);
        }
    }

    /// Waits for the first signal, and ends the program.
    fn wait(mut woken: PipeReader, tell: impl FnOnce(&End) + Send + 'static) {
        let mut signal = [0];
        if woken.read_exact(&mut signal).is_err() {
            return; // nobody will ever wake it
        }
        if c_int::from(signal[0]) != SIGBUS {
            end(interrupted(), INTERRUPTED, tell)
        }
        let path = mapped::path_of(FAULT.load(SeqCst));
        let path = path.map_or("a file".into(), |path| format!("`{}`", path.display()));
        let text = format!(
            "cannot read {path}: it was cut off, or its disk failed, while it was in use\n  \
             fix: fetch or make it again, and leave it alone during a run (replacing a file by renaming is safe)"
        );
        end(End::Failed(text), FAILED, tell)
    }

    /// What a signal does now; `None` where the system does not tell.
    fn action(signal: c_int) -> Option<libc::sigaction> {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: with no new action the call only writes the present one to where it is told to.
        let done = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
        // SAFETY: where the call succeeds it has written all of it.
        (done == 0).then(|| unsafe { action.assume_init() })
    }

    type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

    fn handle(signal: c_int, handler: Handler) {
        // SAFETY: zeroes are an empty mask and no flags; the fields that matter are set. The handlers do only what is allowed in
        // handlers: atomics, write, sigaction and pause.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }

    extern "C" fn on_nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

    extern "C" fn on_signal(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
        if let Some(mut wake) = WAKE.get() {
            let _ = wake.write(&[signal as u8]); // the pipe has room for more than can come
        }
    }

    extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the system gives a valid description, which for this signal has an address.
        let address = unsafe { (*info).si_addr() }.addr();
        if !mapped::contains(address) {
            // SAFETY: this was the action before. Returning runs into the same fault again, and so into that action.
            unsafe {
                if let Some(before) = BUS_BEFORE.get() {
                    libc::sigaction(SIGBUS, before, ptr::null_mut());
                }
            }
            return;
        }
        FAULT.store(address, SeqCst);
        on_signal(signal, info, context);
        loop {
            // SAFETY: it has no precondition. This thread cannot go on; the other one ends the program.
            unsafe { libc::pause() };
        }
    }
}
