//! Standard streams as the program was given them.
//!
//! The standard library opens `/dev/null` in place of a stream that is closed, before `main`: what is then written goes nowhere, and
//! nobody hears of it. So standard output is looked at before that.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static OUTPUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Tells whether standard output was closed when the program began, where the system runs functions before `main`: Linux and macOS.
pub fn output_was_closed() -> bool {
    OUTPUT_WAS_CLOSED.load(Relaxed)
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
mod before_main {
    use super::{OUTPUT_WAS_CLOSED, Relaxed};

    #[used]
    #[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
    #[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
    static LOOK: extern "C" fn() = look;

    extern "C" fn look() {
        // SAFETY: the call only asks for the flags of a descriptor, which may be none; nothing has to be set up for it.
        let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
        OUTPUT_WAS_CLOSED.store(flags == -1, Relaxed);
    }
}
