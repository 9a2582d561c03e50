//! What can go wrong, and the words for it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

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
    /// An HTTP request that is not answered as it should be. (`rest=429`, `rest=html`, `rest=hang`)
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestFault {
    /// It is answered with a status, from 400 to 599, and an error of Discord's shape.
    Status(u16),
    /// It is answered with a page of HTML and the status 502.
    Html,
    /// It is never answered.
    Hang,
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

/// One of each kind that a client can survive.
const SURVIVABLE: &str = "\
    delay=20ms+30ms drip=20000 cut reset silence cut-in-frame garbage corrupt bomb=67108865 oversized no-ack \
    heartbeat-request reconnect invalid-session=true invalid-session=false close=1000 close=1001 close=1012 \
    close=4000 close=4001 close=4002 close=4003 close=4005 close=4007 close=4008 close=4009 close=4999 repeat \
    out-of-order tls=expired tls=wrong-name tls=untrusted tls=hang upgrade=refused upgrade=503 upgrade=429 \
    upgrade=hang hello=nothing hello=reconnect hello=close:4000 identify=nothing identify=reconnect \
    identify=invalid-session:false identify=close:4000 resume=nothing resume=reconnect \
    resume=invalid-session:true resume=invalid-session:false resume=close:4000 resume=close:4007 replay-twice resume-url=dead \
    resume-url=foreign rest=429 rest=500 rest=html rest=hang";

/// A word that names no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no fault; allowed: {allowed}")]
pub struct FaultError {
    given: String,
    allowed: String,
}

impl Fault {
    /// One of each kind that a client can survive, for faults at random.
    pub fn all() -> Vec<Self> {
        SURVIVABLE
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    }

    /// Whether it waits for a handshake.
    pub(super) fn waits(&self) -> bool {
        matches!(
            self,
            Self::Tls(_)
                | Self::Upgrade(_)
                | Self::Hello(_)
                | Self::Identify(_)
                | Self::Resume(_)
                | Self::ReplayTwice
                | Self::ResumeUrl(_)
                | Self::Rest(_)
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, value) = match self {
            Self::Delay { latency, jitter } => {
                let [latency, jitter] =
                    [latency, jitter].map(|time| humantime::format_duration(*time));
                ("delay", format!("{latency}+{jitter}").replace(' ', ""))
            }
            Self::Drip { bytes_per_second } => ("drip", bytes_per_second.to_string()),
            Self::Cut => ("cut", String::new()),
            Self::Reset => ("reset", String::new()),
            Self::Silence => ("silence", String::new()),
            Self::CutInFrame => ("cut-in-frame", String::new()),
            Self::Garbage => ("garbage", String::new()),
            Self::Corrupt => ("corrupt", String::new()),
            Self::Bomb { size } => ("bomb", size.to_string()),
            Self::Oversized => ("oversized", String::new()),
            Self::NoAck => ("no-ack", String::new()),
            Self::HeartbeatRequest => ("heartbeat-request", String::new()),
            Self::Reconnect => ("reconnect", String::new()),
            Self::InvalidSession { resumable } => ("invalid-session", resumable.to_string()),
            Self::Close(code) => ("close", code.to_string()),
            Self::Repeat => ("repeat", String::new()),
            Self::OutOfOrder => ("out-of-order", String::new()),
            Self::Tls(TlsFault::Expired) => ("tls", "expired".into()),
            Self::Tls(TlsFault::WrongName) => ("tls", "wrong-name".into()),
            Self::Tls(TlsFault::Untrusted) => ("tls", "untrusted".into()),
            Self::Tls(TlsFault::Hang) => ("tls", "hang".into()),
            Self::Upgrade(UpgradeFault::Refused) => ("upgrade", "refused".into()),
            Self::Upgrade(UpgradeFault::Status(status)) => ("upgrade", status.to_string()),
            Self::Upgrade(UpgradeFault::Hang) => ("upgrade", "hang".into()),
            Self::Hello(answer) => ("hello", answer.to_string()),
            Self::Identify(answer) => ("identify", answer.to_string()),
            Self::Resume(answer) => ("resume", answer.to_string()),
            Self::ReplayTwice => ("replay-twice", String::new()),
            Self::ResumeUrl(ResumeUrl::Dead) => ("resume-url", "dead".into()),
            Self::ResumeUrl(ResumeUrl::Foreign) => ("resume-url", "foreign".into()),
            Self::ResumeUrl(ResumeUrl::Url(url)) => ("resume-url", url.clone()),
            Self::Rest(RestFault::Status(status)) => ("rest", status.to_string()),
            Self::Rest(RestFault::Html) => ("rest", "html".into()),
            Self::Rest(RestFault::Hang) => ("rest", "hang".into()),
        };
        f.write_str(word)?;
        if value.is_empty() {
            Ok(())
        } else {
            write!(f, "={value}")
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

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (word, value) = text.split_once('=').unwrap_or((text, ""));
        let plain = |fault: Self| {
            if text.contains('=') {
                Err("no value".to_owned())
            } else {
                Ok(fault)
            }
        };
        match word {
            "delay" => delay(value),
            "drip" => number(value, 1, u32::MAX).map(|bytes_per_second| Self::Drip { bytes_per_second }),
            "cut" => plain(Self::Cut),
            "reset" => plain(Self::Reset),
            "silence" => plain(Self::Silence),
            "cut-in-frame" => plain(Self::CutInFrame),
            "garbage" => plain(Self::Garbage),
            "corrupt" => plain(Self::Corrupt),
            "bomb" => number(value, 1, 1 << 30).map(|size| Self::Bomb { size }),
            "oversized" => plain(Self::Oversized),
            "no-ack" => plain(Self::NoAck),
            "heartbeat-request" => plain(Self::HeartbeatRequest),
            "reconnect" => plain(Self::Reconnect),
            "invalid-session" => boolean(value).map(|resumable| Self::InvalidSession { resumable }),
            "close" => close_code(value).map(Self::Close),
            "repeat" => plain(Self::Repeat),
            "out-of-order" => plain(Self::OutOfOrder),
            "tls" => match value {
                "expired" => Ok(Self::Tls(TlsFault::Expired)),
                "wrong-name" => Ok(Self::Tls(TlsFault::WrongName)),
                "untrusted" => Ok(Self::Tls(TlsFault::Untrusted)),
                "hang" => Ok(Self::Tls(TlsFault::Hang)),
                _ => Err("expired, wrong-name, untrusted, hang".into()),
            },
            "upgrade" => match value {
                "refused" => Ok(Self::Upgrade(UpgradeFault::Refused)),
                "hang" => Ok(Self::Upgrade(UpgradeFault::Hang)),
                _ => number(value, 400, 599)
                    .map(|status| Self::Upgrade(UpgradeFault::Status(status)))
                    .map_err(|range| format!("refused, hang, {range}")),
            },
            "hello" => answer(value).map(Self::Hello),
            "identify" => answer(value).map(Self::Identify),
            "resume" => answer(value).map(Self::Resume),
            "replay-twice" => plain(Self::ReplayTwice),
            "resume-url" => match value {
                "" => Err("dead, foreign, or a url".into()),
                "dead" => Ok(Self::ResumeUrl(ResumeUrl::Dead)),
                "foreign" => Ok(Self::ResumeUrl(ResumeUrl::Foreign)),
                url => Ok(Self::ResumeUrl(ResumeUrl::Url(url.to_owned()))),
            },
            "rest" => match value {
                "html" => Ok(Self::Rest(RestFault::Html)),
                "hang" => Ok(Self::Rest(RestFault::Hang)),
                _ => number(value, 400, 599)
                    .map(|status| Self::Rest(RestFault::Status(status)))
                    .map_err(|range| format!("html, hang, {range}")),
            },
            _ => Err("delay, drip, cut, reset, silence, cut-in-frame, garbage, corrupt, bomb, oversized, no-ack, \
                heartbeat-request, reconnect, invalid-session, close, repeat, out-of-order, tls, upgrade, hello, identify, \
                resume, replay-twice, resume-url, rest"
                .into()),
        }
        .map_err(|allowed| FaultError { given: text.to_owned(), allowed })
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
        assert_eq!(
            all.len(),
            SURVIVABLE.split_whitespace().count(),
            "a word is not read"
        );
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
        ] {
            let error = word.parse::<Fault>().unwrap_err().to_string();
            assert!(
                error.contains(allowed) && error.contains(&format!("{word:?}")),
                "{error}"
            );
        }
    }
}
