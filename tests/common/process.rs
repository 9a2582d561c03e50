//! Real processes: a test that starts itself again, once for each.

use std::env;
use std::process::{Child, Command};

/// A process that runs one test of this binary, and is killed with this.
pub struct Process(Child);

impl Process {
    /// Runs an ignored test, with these variables in its environment.
    pub fn start(test: &str, variables: &[(&str, &str)]) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .envs(variables.iter().copied())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
