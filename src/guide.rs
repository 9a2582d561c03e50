//! Guides, one for each task.

#[doc = include_str!("../docs/first_bot.md")]
pub mod first_bot {}

#[doc = include_str!("../docs/events.md")]
pub mod events {}

#[doc = include_str!("../docs/commands.md")]
pub mod commands {}

#[doc = include_str!("../docs/answering.md")]
pub mod answering {}

#[doc = include_str!("../docs/restarts.md")]
pub mod restarts {}

#[doc = include_str!("../docs/many_shards.md")]
pub mod many_shards {}

#[doc = include_str!("../docs/several_processes.md")]
pub mod several_processes {}

#[doc = include_str!("../docs/testing.md")]
pub mod testing {}

#[doc = include_str!("../docs/embedding.md")]
pub mod embedding {}

#[doc = include_str!("../docs/limits.md")]
pub mod limits {}

#[doc = include_str!("../docs/costs.md")]
pub mod costs {}

#[doc = include_str!("../docs/operating.md")]
pub mod operating {}

#[doc = include_str!("../docs/coming_from.md")]
pub mod coming_from {}
