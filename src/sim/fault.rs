//! What can go wrong, and the words for it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::shard_id::ShardId;

/// Something that goes wrong.
///
/// The first group strikes connections that are open; what is said of a shard there means its
/// connection at that moment. The second group waits for the next handshake of its kind and strikes
/// once. Each has a word that [`FromStr`] reads and [`Display`](fmt::Display) writes; it stands in
/// brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Everything takes this long in each direction, and up to `jitter` longer. (`delay=40ms+20ms`)
    Delay {
        /// The least that it takes.
        latency: Duration,
        /// What may come on top.
        jitter: Duration,
    },
    /// What the gateway sends trickles. (`drip=20000`)
    Drip {
        /// Bytes a second.
        bytes_per_second: u32,
    },
    /// The connection ends without a close frame (FIN). (`cut`)
    Cut,
    /// The connection is reset (RST). (`reset`)
    Reset,
    /// The connection is half open: nothing comes any more, and nothing is read. (`silence`)
    Silence,
    /// The connection ends in the middle of a frame. (`cut-in-frame`)
    CutInFrame,
    /// A frame that websocket does not know. (`garbage`)
    Garbage,
    /// A message that no decompressor understands, nor anybody as text. (`corrupt`)
    Corrupt,
    /// A payload that is large when it is unpacked. (`bomb=67108865`)
    Bomb {
        /// Its bytes, unpacked.
        size: usize,
    },
    /// A frame that says it has a terabyte. (`oversized`)
    Oversized,
    /// Heartbeats of the connection are not acknowledged any more. (`no-ack`)
    NoAck,
    /// A request for a heartbeat, op 1. (`heartbeat-request`)
    HeartbeatRequest,
    /// A request to reconnect, op 7. (`reconnect`)
    Reconnect,
    /// An invalid session, op 9. (`invalid-session=true`, `invalid-session=false`)
    InvalidSession {
        /// Whether the client may resume it.
        resumable: bool,
    },
    /// A close with a code: 1000 to 1003, 1007 to 1014, or 3000 to 4999. (`close=4009`)
    Close(u16),
    /// The last event comes again, with the same sequence. (`repeat`)
    Repeat,
    /// An older event comes again after newer ones. (`out-of-order`)
    OutOfOrder,

    /// A TLS handshake that fails; nothing to a gateway without TLS. (`tls=expired`,
    /// `tls=wrong-name`, `tls=untrusted`, `tls=hang`)
    Tls(TlsFault),
    /// A websocket upgrade that fails. (`upgrade=refused`, `upgrade=503`, `upgrade=hang`)
    Upgrade(UpgradeFault),
    /// An answer in place of HELLO. (`hello=nothing`, `hello=reconnect`,
    /// `hello=invalid-session:false`, `hello=close:4000`, `hello=payload:TEXT`)
    Hello(Answer),
    /// An answer in place of READY. (`identify=…`, as for HELLO)
    Identify(Answer),
    /// An answer in place of the replay and RESUMED. (`resume=…`, as for HELLO)
    Resume(Answer),
    /// A replay that begins before what was asked for, and has each event twice. (`replay-twice`)
    ReplayTwice,
    /// The `resume_gateway_url` of the next session. (`resume-url=dead`, `resume-url=foreign`,
    /// `resume-url=URL`)
    ResumeUrl(ResumeUrl),
    /// An HTTP request that is not answered as it should be. (`rest=503`, `rest=429`,
    /// `rest=429:global`, `rest=429:shared`, `rest=html`, `rest=truncated`, `rest=slow:100`,
    /// `rest=redirect:URL`, `rest=reset`, `rest=reset-after`, `rest=hang`)
    Rest(RestFault),
}

/// What the gateway says in place of something else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// Nothing at all.
    Nothing,
    /// Op 7.
    Reconnect,
    /// Op 9.
    InvalidSession {
        /// Whether the client may resume it.
        resumable: bool,
    },
    /// A close with a code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
    Close(u16),
    /// This payload.
    Payload(String),
}

/// What is wrong with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsFault {
    /// The certificate has expired.
    Expired,
    /// The certificate is another host's.
    WrongName,
    /// The certificate's authority is not the one to trust.
    Untrusted,
    /// The handshake never ends.
    Hang,
}

/// How an upgrade fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpgradeFault {
    /// The connection is reset.
    Refused,
    /// It is answered with an HTTP status, from 400 to 599.
    Status(u16),
    /// It is never answered.
    Hang,
}

/// How an HTTP request fails.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestFault {
    /// It is answered with a status, from 400 to 599, and an error of Discord's shape.
    Status(u16),
    /// It is answered with 429.
    Limited(Scope),
    /// It is answered with a page of HTML and the status 502.
    Html,
    /// It is carried out, and half of the answer comes.
    Truncated,
    /// It is carried out, and the answer trickles.
    Slow {
        /// Bytes a second.
        bytes_per_second: u32,
    },
    /// It is answered with 307, and this place.
    Redirect(String),
    /// The connection is reset, and the request is not carried out.
    Reset,
    /// The request is carried out, and the connection is reset.
    ResetAfter,
    /// It is never answered.
    Hang,
}

/// Whose requests a limit counts.
///
/// Source: [Discord, Rate limits](https://docs.discord.com/developers/topics/rate-limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// This bot's, on one route.
    User,
    /// This bot's, on all routes.
    Global,
    /// Those of all bots, on one resource. They do not count as invalid requests.
    Shared,
}

/// Where the next session is to be resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResumeUrl {
    /// At a port of the gateway's host where nothing listens.
    Dead,
    /// At a host that is not Discord's.
    Foreign,
    /// Here.
    Url(String),
}

/// Whom a [`Fault`] strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The connections of a shard; for faults that wait, its next handshake, where its shard is
    /// known by then (IDENTIFY, RESUME, and what follows them) and else the next of anybody.
    Shard(ShardId),
    /// Every connection, those too that have not said which shard they are.
    All,
    /// One connection, by chance.
    Any,
}

impl From<ShardId> for Target {
    fn from(shard: ShardId) -> Self {
        Self::Shard(shard)
    }
}

/// A word that names no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no fault; allowed: {allowed}")]
pub struct FaultError {
    given: String,
    allowed: String,
}

/// A kind of fault: its word, and what may follow it.
struct Kind {
    word: &'static str,
    /// It waits for a handshake.
    waits: bool,
    value: Value,
    /// Values of which a client survives each, for faults at random.
    survivable: &'static [&'static str],
}

enum Value {
    None(Fault),
    Some {
        /// The value of a fault, if it is of this kind.
        write: fn(&Fault) -> Option<String>,
        /// If a value is wrong: what is allowed.
        read: fn(&str) -> Result<Fault, String>,
    },
}

const fn plain(word: &'static str, fault: Fault) -> Kind {
    Kind {
        word,
        waits: false,
        value: Value::None(fault),
        survivable: &[""],
    }
}

const fn valued(
    word: &'static str,
    survivable: &'static [&'static str],
    write: fn(&Fault) -> Option<String>,
    read: fn(&str) -> Result<Fault, String>,
) -> Kind {
    Kind {
        word,
        waits: false,
        value: Value::Some { write, read },
        survivable,
    }
}

impl Kind {
    const fn waiting(mut self) -> Self {
        self.waits = true;
        self
    }
}

/// All there is. The first group strikes open connections, the second waits.
static KINDS: [Kind; 25] = [
    valued(
        "delay",
        &["20ms+30ms"],
        |fault| match fault {
            Fault::Delay { latency, jitter } => {
                let times = [latency, jitter].map(|time| humantime::format_duration(*time));
                let [latency, jitter] = times.map(|time| time.to_string().replace(' ', ""));
                Some(format!("{latency}+{jitter}"))
            }
            _ => None,
        },
        delay,
    ),
    valued(
        "drip",
        &["20000"],
        |fault| match fault {
            Fault::Drip { bytes_per_second } => Some(bytes_per_second.to_string()),
            _ => None,
        },
        |value| number(value, 1, u32::MAX).map(|bytes_per_second| Fault::Drip { bytes_per_second }),
    ),
    plain("cut", Fault::Cut),
    plain("reset", Fault::Reset),
    plain("silence", Fault::Silence),
    plain("cut-in-frame", Fault::CutInFrame),
    plain("garbage", Fault::Garbage),
    plain("corrupt", Fault::Corrupt),
    valued(
        "bomb",
        &["67108865"],
        |fault| match fault {
            Fault::Bomb { size } => Some(size.to_string()),
            _ => None,
        },
        |value| number(value, 1, 1 << 30).map(|size| Fault::Bomb { size }),
    ),
    plain("oversized", Fault::Oversized),
    plain("no-ack", Fault::NoAck),
    plain("heartbeat-request", Fault::HeartbeatRequest),
    plain("reconnect", Fault::Reconnect),
    valued(
        "invalid-session",
        &["true", "false"],
        |fault| match fault {
            Fault::InvalidSession { resumable } => Some(resumable.to_string()),
            _ => None,
        },
        |value| boolean(value).map(|resumable| Fault::InvalidSession { resumable }),
    ),
    valued(
        "close",
        &[
            "1000", "1001", "1012", "4000", "4001", "4002", "4003", "4005", "4007", "4008", "4009",
            "4999",
        ],
        |fault| match fault {
            Fault::Close(code) => Some(code.to_string()),
            _ => None,
        },
        |value| close_code(value).map(Fault::Close),
    ),
    plain("repeat", Fault::Repeat),
    plain("out-of-order", Fault::OutOfOrder),
    valued(
        "tls",
        &["expired", "wrong-name", "untrusted", "hang"],
        |fault| match fault {
            Fault::Tls(fault) => Some(word_of(&TLS, fault).into()),
            _ => None,
        },
        |value| of_word(&TLS, value).map(Fault::Tls),
    )
    .waiting(),
    valued(
        "upgrade",
        &["refused", "503", "429", "hang"],
        |fault| match fault {
            Fault::Upgrade(UpgradeFault::Status(status)) => Some(status.to_string()),
            Fault::Upgrade(fault) => Some(word_of(&UPGRADE, fault).into()),
            _ => None,
        },
        |value| match of_word(&UPGRADE, value) {
            Ok(fault) => Ok(Fault::Upgrade(fault)),
            Err(words) => number(value, 400, 599)
                .map(|status| Fault::Upgrade(UpgradeFault::Status(status)))
                .map_err(|range| format!("{words}, {range}")),
        },
    )
    .waiting(),
    valued(
        "hello",
        &["nothing", "reconnect", "close:4000"],
        |fault| match fault {
            Fault::Hello(answer) => Some(answer.to_string()),
            _ => None,
        },
        |value| answer(value).map(Fault::Hello),
    )
    .waiting(),
    valued(
        "identify",
        &[
            "nothing",
            "reconnect",
            "invalid-session:false",
            "close:4000",
        ],
        |fault| match fault {
            Fault::Identify(answer) => Some(answer.to_string()),
            _ => None,
        },
        |value| answer(value).map(Fault::Identify),
    )
    .waiting(),
    valued(
        "resume",
        &[
            "nothing",
            "reconnect",
            "invalid-session:true",
            "invalid-session:false",
            "close:4000",
            "close:4007",
        ],
        |fault| match fault {
            Fault::Resume(answer) => Some(answer.to_string()),
            _ => None,
        },
        |value| answer(value).map(Fault::Resume),
    )
    .waiting(),
    plain("replay-twice", Fault::ReplayTwice).waiting(),
    valued(
        "resume-url",
        &["dead", "foreign"],
        |fault| match fault {
            Fault::ResumeUrl(ResumeUrl::Dead) => Some("dead".into()),
            Fault::ResumeUrl(ResumeUrl::Foreign) => Some("foreign".into()),
            Fault::ResumeUrl(ResumeUrl::Url(url)) => Some(url.clone()),
            _ => None,
        },
        |value| match value {
            "" => Err("dead, foreign, or a url".into()),
            "dead" => Ok(Fault::ResumeUrl(ResumeUrl::Dead)),
            "foreign" => Ok(Fault::ResumeUrl(ResumeUrl::Foreign)),
            url => Ok(Fault::ResumeUrl(ResumeUrl::Url(url.to_owned()))),
        },
    )
    .waiting(),
    valued(
        "rest",
        &[
            "429",
            "429:global",
            "500",
            "html",
            "truncated",
            "reset",
            "reset-after",
            "hang",
        ],
        |fault| match fault {
            Fault::Rest(fault) => Some(fault.to_string()),
            _ => None,
        },
        |value| rest(value).map(Fault::Rest),
    )
    .waiting(),
];

const TLS: [(&str, TlsFault); 4] = [
    ("expired", TlsFault::Expired),
    ("wrong-name", TlsFault::WrongName),
    ("untrusted", TlsFault::Untrusted),
    ("hang", TlsFault::Hang),
];

const UPGRADE: [(&str, UpgradeFault); 2] = [
    ("refused", UpgradeFault::Refused),
    ("hang", UpgradeFault::Hang),
];

const REST: [(&str, RestFault); 8] = [
    ("429", RestFault::Limited(Scope::User)),
    ("429:global", RestFault::Limited(Scope::Global)),
    ("429:shared", RestFault::Limited(Scope::Shared)),
    ("html", RestFault::Html),
    ("truncated", RestFault::Truncated),
    ("reset", RestFault::Reset),
    ("reset-after", RestFault::ResetAfter),
    ("hang", RestFault::Hang),
];

fn word_of<T: PartialEq>(words: &[(&'static str, T)], fault: &T) -> &'static str {
    let mut words = words.iter();
    let found = words.find(|(_, other)| other == fault);
    found.map_or("", |(word, _)| word)
}

/// What a word means; else the words that there are.
fn of_word<T: Clone>(words: &[(&'static str, T)], word: &str) -> Result<T, String> {
    let found = words.iter().find(|(other, _)| *other == word);
    found.map(|(_, fault)| fault.clone()).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        words.join(", ")
    })
}

impl Fault {
    /// One of each kind that a client can survive, for faults at random.
    pub fn all() -> Vec<Self> {
        let of_kind = |kind: &'static Kind| {
            let values = kind.survivable.iter();
            values.filter_map(|value| kind.read(value).ok())
        };
        KINDS.iter().flat_map(of_kind).collect()
    }

    /// Whether it waits for a handshake.
    pub(super) fn waits(&self) -> bool {
        let mut kinds = KINDS.iter();
        let kind = kinds.find(|kind| kind.write(self).is_some());
        kind.is_some_and(|kind| kind.waits)
    }
}

impl Kind {
    /// The value of a fault, if it is of this kind.
    fn write(&self, fault: &Fault) -> Option<String> {
        match &self.value {
            Value::None(plain) => (plain == fault).then(String::new),
            Value::Some { write, .. } => write(fault),
        }
    }

    /// If a value is wrong: what is allowed.
    fn read(&self, value: &str) -> Result<Fault, String> {
        match &self.value {
            Value::None(_) if !value.is_empty() => Err("no value".into()),
            Value::None(fault) => Ok(fault.clone()),
            Value::Some { read, .. } => read(value),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in &KINDS {
            match kind.write(self) {
                None => {}
                Some(value) if value.is_empty() => return f.write_str(kind.word),
                Some(value) => return write!(f, "{}={value}", kind.word),
            }
        }
        Ok(())
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (word, value) = text.split_once('=').unwrap_or((text, ""));
        let kind = KINDS.iter().find(|kind| kind.word == word);
        let fault = match kind {
            Some(Kind {
                value: Value::None(_),
                ..
            }) if text.contains('=') => Err("no value".into()),
            Some(kind) => kind.read(value),
            None => {
                let words: Vec<_> = KINDS.iter().map(|kind| kind.word).collect();
                Err(words.join(", "))
            }
        };
        fault.map_err(|allowed| FaultError {
            given: text.to_owned(),
            allowed,
        })
    }
}

impl fmt::Display for RestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Slow { bytes_per_second } => write!(f, "slow:{bytes_per_second}"),
            Self::Redirect(url) => write!(f, "redirect:{url}"),
            other => f.write_str(word_of(&REST, other)),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Reconnect => f.write_str("reconnect"),
            Self::InvalidSession { resumable } => write!(f, "invalid-session:{resumable}"),
            Self::Close(code) => write!(f, "close:{code}"),
            Self::Payload(payload) => write!(f, "payload:{payload}"),
        }
    }
}

impl FromStr for Answer {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        answer(text).map_err(|allowed| FaultError {
            given: text.to_owned(),
            allowed,
        })
    }
}

fn delay(value: &str) -> Result<Fault, String> {
    let (latency, jitter) = value.split_once('+').unwrap_or((value, "0s"));
    match (
        humantime::parse_duration(latency),
        humantime::parse_duration(jitter),
    ) {
        (Ok(latency), Ok(jitter)) => Ok(Fault::Delay { latency, jitter }),
        _ => Err("delay=LATENCY+JITTER, for example delay=40ms+20ms".into()),
    }
}

fn rest(text: &str) -> Result<RestFault, String> {
    match text.split_once(':') {
        Some(("slow", rate)) => {
            let rate = number(rate, 1, u32::MAX);
            rate.map(|bytes_per_second| RestFault::Slow { bytes_per_second })
        }
        Some(("redirect", url)) if !url.is_empty() && !url.contains(['\r', '\n']) => {
            Ok(RestFault::Redirect(url.to_owned()))
        }
        _ => of_word(&REST, text).or_else(|words| {
            let status = number(text, 400, 599).map(RestFault::Status);
            status.map_err(|range| format!("{words}, slow:RATE, redirect:URL, {range}"))
        }),
    }
}

fn answer(value: &str) -> Result<Answer, String> {
    let (word, detail) = value.split_once(':').unwrap_or((value, ""));
    match word {
        "nothing" => Ok(Answer::Nothing),
        "reconnect" => Ok(Answer::Reconnect),
        "invalid-session" => boolean(detail).map(|resumable| Answer::InvalidSession { resumable }),
        "close" => close_code(detail).map(Answer::Close),
        "payload" => Ok(Answer::Payload(detail.to_owned())),
        _ => Err("nothing, reconnect, invalid-session:true, invalid-session:false, close:CODE, payload:TEXT".into()),
    }
}

/// What a close frame of a server may hold, by RFC 6455.
fn close_code(value: &str) -> Result<u16, String> {
    let allowed = "1000 to 1003, 1007 to 1014, 3000 to 4999";
    match number(value, 1000, 4999) {
        Ok(code @ (1000..=1003 | 1007..=1014 | 3000..=4999)) => Ok(code),
        _ => Err(allowed.into()),
    }
}

fn boolean(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "true, false".into())
}

fn number<N: FromStr + PartialOrd + Copy + fmt::Display>(
    value: &str,
    least: N,
    most: N,
) -> Result<N, String> {
    match value.parse() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(format!("{least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_word() {
        let all = Fault::all();
        let values = KINDS.iter().map(|kind| kind.survivable.len());
        assert_eq!(all.len(), values.sum::<usize>(), "a word is not read");
        for fault in all {
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
    }

    #[test]
    fn other_words_are_told_what_is_allowed() {
        for (word, allowed) in [
            ("", "delay, drip, cut,"),
            ("cut=1", "no value"),
            ("close=999", "1000 to 1003"),
            ("close=1005", "1000 to 1003"),
            ("drip=0", "1 to 4294967295"),
            ("tls=bad", "expired, wrong-name"),
            ("upgrade=200", "refused, hang, 400 to 599"),
            ("hello=close:0", "1000 to 1003"),
            ("identify=", "nothing, reconnect"),
            ("invalid-session=maybe", "true, false"),
            ("delay=soon", "delay=LATENCY+JITTER"),
            ("resume-url=", "dead, foreign"),
            ("rest=slow:0", "1 to 4294967295"),
            ("rest=odd", "429:shared, html, truncated"),
        ] {
            let error = word.parse::<Fault>().unwrap_err().to_string();
            assert!(
                error.contains(allowed) && error.contains(&format!("{word:?}")),
                "{error}"
            );
        }
    }
}
