//! The text form of faults.

use std::fmt;
use std::str::FromStr;

use super::{Answer, Fault, FaultError, RestFault, ResumeUrl, Scope, TlsFault, UpgradeFault};

/// A kind of fault: its word, and the value that may follow it.
struct Kind {
    word: &'static str,
    /// Whether it waits for a handshake.
    waits: bool,
    value: Value,
    /// Values that a client can survive, for random faults. `""` means that the fault has no value.
    survivable: &'static [&'static str],
}

enum Value {
    None(Fault),
    Some {
        /// The value of a fault, if it is of this kind.
        write: fn(&Fault) -> Option<String>,
        /// The fault with this value. The error lists the allowed values.
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

/// All kinds. The first group strikes open connections; the second waits for a handshake.
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
            "" => Err("dead, foreign, or a URL".into()),
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

/// The fault for a word. The error lists the allowed words.
fn of_word<T: Clone>(words: &[(&'static str, T)], word: &str) -> Result<T, String> {
    let found = words.iter().find(|(other, _)| *other == word);
    found.map(|(_, fault)| fault.clone()).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        words.join(", ")
    })
}

impl Fault {
    /// Faults of every kind, with values that a client can survive. For
    /// [`random_faults`](crate::sim::Gateway::random_faults).
    pub fn all() -> Vec<Self> {
        let of_kind = |kind: &'static Kind| {
            let values = kind.survivable.iter();
            values.filter_map(|value| kind.read(value).ok())
        };
        KINDS.iter().flat_map(of_kind).collect()
    }

    /// Whether it waits for a handshake.
    pub(in crate::sim) fn waits(&self) -> bool {
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

    /// The fault with this value. The error lists the allowed values.
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

/// A code that a server may send in a close frame, by RFC 6455.
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
