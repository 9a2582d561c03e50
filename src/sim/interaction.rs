//! What users do with the bot's commands, buttons, menus and modals.

use serde_json::Value;

/// Something that a user does with the bot, for [`Gateway::interact`](super::Gateway::interact).
///
/// ```
/// # use serde_json::json;
/// # use threadcord::sim::Interaction;
/// # let (channel, member) = (1, 2);
/// let ban = Interaction::command(channel, "ban", json!({"member": member.to_string(), "days": 7}));
/// let press = Interaction::press(channel, "confirm").by(member);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Interaction {
    pub(super) channel: u64,
    pub(super) user: Option<u64>,
    pub(super) deed: Deed,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Deed {
    Command {
        name: String,
        options: Value,
        /// The option that the user is typing, for autocomplete.
        focused: Option<String>,
    },
    UserCommand {
        name: String,
        user: u64,
    },
    MessageCommand {
        name: String,
        message: u64,
    },
    Component {
        custom_id: String,
        values: Vec<String>,
    },
    Modal {
        custom_id: String,
        fields: Value,
    },
}

impl Interaction {
    fn new(channel: u64, deed: Deed) -> Self {
        Self {
            channel,
            user: None,
            deed,
        }
    }

    /// Uses a slash command.
    ///
    /// `options` is null or an object that maps option names to values. The types are those of the
    /// command that the bot has registered: users, channels and roles are ids as strings,
    /// attachments are file names, and a subcommand or a group is a nested object. If the command
    /// is not registered, the JSON types decide: options are strings, integers, booleans, numbers
    /// and subcommands.
    pub fn command(channel_id: u64, name: &str, options: Value) -> Self {
        let deed = Deed::Command {
            name: name.to_owned(),
            options,
            focused: None,
        };
        Self::new(channel_id, deed)
    }

    /// Types a slash command, and requests autocompletion of the option `focused`. `options` is as
    /// for [`command`](Self::command), and includes the text typed so far.
    pub fn autocomplete(channel_id: u64, name: &str, options: Value, focused: &str) -> Self {
        let deed = Deed::Command {
            name: name.to_owned(),
            options,
            focused: Some(focused.to_owned()),
        };
        Self::new(channel_id, deed)
    }

    /// Uses a command in the context menu of a user.
    pub fn user_command(channel_id: u64, name: &str, user_id: u64) -> Self {
        let deed = Deed::UserCommand {
            name: name.to_owned(),
            user: user_id,
        };
        Self::new(channel_id, deed)
    }

    /// Uses a command in the context menu of a message.
    pub fn message_command(channel_id: u64, name: &str, message_id: u64) -> Self {
        let deed = Deed::MessageCommand {
            name: name.to_owned(),
            message: message_id,
        };
        Self::new(channel_id, deed)
    }

    /// Presses a button on the newest message in the channel that has it.
    pub fn press(channel_id: u64, custom_id: &str) -> Self {
        Self::select(channel_id, custom_id, [])
    }

    /// Chooses from a select menu on the newest message in the channel that has it. `values` are
    /// the values of options, or the ids of users, roles and channels.
    pub fn select<'a>(
        channel_id: u64,
        custom_id: &str,
        values: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let deed = Deed::Component {
            custom_id: custom_id.to_owned(),
            values: values.into_iter().map(str::to_owned).collect(),
        };
        Self::new(channel_id, deed)
    }

    /// Submits the modal that the bot opened last in the channel. `fields` is an object that maps
    /// the `custom_id`s of the inputs to what the user entered: a string or an array of strings.
    pub fn submit(channel_id: u64, custom_id: &str, fields: Value) -> Self {
        let deed = Deed::Modal {
            custom_id: custom_id.to_owned(),
            fields,
        };
        Self::new(channel_id, deed)
    }

    /// Sets the user who interacts. Default: the guild's owner, or the user of a direct channel.
    pub fn by(mut self, user_id: u64) -> Self {
        self.user = Some(user_id);
        self
    }
}
