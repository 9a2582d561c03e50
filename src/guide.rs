//! Guides: how to build a bot with the parts of this library.

#[doc = include_str!("../docs/answering.md")]
pub mod answering {}
