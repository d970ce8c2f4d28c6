//! What ends the program from outside: interrupts, and mapped files that shrink.
//!
//! A signal that was ignored when the program began stays ignored: `nohup` does that to SIGHUP, and shells do it to SIGINT for what
//! scripts run in the background. The others are handled in an ordinary thread: the run is asked to stop, and has a moment for that; a
//! step of a large model takes minutes, so the end does not wait for it. Then what is unfinished goes, one line says so, and the
//! program ends.

use super::cancel::Cancel;
use super::files;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Exit code after an interrupt.
pub const INTERRUPTED: u8 = 130;
/// Exit code where a file that is in use was cut off.
#[cfg(unix)]
const FAILED: u8 = 1;

/// How long a run that was asked to stop has for it, before it is ended where it stands.
const GRACE: Duration = Duration::from_millis(200);
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

/// Says why the program ends.
type Tell = Box<dyn FnOnce(&End) + Send>;

/// Listens to signals for as long as the program runs. Its clones are one.
#[derive(Clone)]
pub struct Signals(Arc<Shared>);

struct Shared {
    /// Stops the run.
    cancel: Cancel,
    /// What is to be said of the interrupt that came: what remains is known then, and no longer when the run has stopped.
    interrupted: OnceLock<String>,
    /// Taken by the thread that ends the program.
    tell: Mutex<Option<Tell>>,
    exit: fn(i32) -> !,
}

impl Signals {
    /// Begins to listen. Where the system gives no thread for that, signals do what they do by themselves.
    /// - `cancel`: stops the run. `tell`: called once, before the program ends. `exit`: ends it, with an exit code.
    pub fn listen(cancel: Cancel, exit: fn(i32) -> !, tell: impl FnOnce(&End) + Send + 'static) -> Self {
        let tell: Mutex<Option<Tell>> = Mutex::new(Some(Box::new(tell)));
        let signals = Self(Arc::new(Shared { cancel, interrupted: OnceLock::new(), tell, exit }));
        let heard = signals.clone();
        #[cfg(unix)]
        unix::listen(heard);
        #[cfg(not(unix))]
        {
            let _ = ctrlc::set_handler(move || heard.interrupt()); // without it an interrupt ends the program without a word
        }
        signals
    }

    /// Ends the program where a signal came, as the thread that handles signals would: for a run that was stopped by it.
    /// - Returns where none came.
    pub fn end_if_interrupted(&self) {
        if let Some(text) = self.0.interrupted.get() {
            self.end(End::Interrupted(text.clone()), INTERRUPTED)
        }
    }

    /// Stops the run, and ends the program soon after.
    fn interrupt(&self) -> ! {
        let remains = *REMAINS.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.0.interrupted.get_or_init(|| format!("interrupted; {remains}")).clone();
        self.0.cancel.cancel();
        std::thread::sleep(GRACE);
        self.end(End::Interrupted(text), INTERRUPTED)
    }

    /// Ends the program, by the thread that comes first. What is said goes through a thread of its own: a terminal that is stopped, or
    /// a pipe that nobody reads, holds up the line but not the end.
    fn end(&self, why: End, code: u8) -> ! {
        let tell = self.0.tell.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(tell) = tell else {
            loop {
                std::thread::park(); // another thread is at it
            }
        };
        files::remove_unfinished(PATIENCE);
        let (done, told) = std::sync::mpsc::channel();
        let telling = std::thread::Builder::new().spawn(move || {
            tell(&why);
            let _ = done.send(()); // it may be too late
        });
        if telling.is_ok() {
            let _ = told.recv_timeout(PATIENCE);
        }
        (self.0.exit)(code.into())
    }
}

#[cfg(unix)]
mod unix {
    use super::super::mapped;
    use super::{End, FAILED, Signals};
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

    pub fn listen(signals: Signals) {
        let Ok((woken, wake)) = std::io::pipe() else { return };
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || wait(woken, &signals));
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
    fn wait(mut woken: PipeReader, signals: &Signals) {
        let mut signal = [0];
        if woken.read_exact(&mut signal).is_err() {
            return; // nobody will ever wake it
        }
        if c_int::from(signal[0]) != SIGBUS {
            signals.interrupt()
        }
        let path = mapped::path_of(FAULT.load(SeqCst));
        let path = path.map_or("a file".into(), |path| format!("`{}`", path.display()));
        let text = format!(
            "cannot read {path}: it was cut off, or its disk failed, while it was in use\n  \
             fix: fetch or make it again, and leave it alone during a run (replacing a file by renaming is safe)"
        );
        signals.end(End::Failed(text), FAILED)
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
