//! Keeps secrets out of the HTTP client's log.
//!
//! ureq logs each request, at trace level with every byte, and has no setting that omits anything.
//! So it never gets a secret, but a placeholder. The placeholder is replaced by the secret on its
//! way to the connection.

use std::sync::Arc;

use parking_lot::Mutex;
use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// The prefix of every placeholder.
const PREFIX: &str = "hidden-";

/// The secrets of the requests that are in progress.
#[derive(Clone, Default)]
pub(super) struct Secrets(Arc<Mutex<Vec<Secret>>>);

struct Secret {
    placeholder: String,
    secret: String,
}

/// One hidden secret. Its placeholder is replaced as long as this value lives.
pub(super) struct Hidden {
    secrets: Secrets,
    placeholder: String,
}

impl Secrets {
    /// Stores a secret for one request, under a new placeholder.
    pub(super) fn hide(&self, secret: &str) -> Hidden {
        // Random, so that the body of a request cannot contain it on purpose to get the secret.
        let placeholder = format!("{PREFIX}{:032x}", fastrand::u128(..));
        self.0.lock().push(Secret {
            placeholder: placeholder.clone(),
            secret: secret.to_owned(),
        });
        Hidden {
            secrets: self.clone(),
            placeholder,
        }
    }

    /// Replaces the placeholders in these bytes; `None` if there are none.
    fn reveal(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut windows = bytes.windows(PREFIX.len());
        if !windows.any(|window| window == PREFIX.as_bytes()) {
            return None;
        }

        let secrets = self.0.lock();
        let mut revealed = None;
        for Secret {
            placeholder,
            secret,
        } in &*secrets
        {
            let bytes = revealed.as_deref().unwrap_or(bytes);
            let mut windows = bytes.windows(placeholder.len());
            let Some(at) = windows.position(|window| window == placeholder.as_bytes()) else {
                continue;
            };
            let (before, after) = (&bytes[..at], &bytes[at + placeholder.len()..]);
            revealed = Some([before, secret.as_bytes(), after].concat());
        }
        revealed
    }
}

impl Hidden {
    /// The string to write in place of the secret.
    pub(super) fn placeholder(&self) -> &str {
        &self.placeholder
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let mut secrets = self.secrets.0.lock();
        secrets.retain(|secret| secret.placeholder != self.placeholder);
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl<T: Transport> Connector<T> for Secrets {
    type Out = Revealing<T>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<T>,
    ) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|transport| Revealing {
            transport,
            secrets: self.clone(),
        }))
    }
}

/// A connection that replaces placeholders by secrets in what it sends.
#[derive(Debug)]
pub(super) struct Revealing<T> {
    transport: T,
    secrets: Secrets,
}

impl<T: Transport> Transport for Revealing<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.transport.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = self.transport.buffers().output();
        let Some(revealed) = self.secrets.reveal(&output[..amount]) else {
            return self.transport.transmit_output(amount, timeout);
        };
        // The request head fits into the buffer, but a secret can be longer than its placeholder.
        let room = output
            .get_mut(..revealed.len())
            .ok_or(Error::LargeResponseHeader(revealed.len(), amount))?;
        room.copy_from_slice(&revealed);
        let sent = self.transport.transmit_output(revealed.len(), timeout);
        // ureq writes to this buffer again, and must not log what is left in it.
        self.transport.buffers().output()[..revealed.len()].fill(0);
        sent
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.transport.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.transport.is_open()
    }

    fn is_tls(&self) -> bool {
        self.transport.is_tls()
    }
}
