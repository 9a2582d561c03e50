//! Checks whether a bot can start here: the token, the intents, the limits, the clock, this machine
//! and the connection to Discord. It sends no IDENTIFY.
//!
//! ```sh
//! DISCORD_TOKEN=... cargo run --example doctor -- GUILDS MESSAGE_CONTENT    # the bot's intents
//! DISCORD_TOKEN=... SHARDS=64 cargo run --example doctor    # more shards than are recommended
//! ```
//!
//! It exits with status 1 if something is wrong.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fmt, process};

use native_tls::TlsConnector;
use serde_json::Value;
use threadcord::rest::{GatewayBot, Rest};
use threadcord::transport::Uri;
use threadcord::{Error, Intents, Token};

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest tolerated clock error. With a larger one, interactions look late and `SystemTime`s
/// in logs are wrong.
const MAX_SKEW: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warning,
    Wrong,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Wrong => "ERROR",
        })
    }
}

/// What has been found so far.
#[derive(Default)]
struct Report {
    wrong: u32,
}

impl Report {
    fn line(&mut self, verdict: Verdict, what: &str, found: impl fmt::Display) {
        println!("{verdict:<8} {what:<12} {found}");
        self.wrong += u32::from(verdict == Verdict::Wrong);
    }

    fn end(&self) -> ! {
        process::exit(i32::from(self.wrong > 0))
    }
}

fn main() {
    let mut report = Report::default();
    let Some(rest) = client(&mut report) else {
        report.end()
    };
    let Some(gateway) = check_token(&mut report, &rest) else {
        report.end()
    };
    check_intents(&mut report, &rest);
    check_limit(&mut report, &gateway);
    check_clock(&mut report, &rest);
    check_machine(&mut report, shards(&gateway));
    check_way(&mut report, &gateway.url);
    report.end()
}

/// The number of shards in `SHARDS`, or else the number that Discord recommends.
fn shards(gateway: &GatewayBot) -> u32 {
    let Ok(given) = env::var("SHARDS") else {
        return gateway.shards.get();
    };
    given.parse().unwrap_or_else(|_| {
        eprintln!("SHARDS={given} is no number of shards");
        process::exit(2)
    })
}

fn client(report: &mut Report) -> Option<Rest> {
    let Ok(token) = env::var("DISCORD_TOKEN") else {
        report.line(
            Verdict::Wrong,
            "token",
            "set DISCORD_TOKEN to the bot's token",
        );
        return None;
    };

    let url = env::var("DISCORD_REST_URL").ok();
    let client = Token::new(token).map_err(Error::from).and_then(|token| {
        let rest = Rest::builder(token);
        match url {
            Some(url) => rest.base_url(url).build(),
            None => rest.build(),
        }
    });
    client
        .inspect_err(|error| report.line(Verdict::Wrong, "token", error.report()))
        .ok()
}

fn check_token(report: &mut Report, rest: &Rest) -> Option<GatewayBot> {
    let start = Instant::now();
    match rest.gateway_bot() {
        Ok(gateway) => {
            let took = start.elapsed();
            let found = format!(
                "Discord accepts it ({} answers in {took:.0?})",
                rest.base_url()
            );
            report.line(Verdict::Ok, "token", found);
            Some(gateway)
        }
        Err(error) => {
            let what = match error {
                Error::Unauthorized => "token",
                _ => "REST",
            };
            report.line(Verdict::Wrong, what, error.report());
            None
        }
    }
}

/// Checks that the privileged intents among the arguments are switched on in the developer portal,
/// which the application's flags show.
fn check_intents(report: &mut Report, rest: &Rest) {
    // Two flags for each intent: approved, and for bots in fewer than 100 guilds.
    let flags = [
        (Intents::GUILD_PRESENCES, 1 << 12 | 1 << 13),
        (Intents::GUILD_MEMBERS, 1 << 14 | 1 << 15),
        (Intents::MESSAGE_CONTENT, 1 << 18 | 1 << 19),
    ];

    let mut intents = Intents::empty();
    for name in env::args().skip(1) {
        match Intents::from_name(&name) {
            Some(intent) => intents |= intent,
            None => report.line(
                Verdict::Wrong,
                "intents",
                format!("there is none named {name}"),
            ),
        }
    }

    let application = match rest.get("/applications/@me").send() {
        Ok(answer) => answer.json::<Value>(),
        Err(error) => Err(error),
    };
    let application = match application {
        Ok(application) => application,
        Err(error) => return report.line(Verdict::Warning, "intents", error.report()),
    };
    let allowed = application["flags"].as_u64().unwrap_or_default();

    for (intent, flag) in flags {
        let name = intent.iter_names().next().map_or("", |(name, _)| name);
        match (intents.contains(intent), allowed & flag != 0) {
            (true, true) => report.line(Verdict::Ok, "intents", format!("{name} is switched on")),
            (true, false) => {
                let found = format!(
                    "{name} is not switched on: do so in the developer portal, on the Bot page"
                );
                report.line(Verdict::Wrong, "intents", found);
            }
            (false, _) => {}
        }
    }

    if !intents.intersects(Intents::PRIVILEGED) {
        report.line(Verdict::Ok, "intents", "no privileged ones were named");
    }
}

fn check_limit(report: &mut Report, gateway: &GatewayBot) {
    let (limit, shards) = (&gateway.session_start_limit, shards(gateway));
    let recommended = gateway.shards.get();
    let verdict = if shards < recommended {
        Verdict::Warning
    } else {
        Verdict::Ok
    };
    let found = format!("{shards}, and Discord recommends {recommended}");
    report.line(verdict, "shards", found);

    let (left, total) = (limit.remaining, limit.total);
    let reset = Duration::from_millis(limit.reset_after);
    let hours = reset.as_secs_f64() / 3600.0;
    let found = format!("{left} of {total} left, all of them again in {hours:.1} h");
    if left < shards {
        let found = format!("{found}: too few for {shards} shards without a session to resume");
        report.line(Verdict::Wrong, "IDENTIFYs", found);
    } else if left < shards.saturating_mul(2) {
        let found = format!("{found}: enough for one start");
        report.line(Verdict::Warning, "IDENTIFYs", found);
    } else {
        report.line(Verdict::Ok, "IDENTIFYs", found);
    }
}

/// Compares this machine's clock with the date of a response, which is in whole seconds.
fn check_clock(report: &mut Report, rest: &Rest) {
    let before = SystemTime::now();
    let Ok(answer) = rest.get("/gateway").send() else {
        return report.line(Verdict::Warning, "clock", "not compared: no answer");
    };
    let Some(theirs) = answer.header("date").and_then(seconds_of) else {
        return report.line(
            Verdict::Warning,
            "clock",
            "not compared: the answer has no date",
        );
    };

    let ours = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (before, after) = (ours(before), ours(SystemTime::now()));
    let theirs = Duration::from_secs(theirs);
    let behind = theirs.saturating_sub(after);
    let ahead = before.saturating_sub(theirs + Duration::from_secs(1));
    let skew = behind.max(ahead);

    if skew > MAX_SKEW {
        let word = if behind > ahead { "behind" } else { "ahead of" };
        let found = format!("{} s {word} Discord's: have NTP set it", skew.as_secs());
        report.line(Verdict::Warning, "clock", found);
    } else {
        report.line(
            Verdict::Ok,
            "clock",
            format!("within {MAX_SKEW:?} of Discord's"),
        );
    }
}

/// The seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn seconds_of(date: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let parts: Vec<&str> = date.split([' ', ':']).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = parts[..] else {
        return None;
    };
    let month = MONTHS.find(month)? as u64 / 3 + 1;
    let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number < 10_000);
    // Years begin in March here, so that a leap day is the last day of its year.
    let year = number(year)?.checked_sub(u64::from(month < 3))?;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + number(day)?.checked_sub(1)?;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    let since_1970 = days.checked_sub(719_468)?;
    Some(since_1970 * 86_400 + number(hour)? * 3600 + number(minute)? * 60 + number(second)?)
}

/// Checks the process limits. A shard needs a thread and three descriptors, and the program needs
/// some more.
#[cfg(unix)]
fn check_machine(report: &mut Report, shards: u32) {
    let needs = [
        (
            rlimit::Resource::NOFILE,
            "descriptors",
            u64::from(shards) * 3 + 50,
            "-n",
        ),
        (
            rlimit::Resource::NPROC,
            "threads",
            u64::from(shards) + 20,
            "-u",
        ),
    ];
    for (resource, what, needed, flag) in needs {
        match resource.get() {
            Ok((allowed, _)) if allowed < needed => {
                let found = format!(
                    "{needed} are needed and {allowed} are allowed: raise `ulimit {flag}`, or \
                     LimitNOFILE and TasksMax of systemd"
                );
                report.line(Verdict::Wrong, what, found);
            }
            Ok((rlimit::INFINITY, _)) => report.line(Verdict::Ok, what, "no limit"),
            Ok((allowed, _)) => {
                let found = format!("{needed} are needed and {allowed} are allowed");
                report.line(Verdict::Ok, what, found);
            }
            Err(error) => report.line(Verdict::Warning, what, error),
        }
    }
}

#[cfg(not(unix))]
fn check_machine(_: &mut Report, _: u32) {}

/// Checks that the gateway's name resolves, and that a TLS connection to it can be trusted.
fn check_way(report: &mut Report, url: &str) {
    let Ok(url) = url.parse::<Uri>() else {
        return report.line(Verdict::Wrong, "DNS", format!("{url} is no URL"));
    };
    let host = url.host().unwrap_or_default();
    let is_encrypted = url.scheme_str() == Some("wss");
    let port = url
        .port_u16()
        .unwrap_or(if is_encrypted { 443 } else { 80 });

    let start = Instant::now();
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = match (name, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let found = format!("{host} does not resolve: {error}");
            return report.line(Verdict::Wrong, "DNS", found);
        }
    };
    let found = format!(
        "{host} resolves to {} address(es), in {:.1?}",
        addresses.len(),
        start.elapsed()
    );
    report.line(Verdict::Ok, "DNS", found);

    let mut has_worked = false;
    for address in addresses {
        let start = Instant::now();
        let stream = match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => stream,
            Err(error) => {
                let found = format!("{address}: {error}");
                report.line(Verdict::Warning, "connection", found);
                continue;
            }
        };
        has_worked |= !is_encrypted;
        if !is_encrypted {
            report.line(Verdict::Warning, "TLS", format!("{url} is not encrypted"));
            continue;
        }
        match secure(name, stream) {
            Ok(()) => {
                has_worked = true;
                let found = format!(
                    "{address}: its certificate is good, in {:.0?}",
                    start.elapsed()
                );
                report.line(Verdict::Ok, "TLS", found);
            }
            Err(error) => report.line(Verdict::Wrong, "TLS", format!("{address}: {error}")),
        }
    }

    if !has_worked {
        let found = "cannot connect to the gateway";
        report.line(Verdict::Wrong, "connection", found);
    }
}

/// Tries a TLS handshake.
fn secure(name: &str, stream: TcpStream) -> Result<(), String> {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let connector = TlsConnector::new().map_err(|error| error.to_string())?;
    let secured = connector.connect(name, stream);
    secured.map(drop).map_err(|error| error.to_string())
}
