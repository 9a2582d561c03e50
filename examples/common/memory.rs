//! What a program was given back by its parts, given back to the operating system.

/// Gives it back, for a moment in which there is nothing else to do: glibc goes through all that is
/// free. Other allocators do so by themselves.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it asks for nothing; glibc locks what it walks through.
    unsafe {
        libc::malloc_trim(0);
    }
}
