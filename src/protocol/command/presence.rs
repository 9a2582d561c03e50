//! Presences: how a bot appears to other users.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::InvalidCommand;

/// The maximum length of an activity's name and state, in characters. Discord's gateway
/// documentation gives no limit; other libraries use this one (JDA:
/// `Activity.MAX_ACTIVITY_NAME_LENGTH`).
const MAX_TEXT: usize = 128;

/// The streaming sites that Discord accepts.
///
/// Source: [Discord, Activity
/// types](https://docs.discord.com/developers/events/gateway-events#activity-object-activity-types).
const STREAMING_SITES: [&str; 2] = ["twitch.tv", "youtube.com"];

/// How a bot appears to other users: its status and its activities.
///
/// ```
/// # use threadcord::command::{Activity, OnlineStatus};
/// # use threadcord::Presence;
/// let presence = Presence::new(OnlineStatus::Online).activity(Activity::watching("the gateway"));
/// ```
///
/// Source: [Discord, Update
/// Presence](https://docs.discord.com/developers/events/gateway-events#update-presence).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Presence {
    /// When the bot became idle, in milliseconds since the Unix epoch; `None` if it is not idle.
    pub since: Option<u64>,
    /// The activities. Discord shows the first, or the custom status.
    pub activities: Vec<Activity>,
    /// The status, such as online or idle.
    pub status: OnlineStatus,
    /// Whether the user is away from the keyboard. Has no effect for bots.
    pub afk: bool,
}

/// A user's status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnlineStatus {
    /// Online.
    #[default]
    Online,
    /// Do not disturb.
    #[serde(rename = "dnd")]
    DoNotDisturb,
    /// Idle (away).
    Idle,
    /// Shown as offline.
    Invisible,
    /// Offline.
    Offline,
}

/// An activity of a bot. These are the fields of Discord's activity object that a bot can set.
///
/// Source: [Discord, Activity
/// object](https://docs.discord.com/developers/events/gateway-events#activity-object).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Activity {
    /// The name of the activity: 1 to 128 characters.
    pub name: String,
    /// The kind of activity.
    #[serde(rename = "type")]
    pub kind: ActivityKind,
    /// Details of the activity, or the text of a custom status: up to 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The URL of the stream, on `https://twitch.tv` or `https://youtube.com`.
    /// [`ActivityKind::Streaming`] needs it; other kinds must not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// The kinds of activities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ActivityKind {
    /// "Playing {name}"
    Playing = 0,
    /// "Streaming {name}"
    Streaming = 1,
    /// "Listening to {name}"
    Listening = 2,
    /// "Watching {name}"
    Watching = 3,
    /// "{state}"
    Custom = 4,
    /// "Competing in {name}"
    Competing = 5,
}

impl Presence {
    /// Creates a presence with a status and no activity.
    pub fn new(status: OnlineStatus) -> Self {
        Self {
            since: None,
            activities: Vec::new(),
            status,
            afk: false,
        }
    }

    /// Adds an activity.
    pub fn activity(mut self, activity: Activity) -> Self {
        self.activities.push(activity);
        self
    }

    /// Sets the status to [`Idle`](OnlineStatus::Idle), and [`since`](Self::since) to `time`. A
    /// time before the Unix epoch counts as the epoch.
    pub fn idle_since(self, time: SystemTime) -> Self {
        let since = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        Self {
            since: u64::try_from(since).ok(),
            status: OnlineStatus::Idle,
            ..self
        }
    }

    /// Sets [`afk`](Self::afk).
    pub fn afk(self, afk: bool) -> Self {
        Self { afk, ..self }
    }

    pub(super) fn check(&self) -> Result<(), InvalidCommand> {
        self.activities
            .iter()
            .enumerate()
            .try_for_each(|(at, activity)| activity.check(at))
    }
}

impl Activity {
    /// "Playing {name}"
    pub fn playing(name: impl Into<String>) -> Self {
        Self::new(ActivityKind::Playing, name)
    }

    /// "Streaming {name}", with a URL on `https://twitch.tv` or `https://youtube.com`.
    pub fn streaming(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            url: Some(url.into()),
            ..Self::new(ActivityKind::Streaming, name)
        }
    }

    /// "Listening to {name}"
    pub fn listening(name: impl Into<String>) -> Self {
        Self::new(ActivityKind::Listening, name)
    }

    /// "Watching {name}"
    pub fn watching(name: impl Into<String>) -> Self {
        Self::new(ActivityKind::Watching, name)
    }

    /// A custom status: only the text `state`.
    pub fn custom(state: impl Into<String>) -> Self {
        // Discord requires a name anyway, but does not show it.
        Self {
            state: Some(state.into()),
            ..Self::new(ActivityKind::Custom, "Custom Status")
        }
    }

    /// "Competing in {name}"
    pub fn competing(name: impl Into<String>) -> Self {
        Self::new(ActivityKind::Competing, name)
    }

    /// Sets [`state`](Self::state).
    pub fn state(self, state: impl Into<String>) -> Self {
        Self {
            state: Some(state.into()),
            ..self
        }
    }

    fn new(kind: ActivityKind, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind,
            state: None,
            url: None,
        }
    }

    fn check(&self, at: usize) -> Result<(), InvalidCommand> {
        let field = |name| format!("activities[{at}].{name}");
        let is_short = |text: &str, least| (least..=MAX_TEXT).contains(&text.chars().count());
        let length = |text: &str| format!("{} characters long", text.chars().count());
        if !is_short(&self.name, 1) {
            return Err(InvalidCommand::field(
                field("name"),
                length(&self.name),
                "1 to 128 characters",
            ));
        }

        if let Some(state) = self.state.as_ref().filter(|state| !is_short(state, 0)) {
            return Err(InvalidCommand::field(
                field("state"),
                length(state),
                "up to 128 characters",
            ));
        }

        if self.kind == ActivityKind::Custom && self.state.as_ref().is_none_or(String::is_empty) {
            return Err(InvalidCommand::field(
                field("state"),
                "missing",
                "the text of a custom status",
            ));
        }

        match (&self.url, self.kind) {
            (None, ActivityKind::Streaming) => Err(InvalidCommand::field(
                field("url"),
                "missing",
                "the URL of the stream, on twitch.tv or youtube.com",
            )),
            (Some(url), ActivityKind::Streaming) if !is_stream(url) => Err(InvalidCommand::field(
                field("url"),
                url,
                "a URL on https://twitch.tv or https://youtube.com",
            )),
            (Some(url), kind) if kind != ActivityKind::Streaming => Err(InvalidCommand::field(
                field("url"),
                url,
                "none, unless the activity is streaming",
            )),
            _ => Ok(()),
        }
    }
}

fn is_stream(url: &str) -> bool {
    let url = url.to_ascii_lowercase();
    let Some(rest) = url.strip_prefix("https://") else {
        return false;
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.strip_prefix("www.").unwrap_or(host);
    STREAMING_SITES.contains(&host)
}

impl Serialize for ActivityKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(*self as u8)
    }
}

impl<'de> Deserialize<'de> for ActivityKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kinds = [
            Self::Playing,
            Self::Streaming,
            Self::Listening,
            Self::Watching,
            Self::Custom,
            Self::Competing,
        ];
        let number = u64::deserialize(deserializer)?;
        let unknown = || {
            de::Error::invalid_value(
                de::Unexpected::Unsigned(number),
                &"the type of an activity, 0 to 5",
            )
        };

        usize::try_from(number)
            .ok()
            .and_then(|at| kinds.get(at).copied())
            .ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn the_wire_format() {
        let presence = Presence::new(OnlineStatus::Online)
            .activity(Activity::streaming("chess", "https://www.twitch.tv/x").state("losing"))
            .activity(Activity::custom("hm"))
            .idle_since(UNIX_EPOCH + Duration::from_millis(1500))
            .afk(true);
        let wire = json!({
            "since": 1500,
            "activities": [
                {"name": "chess", "type": 1, "state": "losing", "url": "https://www.twitch.tv/x"},
                {"name": "Custom Status", "type": 4, "state": "hm"},
            ],
            "status": "idle",
            "afk": true,
        });
        assert_eq!(json!(presence), wire);
        assert_eq!(serde_json::from_value::<Presence>(wire).unwrap(), presence);
        assert_eq!(json!(OnlineStatus::DoNotDisturb), "dnd");
        assert_eq!(
            json!(Presence::new(OnlineStatus::Invisible))["activities"],
            json!([]),
            "never null"
        );
    }

    #[test]
    fn each_field_is_checked_and_named() {
        let refused = |activity| {
            let presence = Presence::new(OnlineStatus::Online)
                .activity(Activity::playing("x"))
                .activity(activity);
            presence.check().expect_err("refused").to_string()
        };

        assert!(
            refused(Activity::playing("")).contains("`activities[1].name` is 0 characters long")
        );
        assert!(refused(Activity::watching("x".repeat(129))).contains("129"));
        assert!(
            refused(Activity::listening("x").state("x".repeat(129)))
                .contains("`activities[1].state`")
        );
        assert!(refused(Activity::custom("")).contains("custom status"));

        for url in [
            "http://twitch.tv/x",
            "https://twitch.tv.evil.com",
            "https://example.com",
            "twitch",
        ] {
            assert!(
                refused(Activity::streaming("x", url)).contains("`activities[1].url`"),
                "{url}"
            );
        }

        let mut playing = Activity::playing("x");
        playing.url = Some("https://twitch.tv/x".into());
        assert!(refused(playing).contains("none"));
        let umlauts =
            Presence::new(OnlineStatus::Idle).activity(Activity::competing("ü".repeat(128)));
        assert_eq!(umlauts.check(), Ok(()), "characters, not bytes");
    }
}
