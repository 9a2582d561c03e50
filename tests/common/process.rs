//! Real processes: a test starts its own binary once for each process.

use std::env;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Panics if the environment variable says that no test may be skipped. Otherwise prints to
/// standard error that this test is skipped because a program is missing.
pub fn skip(test: &str, program: &str, variable: &str) {
    assert!(
        env::var_os(variable).is_none(),
        "{program} is not installed"
    );
    // `eprintln!` would not be shown for a test that passes.
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {program} is not installed");
}

/// A port on which no program listens. Another program may take it before the caller does.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A process that runs one test of this binary. It is killed when this is dropped.
pub struct Process(Child);

impl Process {
    /// Runs an ignored test, with these variables in its environment.
    pub fn start(test: &str, variables: &[(&str, &str)]) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) {
        let input = self.0.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Kills the process as `kill -9` does.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Stops the process where it is; it continues when it is [thawed](Self::thaw).
    pub fn freeze(&self) {
        signal(self.id(), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.id(), "CONT");
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Waits until the process ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process ends");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process.
pub fn signal(process: u32, name: &str) {
    let arguments = [format!("-{name}"), process.to_string()];
    let sent = Command::new("kill").args(arguments).status();
    assert!(sent.unwrap().success());
}
