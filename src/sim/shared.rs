//! What the gateway's thread and its owner share.

use parking_lot::{Condvar, Mutex};

use super::world::World;

pub(super) struct Shared {
    pub(super) world: Mutex<World>,
    pub(super) changed: Condvar,
    pub(super) waker: mio::Waker,
}
