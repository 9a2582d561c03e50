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
        /// The option that is being typed, if the command is not sent yet.
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
    /// `options` is an object: names with values, or null. The types are those of the command that
    /// the bot has registered; users, channels and roles are ids as strings, attachments are file
    /// names, and a subcommand or a group is an object of its own. Of a command that is not
    /// registered, options are strings, integers, booleans, numbers and subcommands, by their JSON
    /// types.
    pub fn command(channel_id: u64, name: &str, options: Value) -> Self {
        let deed = Deed::Command {
            name: name.to_owned(),
            options,
            focused: None,
        };
        Self::new(channel_id, deed)
    }

    /// Types a slash command whose option `focused` the bot completes. Options as for
    /// [`command`](Self::command); what is typed so far is among them.
    pub fn autocomplete(channel_id: u64, name: &str, options: Value, focused: &str) -> Self {
        let deed = Deed::Command {
            name: name.to_owned(),
            options,
            focused: Some(focused.to_owned()),
        };
        Self::new(channel_id, deed)
    }

    /// Uses a command in the menu of a user.
    pub fn user_command(channel_id: u64, name: &str, user_id: u64) -> Self {
        let deed = Deed::UserCommand {
            name: name.to_owned(),
            user: user_id,
        };
        Self::new(channel_id, deed)
    }

    /// Uses a command in the menu of a message.
    pub fn message_command(channel_id: u64, name: &str, message_id: u64) -> Self {
        let deed = Deed::MessageCommand {
            name: name.to_owned(),
            message: message_id,
        };
        Self::new(channel_id, deed)
    }

    /// Presses a button of the newest message in the channel that has it.
    pub fn press(channel_id: u64, custom_id: &str) -> Self {
        Self::select(channel_id, custom_id, [])
    }

    /// Chooses from a menu of the newest message in the channel that has it: options by their
    /// values; users, roles and channels by their ids.
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

    /// Submits the modal that the bot has opened last in the channel. `fields` is an object: the
    /// `custom_id`s of its inputs with what was entered, a string or an array of strings.
    pub fn submit(channel_id: u64, custom_id: &str, fields: Value) -> Self {
        let deed = Deed::Modal {
            custom_id: custom_id.to_owned(),
            fields,
        };
        Self::new(channel_id, deed)
    }

    /// Who does it. Default: the guild's owner; in a direct channel its user.
    pub fn by(mut self, user_id: u64) -> Self {
        self.user = Some(user_id);
        self
    }
}
