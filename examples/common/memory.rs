//! Returns freed memory to the operating system.

/// Returns freed memory. Call it when the program is idle, because glibc walks through all free
/// memory. Other allocators return memory by themselves.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call has no preconditions; glibc locks what it walks through.
    unsafe {
        libc::malloc_trim(0);
    }
}
