//! What a process costs, as the operating system counts it. (Linux: elsewhere it counts nothing.)

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The processor's time that all threads of this process have had.
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

/// Keeps this process, and the threads that it will start, to one core, if there are several.
pub(crate) fn pin(core: usize) {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        // On a machine with one core the figures say less.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = core;
}

/// Resident memory in KiB.
pub(crate) fn resident() -> u64 {
    status("/proc/self/status", &["VmRSS:"])
}

/// How often a thread of this process was switched away from.
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

/// How often this thread has waited for something.
pub(crate) fn own_switches() -> u64 {
    status("/proc/thread-self/status", &["voluntary_ctxt_switches:"])
}

/// Threads and open descriptors.
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
