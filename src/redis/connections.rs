//! Connections to the server, and the time that they may take.

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

/// How long a connection may take to be made: look-up, TCP, TLS and login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The first pause after a connection that could not be made; it doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Attempts at a time: each may have a thread that is stuck.
const MAX_ATTEMPTS: u32 = 4;

/// A server that has not been heard of for this long is asked whether it is there; it is gone after
/// three more.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Connections that are kept for the next call.
const MAX_IDLE: usize = 4;

/// Connections to one server, each used by one call at a time.
pub(super) struct Connections {
    client: Client,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Attempts to connect whose threads have not ended.
    attempts: u32,
    idle: Vec<ServerConnection>,
    /// Attempts in a row that failed.
    failures: u32,
    /// No other attempt is made before then.
    retry_at: Option<Instant>,
}

/// A connection.
pub(super) struct ServerConnection {
    pub(super) connection: Connection,
    /// Which server it leads to; a server that starts anew is another one.
    pub(super) id: String,
}

impl Connections {
    pub(super) fn new(url: &str) -> Result<Self, Error> {
        let refused = |given| {
            let allowed = "redis:// or rediss://, with a host, and no `#insecure`";
            Error::setting("url", given, allowed)
        };
        // The text may hold a password.
        let info = url.into_connection_info();
        let info = info.map_err(|error| refused(error.to_string()))?;

        // It would need one right more.
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

    /// Runs calls on a connection. They may run twice: if a connection that was kept turns out to
    /// be dead, they run again on a new one.
    pub(super) fn with<T>(
        &self,
        mut calls: impl FnMut(&mut ServerConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Not in the condition: the lock must not be held during the calls.
        let kept = self.state.lock().idle.pop();
        if let Some(mut server) = kept {
            match calls(&mut server) {
                Err(error) if is_of_connection(&error) => {
                    // The others are dead, too. They are closed without the lock.
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

    /// Keeps a connection on which all went well: after an error it may be in any state.
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
            // Processes that lost it at the same time come back one by one.
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
            return Err(format!("no connection; the next attempt is in {wait:.1?}").into());
        }
        if state.attempts >= MAX_ATTEMPTS {
            return Err(format!("no connection; {MAX_ATTEMPTS} attempts have not ended").into());
        }
        state.attempts += 1;
        Ok(Attempt(Arc::clone(&self.state)))
    }
}

/// An attempt to connect, while it lasts.
struct Attempt(Arc<Mutex<State>>);

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.lock().attempts -= 1;
    }
}

/// Connects on a thread of its own, which is abandoned if it takes too long: a look-up of the host
/// and a TLS handshake have no time-out.
fn connect_in_time(client: &Client, attempt: Attempt) -> Result<ServerConnection, StoreError> {
    let (client, (sender, receiver)) = (client.clone(), crossbeam_channel::bounded(1));
    let thread = thread::Builder::new().name("redis-connect".into());
    thread.spawn(move || {
        // It ends before the outcome is known, which may make others connect.
        let connected = {
            let _attempt = attempt;
            connect(&client)
        };
        // Nobody may wait any more.
        let _ = sender.send(connected);
    })?;
    match receiver.recv_timeout(CONNECT_TIMEOUT) {
        Ok(connected) => Ok(connected?),
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("no connection within {CONNECT_TIMEOUT:?}").into())
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
    let id = id.ok_or_else(|| io::Error::other("INFO does not tell the server's run_id"))?;
    Ok(ServerConnection {
        connection,
        id: id.trim().to_owned(),
    })
}

/// Whether it says that a connection is dead.
fn is_of_connection(error: &StoreError) -> bool {
    let error = error.downcast_ref::<RedisError>();
    error.is_some_and(|error| error.is_io_error() && !error.is_timeout())
}
