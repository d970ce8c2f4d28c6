//! How much address space the system's allocator sets aside.

/// Keeps glibc's allocator to one arena where the shell limits the address space (`ulimit -v`): for each thread it would else reserve
/// 64 MiB, used or not, which is then lacking for what a run really wants. Has to come before the first thread.
pub fn spare_address_space() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if super::machine::is_address_space_limited() {
        // SAFETY: the call sets a number of the allocator's, which it reads under its own lock.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}
