//! Reads what a process costs from the operating system. On platforms other than Linux, most
//! counts are zero.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The CPU time of all threads of this process.
pub(crate) fn cpu() -> Duration {
    duration(ClockId::ProcessCPUTime)
}

/// A clock that all processes share.
pub(crate) fn monotonic() -> Duration {
    duration(ClockId::Monotonic)
}

fn duration(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).expect("below a second"),
    )
}

/// Pins this process, and the threads that it starts later, to one core.
pub(crate) fn pin(core: usize) {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        // This may fail on a machine with one core; the figures are then less meaningful.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = core;
}

/// Resident memory in KiB.
pub(crate) fn resident() -> u64 {
    status("/proc/self/status", &["VmRSS:"])
}

/// The number of context switches of this process's threads.
pub(crate) fn switches() -> u64 {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let of = |task: fs::DirEntry| {
        let file = task.path().join("status");
        status(
            &file.to_string_lossy(),
            &["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"],
        )
    };
    tasks.map(of).sum()
}

/// The number of voluntary context switches of this thread: how often it has waited.
pub(crate) fn own_switches() -> u64 {
    status("/proc/thread-self/status", &["voluntary_ctxt_switches:"])
}

/// The numbers of threads and of open descriptors.
pub(crate) fn threads_and_descriptors() -> (usize, usize) {
    let entries = |folder| fs::read_dir(folder).map_or(0, Iterator::count);
    (entries("/proc/self/task"), entries("/proc/self/fd"))
}

/// The sum of some numbers of a status file.
fn status(file: &str, fields: &[&str]) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let number = |line: &str| {
        let field = fields.iter().find(|field| line.starts_with(**field))?;
        line[field.len()..]
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    };
    text.lines().filter_map(number).sum()
}
