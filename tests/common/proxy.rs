//! HTTP proxies: one in the test, which chooses its answers, and those of the Linux distribution.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use parking_lot::Mutex;

use super::process::{free_port, skip};

/// What a proxy answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Opens the connection.
    Open,
    /// Sends a text and closes.
    Text(&'static str),
    /// Sends nothing and keeps the connection open.
    Silence,
}

/// A proxy in this process.
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    answer: Answer,
    /// The first line of each request, and its credentials.
    requests: Vec<(String, Option<String>)>,
}

impl Proxy {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            answer: Answer::Open,
            requests: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { port, state }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sets the answer to all further requests.
    pub fn answer(&self, answer: Answer) {
        self.state.lock().answer = answer;
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<(String, Option<String>)> {
        self.state.lock().requests.clone()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }

    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let request = lines.next().unwrap().to_owned();
    let target = request.split(' ').nth(1).unwrap().to_owned();
    let login = lines.find_map(|line| line.strip_prefix("Proxy-Authorization: "));
    let answer = {
        let mut state = state.lock();
        state.requests.push((request, login.map(str::to_owned)));
        state.answer
    };
    match answer {
        Answer::Text(text) => drop(stream.write_all(text.as_bytes())),
        Answer::Silence => thread::park(),
        Answer::Open => {
            let other = TcpStream::connect(target).unwrap();
            stream
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .unwrap();
            let (from, to) = (stream.try_clone().unwrap(), other.try_clone().unwrap());
            thread::spawn(move || carry(from, to));
            carry(other, stream);
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// A proxy program of the distribution. It is ended when this is dropped.
pub struct Program {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Program {
    /// Starts tinyproxy, which requires credentials.
    pub fn tinyproxy(test: &str) -> Option<Self> {
        Self::start(test, "tinyproxy", |port, _| {
            format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 500\nBasicAuth user pa55word\n"
            )
        })
    }

    pub fn squid(test: &str) -> Option<Self> {
        Self::start(test, "squid", |port, folder| {
            let folder = folder.display();
            format!(
                "http_port 127.0.0.1:{port}\nhttp_access allow all\ncache deny all\n\
                 access_log none\ncache_log {folder}/log\npid_filename none\n\
                 cache_store_log none\ncoredump_dir {folder}\nshutdown_lifetime 0\n\
                 visible_hostname localhost\n"
            )
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Without the program, prints to standard error that the test is skipped.
    fn start(test: &str, name: &str, config: impl Fn(u16, &Path) -> String) -> Option<Self> {
        let paths = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
        let paths = paths.map(|folder| Path::new(folder).join(name));
        let Some(path) = paths.iter().find(|path| path.exists()) else {
            skip(test, name, "THREADCORD_NEEDS_PROXIES");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();

        // Another program may take the port in between.
        let started = (0..10).find_map(|_| {
            let port = free_port();
            let file = folder.path().join("config");
            fs::write(&file, config(port, folder.path())).unwrap();
            spawn(path, &file, port).map(|child| (child, port))
        });
        let (child, port) = started.unwrap_or_else(|| panic!("{name} starts"));
        Some(Self {
            child,
            port,
            _folder: folder,
        })
    }
}

/// Starts a proxy and waits until it listens; `None` if it ends.
fn spawn(path: &Path, config: &Path, port: u16) -> Option<Child> {
    let flags: &[&str] = if path.ends_with("squid") {
        &["-N", "-f"]
    } else {
        &["-d", "-c"]
    };

    let mut child = Command::new(path)
        .args(flags)
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let is_there = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok();
        // A connection to a local port without a listener may connect to itself.
        stream.is_some_and(|stream| stream.local_addr().ok() != stream.peer_addr().ok())
    };

    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_there() {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        assert!(Instant::now() < deadline, "{} listens", path.display());
        thread::sleep(Duration::from_millis(20));
    }
    Some(child)
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
