//! A Redis server for one test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::process::{free_port, signal, skip};

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// A `redis-server` on a free port that stores nothing on disk. It is ended when this is dropped.
pub struct RedisServer {
    child: Child,
    port: u16,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
}

impl RedisServer {
    /// Starts a server with these additional arguments. Without `redis-server`, prints to standard
    /// error that the test is skipped, and returns `None`.
    ///
    /// # Panics
    /// If no test may be skipped (`THREADCORD_NEEDS_REDIS`), or if the server does not start.
    pub fn start(test: &str, arguments: &[&str]) -> Option<Self> {
        let version = Command::new("redis-server").arg("--version").output();
        if version.is_err() {
            skip(test, "redis-server", "THREADCORD_NEEDS_REDIS");
            return None;
        }

        let arguments: Vec<_> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        // Another program may take the port in between.
        let started = (0..10).find_map(|_| {
            let port = free_port();
            spawn(port, &arguments, &folder).map(|child| (child, port))
        });
        let (child, port) = started.expect("redis-server starts");
        Some(Self {
            child,
            port,
            arguments,
            folder,
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// A connection for what only an operator does.
    pub fn admin(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_connection().unwrap()
    }

    /// Kills the server; connections to it break.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the server, so that it does not answer until it is [thawed](Self::thaw).
    pub fn freeze(&self) {
        signal(self.child.id(), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.child.id(), "CONT");
    }

    /// Starts the server again, without data.
    pub fn restart(&mut self) {
        self.kill();
        // The port may be taken for a moment by a client that tries to connect to it from there.
        let child = (0..10).find_map(|_| spawn(self.port, &self.arguments, &self.folder));
        self.child = child.expect("its port is free again");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(port: u16, arguments: &[String], folder: &tempfile::TempDir) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .args(arguments)
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;

    while !answers(port) {
        let has_ended = child.try_wait().unwrap().is_some();
        if has_ended {
            return None;
        }
        assert!(Instant::now() < deadline, "redis-server starts");
        thread::sleep(Duration::from_millis(5));
    }
    Some(child)
}

/// Whether a server answers.
fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        return false;
    };
    let mut first = [0];
    let answered = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.write_all(b"PING\r\n"))
        .and_then(|()| stream.read_exact(&mut first));
    // `+PONG`, or `-NOAUTH`.
    answered.is_ok() && matches!(first[0], b'+' | b'-')
}
