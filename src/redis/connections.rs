//! Connections to the Redis server, with timeouts.

use std::io;
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use parking_lot::Mutex;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{Client, Connection, ConnectionAddr, IntoConnectionInfo, RedisError, RedisResult, cmd};

use crate::clock;
use crate::error::{Error, StoreError};

/// How long an attempt to connect may take: host lookup, TCP, TLS and login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server may take to answer a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after the first failed attempt to connect. It doubles with each failure, up to
/// [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The largest number of attempts to connect at a time. Each may have a thread that is stuck.
const MAX_ATTEMPTS: u32 = 4;

/// The time without data after which TCP keepalive probes the server, and the interval between
/// probes.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The largest number of idle connections that are kept for later calls.
const MAX_IDLE: usize = 4;

/// Connections to one server, each used by one call at a time.
pub(super) struct Connections {
    client: Client,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The number of attempts to connect whose threads have not ended.
    attempts: u32,
    idle: Vec<ServerConnection>,
    /// The number of failed attempts in a row.
    failures: u32,
    /// When the next attempt is allowed.
    retry_at: Option<Instant>,
}

/// A connection, and the server that it leads to.
pub(super) struct ServerConnection {
    pub(super) connection: Connection,
    /// The server's `run_id`. It changes when the server restarts.
    pub(super) id: String,
}

impl Connections {
    pub(super) fn new(url: &str) -> Result<Self, Error> {
        let refused = |given| {
            let allowed = "redis:// or rediss://, with a host, and no `#insecure`";
            Error::setting("url", given, allowed)
        };
        // The error text must not contain the URL, which may hold a password.
        let info = url.into_connection_info();
        let info = info.map_err(|error| refused(error.to_string()))?;

        // Setting the library's name would need one more right.
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE);
        let tcp = TcpSettings::default().set_keepalive(keepalive);
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp);

        let client = Client::open(info).map_err(|error| refused(error.to_string()))?;
        match client.get_connection_info().addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => {
                Err(refused("one that accepts any certificate".into()))
            }
            _ => Ok(Self {
                client,
                state: Arc::default(),
            }),
        }
    }

    /// Runs `calls` on a connection. They may run twice: if an idle connection turns out to be
    /// dead, they run again on a new one.
    pub(super) fn with<T>(
        &self,
        mut calls: impl FnMut(&mut ServerConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // A separate statement, so that the lock is not held during the calls.
        let kept = self.state.lock().idle.pop();
        if let Some(mut server) = kept {
            match calls(&mut server) {
                Err(error) if is_of_connection(&error) => {
                    // The other idle connections are dead, too. Close them without the lock.
                    let dead = mem::take(&mut self.state.lock().idle);
                    drop(dead);
                }
                done => return self.keep(server, done),
            }
        }

        let mut server = self.connect()?;
        let done = calls(&mut server);
        self.keep(server, done)
    }

    /// Keeps a connection for later calls if its last call succeeded: after an error, it may be in
    /// any state.
    fn keep<T>(
        &self,
        server: ServerConnection,
        done: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if done.is_ok() {
            let mut state = self.state.lock();
            if state.idle.len() < MAX_IDLE {
                state.idle.push(server);
            }
        }
        done
    }

    fn connect(&self) -> Result<ServerConnection, StoreError> {
        let attempt = self.begin_attempt()?;
        let connected = connect_in_time(&self.client, attempt);
        let mut state = self.state.lock();
        if connected.is_ok() {
            (state.failures, state.retry_at) = (0, None);
        } else {
            let pause = PAUSE.saturating_mul(1 << state.failures.min(10));
            // Random, so that processes that lost the server together reconnect one by one.
            let pause = pause.min(MAX_PAUSE).mul_f64(0.5 + fastrand::f64() / 2.0);
            state.failures += 1;
            state.retry_at = Some(clock::now() + pause);
        }
        connected
    }

    fn begin_attempt(&self) -> Result<Attempt, StoreError> {
        let mut state = self.state.lock();
        let now = clock::now();
        if let Some(retry_at) = state.retry_at
            && now < retry_at
        {
            let wait = retry_at - now;
            return Err(format!("not connected; the next attempt is in {wait:.1?}").into());
        }
        if state.attempts >= MAX_ATTEMPTS {
            return Err(format!("not connected; {MAX_ATTEMPTS} attempts have not ended").into());
        }
        state.attempts += 1;
        Ok(Attempt(Arc::clone(&self.state)))
    }
}

/// An attempt to connect, which counts as one of [`State::attempts`] until it is dropped.
struct Attempt(Arc<Mutex<State>>);

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.lock().attempts -= 1;
    }
}

/// Connects on a separate thread, which is abandoned if it takes too long: the host lookup and the
/// TLS handshake have no timeout.
fn connect_in_time(client: &Client, attempt: Attempt) -> Result<ServerConnection, StoreError> {
    let (client, (sender, receiver)) = (client.clone(), crossbeam_channel::bounded(1));
    let thread = thread::Builder::new().name("redis-connect".into());
    thread.spawn(move || {
        // The attempt must end before its outcome is known, which may start further attempts.
        let connected = {
            let _attempt = attempt;
            connect(&client)
        };
        // After the timeout, the receiver is gone.
        let _ = sender.send(connected);
    })?;

    match receiver.recv_timeout(CONNECT_TIMEOUT) {
        Ok(connected) => Ok(connected?),
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("failed to connect within {CONNECT_TIMEOUT:?}").into())
        }
        Err(RecvTimeoutError::Disconnected) => Err("the attempt to connect panicked".into()),
    }
}

fn connect(client: &Client) -> RedisResult<ServerConnection> {
    let mut connection = client.get_connection_with_timeout(CONNECT_TIMEOUT)?;
    connection.set_read_timeout(Some(CALL_TIMEOUT))?;
    connection.set_write_timeout(Some(CALL_TIMEOUT))?;
    let info: String = cmd("INFO").arg("server").query(&mut connection)?;
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    let id = id.ok_or_else(|| io::Error::other("the INFO reply has no run_id"))?;
    Ok(ServerConnection {
        connection,
        id: id.trim().to_owned(),
    })
}

/// Whether the error means that the connection is dead.
fn is_of_connection(error: &StoreError) -> bool {
    let error = error.downcast_ref::<RedisError>();
    error.is_some_and(|error| error.is_io_error() && !error.is_timeout())
}
