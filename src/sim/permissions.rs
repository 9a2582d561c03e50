//! The permissions that routes of the simulator need, for
//! [`Gateway::deny`](super::Gateway::deny).
//!
//! Source: [Discord,
//! Permissions](https://docs.discord.com/developers/topics/permissions#permissions-bitwise-permission-flags).

/// To kick members.
pub const KICK_MEMBERS: u64 = 1 << 1;
/// To ban members, and to list bans.
pub const BAN_MEMBERS: u64 = 1 << 2;
/// To add a reaction that the message does not have yet.
pub const ADD_REACTIONS: u64 = 1 << 6;
/// To write messages.
pub const SEND_MESSAGES: u64 = 1 << 11;
/// To delete the messages and the reactions of others.
pub const MANAGE_MESSAGES: u64 = 1 << 13;
/// To upload files.
pub const ATTACH_FILES: u64 = 1 << 15;
/// To read earlier messages.
pub const READ_MESSAGE_HISTORY: u64 = 1 << 16;
/// To change the nicknames of others.
pub const MANAGE_NICKNAMES: u64 = 1 << 27;
/// To give members roles, and to take them away.
pub const MANAGE_ROLES: u64 = 1 << 28;
/// To time members out.
pub const MODERATE_MEMBERS: u64 = 1 << 40;

/// The permissions that the bot and every member have in every guild, unless denied.
pub(super) const ALL: u64 = KICK_MEMBERS
    | BAN_MEMBERS
    | ADD_REACTIONS
    | SEND_MESSAGES
    | MANAGE_MESSAGES
    | ATTACH_FILES
    | READ_MESSAGE_HISTORY
    | MANAGE_NICKNAMES
    | MANAGE_ROLES
    | MODERATE_MEMBERS
    // Among others: to see and manage channels, to mention everyone, to speak.
    | 0x7_fcff_ffff_ffff;
