//! Guides: how to build a bot with the parts of this library.

#[doc = include_str!("../docs/answering.md")]
pub mod answering {}

#[doc = include_str!("../docs/operating.md")]
pub mod operating {}

#[doc = include_str!("../docs/several_processes.md")]
pub mod several_processes {}
