//! A gateway that does only what a test tells it to do.

use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};
use threadcord::limit::Unlimited;
use threadcord::{Config, Intents, Plan, Timing, Token};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use super::{PATIENCE, SCALE};

pub struct Raw {
    listener: TcpListener,
}

/// One connection to it.
pub struct Peer {
    pub socket: WebSocket<TcpStream>,
    pub user_agent: String,
    sequence: u64,
}

impl Raw {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { listener }
    }

    /// A configuration for one shard that connects to this gateway, and makes no other request.
    pub fn config(&self) -> Config {
        let address = self.listener.local_addr().unwrap();
        let mut config = Config::new(Token::new("a.b.c").unwrap(), Intents::GUILDS)
            .gateway_url(format!("ws://{address}"))
            .rest_url(format!("http://{address}"))
            .plan(Plan::Total(1))
            .limiter(std::sync::Arc::new(Unlimited))
            .timing(Timing::scaled(SCALE));
        config.timing.handlers_timeout = std::time::Duration::ZERO;
        config
    }

    /// The next connection, once it has been upgraded.
    pub fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Written bytes are sent at once, whatever happens to the socket later.
        stream.set_nodelay(true).unwrap();
        let mut user_agent = String::new();

        #[expect(clippy::result_large_err, reason = "tungstenite wants it so")]
        let callback = |request: &Request, response: Response| {
            if let Some(agent) = request.headers().get("user-agent") {
                agent.to_str().unwrap().clone_into(&mut user_agent);
            }
            Ok(response)
        };

        let socket = tungstenite::accept_hdr(stream, callback).unwrap();
        Peer {
            socket,
            user_agent,
            sequence: 0,
        }
    }

    /// The next connection, with a new session.
    pub fn session(&self, heartbeat_interval: u64) -> Peer {
        let mut peer = self.accept();
        peer.send(&json!({"op": 10, "d": {"heartbeat_interval": heartbeat_interval}}));
        peer.until(2);
        peer.dispatch(
            "READY",
            &json!({"session_id": "s", "user": {"id": "1"}, "guilds": []}),
        );
        peer
    }

    /// Whether a client connects within a time.
    pub fn is_called(&self, within: std::time::Duration) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        std::thread::sleep(within);
        self.listener.accept().is_ok()
    }
}

impl Peer {
    pub fn send(&mut self, payload: &Value) {
        self.socket
            .send(Message::text(payload.to_string()))
            .unwrap();
    }

    pub fn dispatch(&mut self, name: &str, data: &Value) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(&json!({"op": 0, "t": name, "s": sequence, "d": data}));
    }

    /// Sends this many numbered events.
    pub fn events(&mut self, count: u64) {
        for n in 0..count {
            let data = json!({"guild_id": "1", "user_id": "1", "timestamp": n});
            self.dispatch("TYPING_START", &data);
        }
    }

    /// Reads up to a payload with this opcode.
    pub fn until(&mut self, op: u64) -> Value {
        loop {
            let payload = self.read().expect("a payload");
            if payload["op"] == op {
                return payload;
            }
        }
    }

    /// The next payload; `None` if the connection has ended.
    pub fn read(&mut self) -> Option<Value> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Sends a close frame, and ends its side at once.
    pub fn close(mut self, code: u16, reason: &str) {
        let frame = CloseFrame {
            code: code.into(),
            reason: reason.to_owned().into(),
        };
        self.socket.close(Some(frame)).unwrap();
        let _ = self.socket.flush();
    }
}
