//! The state shared by the gateway's thread and the `Gateway`.

use parking_lot::{Condvar, Mutex};

use super::world::World;

pub(super) struct Shared {
    pub(super) world: Mutex<World>,
    pub(super) changed: Condvar,
    pub(super) waker: mio::Waker,
}
