//! Transports that call a hook of the test before each call.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use threadcord::ShardId;
use threadcord::transport::{
    Connector, Received, Settings, Transport, TransportError, Uri, Waker, WebSocketConnector,
};

/// The method that is called next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The connector, for a transport.
    Transport,
    Connect,
    Read,
    Send,
    SendSecret,
    Written,
    Wait,
    Disconnect,
    Rest,
}

type Hook = Arc<dyn Fn(ShardId, Call) + Send + Sync>;

/// A connector of real transports that call the hook before each call.
pub struct Hooked {
    connector: WebSocketConnector,
    hook: Hook,
}

impl Hooked {
    pub fn new(
        connector: WebSocketConnector,
        hook: impl Fn(ShardId, Call) + Send + Sync + 'static,
    ) -> Self {
        let hook = Arc::new(hook);
        Self { connector, hook }
    }
}

impl Connector for Hooked {
    type Transport = Wire;

    fn transport(&self, shard: ShardId, settings: Settings) -> io::Result<Wire> {
        (self.hook)(shard, Call::Transport);
        Ok(Wire {
            inner: self.connector.transport(shard, settings)?,
            shard,
            hook: Arc::clone(&self.hook),
        })
    }
}

pub struct Wire {
    inner: <WebSocketConnector as Connector>::Transport,
    shard: ShardId,
    hook: Hook,
}

impl Wire {
    fn call(&self, call: Call) {
        (self.hook)(self.shard, call);
    }
}

impl Transport for Wire {
    fn connect(&mut self, url: &Uri, deadline: Instant) -> Result<(), TransportError> {
        self.call(Call::Connect);
        self.inner.connect(url, deadline)
    }

    fn read(&mut self) -> Result<Received, TransportError> {
        self.call(Call::Read);
        self.inner.read()
    }

    fn send(&mut self, text: String) -> Result<(), TransportError> {
        self.call(Call::Send);
        self.inner.send(text)
    }

    fn send_secret(&mut self, text: &str) -> Result<(), TransportError> {
        self.call(Call::SendSecret);
        self.inner.send_secret(text)
    }

    fn written(&self) -> u64 {
        self.call(Call::Written);
        self.inner.written()
    }

    fn wait(&mut self, until: Option<Instant>, reading: bool) -> Result<(), TransportError> {
        self.call(Call::Wait);
        self.inner.wait(until, reading)
    }

    fn disconnect(&mut self, code: Option<u16>, deadline: Instant) {
        self.call(Call::Disconnect);
        self.inner.disconnect(code, deadline);
    }

    fn shrink(&mut self) {
        self.call(Call::Rest);
        self.inner.shrink();
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}
