//! Real processes: a test that starts itself again, once for each.

use std::env;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Fails where no test may be skipped, which the variable tells; else says on standard error that
/// this one is, because of a program.
pub fn skip(test: &str, program: &str, variable: &str) {
    assert!(
        env::var_os(variable).is_none(),
        "{program} is not installed"
    );
    // Not through `eprintln!`, which a test that passes does not show.
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {program} is not installed");
}

/// A port that nobody listens on. Another program may take it before the caller does.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A process that runs one test of this binary, and is killed with this.
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

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Stops it where it is; it goes on when it is [thawed](Self::thaw).
    pub fn freeze(&self) {
        signal(self.id(), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.id(), "CONT");
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Waits until it ends by itself.
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
