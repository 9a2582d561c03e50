//! The simulated gateway as a program, for bots in any language.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Display;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};
use threadcord::ShardId;
use threadcord::sim::{self, Action, Answer, Fault, Gateway, Offer, Record, StartError, Target};

const EXAMPLES: &str = "\
Faults are words, for example cut, silence, close=4009, invalid-session=false, drip=20000, upgrade=503, resume=nothing. \
A wrong word is answered with the right ones; the documentation of threadcord::sim::Fault explains each.

Lines on standard input let things happen meanwhile:
  chat TEXT                    somebody writes in the first guild
  chat CHANNEL TEXT            somebody writes in a channel
  command NAME                 somebody uses a command of the bot's in the first guild
  emit NAME JSON               an event of the first guild
  fault FAULT[@SHARD/TOTAL]    a fault, now
  quit                         the end

It exits with 1 if a client broke a rule of Discord's.";

const TIME_SCALE_HELP: &str =
    "What Discord's durations are multiplied by: at 0.01 a window of 5 s has 50 ms";

const FAULT_HELP: &str =
    "A fault at a time after the start, for example 10s:cut@0/2; without a shard it strikes any";

const FAULT_KIND_HELP: &str =
    "Which faults by chance, may be given often (default: one of each that a client survives)";

/// How long it takes at most until what clients do is shown.
const TICK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let arguments = command().get_matches();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn command() -> Command {
    Command::new("gateway-sim")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A simulated Discord gateway to test bots on")
        .after_help(EXAMPLES)
        .args(vec![
            number("port", "Port of the loopback interface; 0 is any that is free", "0", 0, u64::from(u16::MAX)),
            switch("tls", "Serves wss and https; the certificate to trust is printed, or written to --certificate"),
            text("certificate", "FILE", "Writes the certificate to trust, as PEM").requires("tls"),
            number("shards", "Shards that /gateway/bot recommends", "1", 1, u64::from(u32::MAX)),
            number(
                "shard-multiple",
                "A large bot's: shard counts must be multiples of it",
                "1",
                1,
                u64::from(u32::MAX),
            ),
            number("max-concurrency", "Shards that may identify at once", "1", 1, u64::from(u32::MAX)),
            number("guilds", "Guilds that the bot is in", "3", 0, 1_000_000),
            number("members", "Members of each guild", "3", 1, 1_000_000),
            number("guilds-per-shard", "Guilds that a shard may hold before 4011", "2500", 1, 1_000_000),
            number("session-starts", "IDENTIFYs that are left of today's 1000", "1000", 0, 1000),
            rate("activity", "Events a second that the guilds bring forth, in all").default_value("0"),
            text("mix", "NAME=WEIGHT,...", "Which events these are"),
            parsed("compression", "KIND", "any, none, zlib-stream or zstd-stream: what clients must ask for", offer)
                .default_value("any"),
            parsed("time-scale", "FACTOR", TIME_SCALE_HELP, factor).default_value("1"),
            duration("heartbeat-interval", "Heartbeat interval, before scaling", "41250ms"),
            duration("ready-delay", "How long READY takes", "0s"),
            duration("guild-delay", "How long each guild takes to become available after the one before", "0s"),
            duration("latency", "How long every message takes in each direction", "0s"),
            duration("jitter", "How much longer it takes by chance", "0s"),
            number("replay-events", "Events that a session keeps for replay", "3500", 0, u64::from(u32::MAX)),
            duration("replay-delay", "How long a replay takes to begin after RESUME", "0s"),
            parsed(
                "on-takeover",
                "ANSWER",
                "What an old connection is sent when its session is resumed on another: nothing, reconnect, \
                 invalid-session:true, invalid-session:false, close:CODE",
                Answer::from_str,
            )
            .default_value("nothing"),
            parsed("fault", "TIME:FAULT[@SHARD/TOTAL]", FAULT_HELP, scheduled).action(ArgAction::Append),
            rate("random-faults", "Faults a second by chance"),
            parsed("fault-kind", "FAULT", FAULT_KIND_HELP, Fault::from_str)
                .action(ArgAction::Append)
                .requires("random-faults"),
            number("seed", "What chance starts from", "0", 0, u64::MAX),
            duration("duration", "Ends after this time; 0s: when it is interrupted", "0s"),
            switch("heartbeats", "Shows heartbeats, too"),
            switch("quiet", "Shows violations and the summary alone"),
        ])
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .action(ArgAction::SetTrue)
}

fn text(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).value_name(value)
}

fn number(
    name: &'static str,
    help: &'static str,
    default: &'static str,
    least: u64,
    most: u64,
) -> Arg {
    let parse = move |text: &str| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("allowed: {least} to {most}")),
    };
    Arg::new(name)
        .long(name)
        .help(help)
        .value_name("N")
        .default_value(default)
        .value_parser(parse)
        .allow_negative_numbers(true)
}

fn parsed<T, E>(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    parse: fn(&str) -> Result<T, E>,
) -> Arg
where
    T: Clone + Send + Sync + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    Arg::new(name)
        .long(name)
        .help(help)
        .value_name(value)
        .value_parser(parse)
        .allow_negative_numbers(true)
}

fn duration(name: &'static str, help: &'static str, default: &'static str) -> Arg {
    parsed(name, "TIME", help, |text| {
        humantime::parse_duration(text)
            .map_err(|_| "allowed: a time with its unit, for example 250ms, 5s or 2m")
    })
    .default_value(default)
}

fn rate(name: &'static str, help: &'static str) -> Arg {
    parsed(name, "RATE", help, |text| {
        float(
            text,
            |rate| (0.0..=1_000_000.0).contains(rate),
            "0 to 1000000",
        )
    })
}

fn factor(text: &str) -> Result<f64, String> {
    float(
        text,
        |factor| *factor > 0.0 && *factor <= 1000.0,
        "above 0, to 1000",
    )
}

fn float(text: &str, is_allowed: fn(&f64) -> bool, allowed: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(is_allowed)
        .ok_or_else(|| format!("allowed: {allowed}"))
}

fn offer(text: &str) -> Result<Offer, &'static str> {
    match text {
        "any" => Ok(Offer::Any),
        "none" => Ok(Offer::Plain),
        "zlib-stream" => Ok(Offer::ZlibStream),
        "zstd-stream" => Ok(Offer::ZstdStream),
        _ => Err("allowed: any, none, zlib-stream, zstd-stream"),
    }
}

fn scheduled(text: &str) -> Result<(Duration, Target, Fault), String> {
    let (time, fault) = text
        .split_once(':')
        .ok_or("allowed: TIME:FAULT, for example 10s:cut")?;
    let time = humantime::parse_duration(time)
        .map_err(|_| format!("{time:?} is no time, as 250ms, 5s or 2m are"))?;
    targeted(fault).map(|(target, fault)| (time, target, fault))
}

fn targeted(text: &str) -> Result<(Target, Fault), String> {
    // Urls and payloads may have an `@` of their own.
    let is_shard = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'/')
    };
    let (fault, target) = match text.rsplit_once('@').filter(|(_, shard)| is_shard(shard)) {
        Some((fault, shard)) => (fault, Target::Shard(shard_id(shard)?)),
        None => (text, Target::Any),
    };
    Ok((
        target,
        fault
            .parse()
            .map_err(|error: sim::FaultError| error.to_string())?,
    ))
}

fn shard_id(text: &str) -> Result<ShardId, String> {
    let number_of = |text: &str| {
        text.parse()
            .map_err(|_| format!("{text:?} is no shard, as 0/2 is"))
    };
    let (number, total) = text
        .split_once('/')
        .ok_or_else(|| format!("{text:?} is no shard, as 0/2 is"))?;
    ShardId::new(number_of(number)?, number_of(total)?).map_err(|error| error.to_string())
}

/// Serves until the end; whether every client kept the rules.
fn run(arguments: &ArgMatches) -> Result<bool, Box<dyn Error>> {
    let gateway = Arc::new(start(arguments)?);
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    ctrlc::set_handler(move || stopping.store(true, Ordering::Release))?;
    announce(&gateway, arguments)?;
    if let Some(rate) = arguments.get_one::<f64>("random-faults") {
        let kinds: Vec<Fault> = arguments
            .get_many("fault-kind")
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        gateway.random_faults(
            *rate,
            if kinds.is_empty() {
                Fault::all()
            } else {
                kinds
            },
        );
    }
    for (delay, target, fault) in arguments
        .get_many::<(Duration, Target, Fault)>("fault")
        .into_iter()
        .flatten()
    {
        gateway.inject_after(*delay, *target, fault.clone());
    }

    let (console, quitting) = (Arc::clone(&gateway), Arc::clone(&stop));
    // Nobody waits for it: it reads for as long as there is input.
    std::thread::spawn(move || read_orders(&console, &quitting));
    let lifetime: Duration = value(arguments, "duration")?;
    let end = Instant::now()
        .checked_add(lifetime)
        .filter(|_| !lifetime.is_zero());
    let mut log = Log::new(arguments);
    while !stop.load(Ordering::Acquire) && end.is_none_or(|end| Instant::now() < end) {
        gateway.wait_for(TICK, |seen| {
            !seen.records.is_empty() || !seen.violations.is_empty() || !seen.faults.is_empty()
        });
        log.show(&gateway.drain())?;
    }
    log.show(&gateway.drain())?;
    Ok(log.summary()?)
}

fn start(arguments: &ArgMatches) -> Result<Gateway, Box<dyn Error>> {
    let mix = arguments
        .get_one::<String>("mix")
        .map(|mix| weights(mix))
        .transpose()?;
    let small = |name| Ok::<u32, Box<dyn Error>>(u32::try_from(value::<u64>(arguments, name)?)?);
    let mut builder = Gateway::builder()
        .port(u16::try_from(value::<u64>(arguments, "port")?)?)
        .tls(arguments.get_flag("tls"))
        .shards(small("shards")?)
        .shard_multiple(small("shard-multiple")?)
        .max_concurrency(small("max-concurrency")?)
        .guilds(small("guilds")?)
        .members(small("members")?)
        .guilds_per_shard(small("guilds-per-shard")? as usize)
        .session_starts(
            1000,
            small("session-starts")?,
            Duration::from_secs(24 * 60 * 60),
        )
        .activity(value(arguments, "activity")?)
        .compression(value(arguments, "compression")?)
        .time_scale(value(arguments, "time-scale")?)
        .heartbeat_interval(value(arguments, "heartbeat-interval")?)
        .ready_delay(value(arguments, "ready-delay")?)
        .guild_delay(value(arguments, "guild-delay")?)
        .latency(value(arguments, "latency")?, value(arguments, "jitter")?)
        .replay_events(small("replay-events")? as usize)
        .replay_delay(value(arguments, "replay-delay")?)
        .on_takeover(value(arguments, "on-takeover")?)
        .seed(value(arguments, "seed")?);
    if let Some(mix) = &mix {
        builder = builder.mix(mix.iter().copied());
    }
    builder.start().map_err(|error| match error {
        StartError::Setting {
            setting,
            given,
            allowed,
        } => format!(
            "invalid value {given:?} for '--{}': allowed: {allowed}",
            setting.replace('_', "-")
        )
        .into(),
        StartError::PortInUse(_) => format!("'--port': {error}").into(),
        error => error.into(),
    })
}

/// A value that is always there, since the flag has a default.
fn value<T: Clone + Send + Sync + 'static>(
    arguments: &ArgMatches,
    name: &str,
) -> Result<T, String> {
    arguments
        .get_one(name)
        .cloned()
        .ok_or_else(|| format!("'--{name}' has no value"))
}

fn weights(text: &str) -> Result<Vec<(&str, u32)>, String> {
    text.split(',')
        .map(|part| {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let weight = weight.parse().map_err(|_| {
                format!("invalid value {part:?} for '--mix': allowed: NAME=WEIGHT, the weight from 0 to {}", u32::MAX)
            })?;
            Ok((name, weight))
        })
        .collect()
}

/// Says what a bot has to know.
fn announce(gateway: &Gateway, arguments: &ArgMatches) -> Result<(), Box<dyn Error>> {
    println!("gateway      {}", gateway.url());
    println!("rest         {}", gateway.rest_url());
    println!("token        {}", gateway.token());
    for guild in gateway.guild_ids().into_iter().take(3) {
        println!(
            "guild        {guild}, channel {}",
            gateway.channel_of(guild).unwrap_or_default()
        );
    }
    if let Some(root) = gateway.root_certificate() {
        match arguments.get_one::<String>("certificate") {
            Some(file) => {
                std::fs::write(file, root).map_err(|error| {
                    format!("'--certificate': {file} cannot be written: {error}")
                })?;
                println!("certificate  {file}");
            }
            None => println!("{root}"),
        }
    }
    Ok(())
}

/// Reads orders from standard input until there is no more.
fn read_orders(gateway: &Gateway, stop: &AtomicBool) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let done = match word {
            "" => Ok(()),
            "chat" => chat(gateway, rest),
            "emit" => emit(gateway, rest),
            "command" => command_used(gateway, rest),
            "fault" => targeted(rest).map(|(target, fault)| gateway.inject(target, fault)),
            "quit" => {
                stop.store(true, Ordering::Release);
                Ok(())
            }
            _ => Err(format!(
                "{word:?} is no order; allowed: chat, command, emit, fault, quit"
            )),
        };
        if let Err(error) = done {
            eprintln!("error: {error}");
        }
    }
}

fn command_used(gateway: &Gateway, name: &str) -> Result<(), String> {
    let channel = gateway
        .channel_of(first_guild(gateway)?)
        .unwrap_or_default();
    let used = gateway.interact(channel, name.trim(), &serde_json::json!([]));
    used.map(drop).map_err(|error| error.to_string())
}

fn chat(gateway: &Gateway, rest: &str) -> Result<(), String> {
    let first = rest
        .split_once(' ')
        .and_then(|(channel, text)| Some((channel.parse().ok()?, text)));
    let (channel, text) = match first {
        Some(first) => first,
        None => (
            gateway
                .channel_of(first_guild(gateway)?)
                .unwrap_or_default(),
            rest,
        ),
    };
    gateway
        .chat(channel, text)
        .map(drop)
        .map_err(|error| error.to_string())
}

fn emit(gateway: &Gateway, rest: &str) -> Result<(), String> {
    let (name, data) = rest.split_once(' ').ok_or("allowed: emit NAME JSON")?;
    let mut data: serde_json::Value =
        serde_json::from_str(data).map_err(|error| format!("the data of {name}: {error}"))?;
    let guild = first_guild(gateway)?;
    if let Some(data) = data.as_object_mut() {
        data.entry("guild_id")
            .or_insert_with(|| guild.to_string().into());
    }
    let heard = gateway
        .emit(Some(guild), name, &data)
        .map_err(|error| error.to_string())?;
    println!("{heard} sessions hear of {name}");
    Ok(())
}

fn first_guild(gateway: &Gateway) -> Result<u64, String> {
    gateway
        .guild_ids()
        .first()
        .copied()
        .ok_or_else(|| "there is no guild: start with --guilds".into())
}

/// What was seen, line by line and in all.
struct Log {
    start: Instant,
    quiet: bool,
    heartbeats: bool,
    actions: BTreeMap<&'static str, usize>,
    faults: BTreeMap<String, usize>,
    violations: BTreeMap<String, usize>,
    events: u64,
    sessions: u64,
    lost: usize,
}

impl Log {
    fn new(arguments: &ArgMatches) -> Self {
        Self {
            start: Instant::now(),
            quiet: arguments.get_flag("quiet"),
            heartbeats: arguments.get_flag("heartbeats"),
            actions: BTreeMap::new(),
            faults: BTreeMap::new(),
            violations: BTreeMap::new(),
            events: 0,
            sessions: 0,
            lost: 0,
        }
    }

    fn show(&mut self, seen: &sim::Observed) -> io::Result<()> {
        let mut lines = Vec::new();
        for record in &seen.records {
            let (word, detail) = describe(&record.action);
            *self.actions.entry(word).or_default() += 1;
            if !self.quiet && (self.heartbeats || !matches!(record.action, Action::Heartbeat(_))) {
                lines.push((
                    record.at,
                    self.line(record.at, &who(record), &format!("{word} {detail}")),
                ));
            }
        }
        for strike in &seen.faults {
            *self.faults.entry(strike.fault.to_string()).or_default() += 1;
            if !self.quiet {
                lines.push((
                    strike.at,
                    self.line(
                        strike.at,
                        &shard(strike.shard),
                        &format!("FAULT {}", strike.fault),
                    ),
                ));
            }
        }
        for violation in &seen.violations {
            *self.violations.entry(violation.rule.clone()).or_default() += 1;
            let what = format!("VIOLATION {}", violation.rule);
            lines.push((
                violation.at,
                self.line(violation.at, &shard(violation.shard), &what),
            ));
        }
        lines.sort_by_key(|(at, _)| *at);
        let mut out = io::stdout().lock();
        for (_, line) in lines {
            writeln!(out, "{line}")?;
        }
        (self.events, self.sessions) = (seen.events, seen.started);
        self.lost += seen.lost.len();
        Ok(())
    }

    fn line(&self, at: Instant, who: &str, what: &str) -> String {
        let at = at.saturating_duration_since(self.start);
        format!("{:>9.3} s  {who:<14} {}", at.as_secs_f64(), what.trim_end())
    }

    /// Shows what there was in all; whether every client kept the rules.
    fn summary(&self) -> io::Result<bool> {
        let mut out = io::stdout().lock();
        writeln!(out, "--- {:.1} s", self.start.elapsed().as_secs_f64())?;
        writeln!(
            out,
            "{} events for {} sessions, of which the gateway ended {}",
            self.events, self.sessions, self.lost
        )?;
        table(&mut out, "clients", &self.actions)?;
        table(&mut out, "faults", &self.faults)?;
        table(&mut out, "violations", &self.violations)?;
        if self.violations.is_empty() {
            writeln!(out, "no client broke a rule")?;
        }
        Ok(self.violations.is_empty())
    }
}

fn table(
    out: &mut impl Write,
    title: &str,
    rows: &BTreeMap<impl Display, usize>,
) -> io::Result<()> {
    if !rows.is_empty() {
        writeln!(out, "{title}:")?;
    }
    rows.iter()
        .try_for_each(|(row, count)| writeln!(out, "{count:>8}  {row}"))
}

fn who(record: &Record) -> String {
    record.shard.map_or_else(
        || format!("connection {}", record.connection),
        |_| shard(record.shard),
    )
}

fn shard(shard: Option<ShardId>) -> String {
    shard.map_or_else(
        || "-".into(),
        |shard| format!("shard {}/{}", shard.number(), shard.total()),
    )
}

/// A word for an action, and the rest of it.
fn describe(action: &Action) -> (&'static str, String) {
    match action {
        Action::Connected => ("connected", String::new()),
        Action::Identify(data) => ("identify", format!("intents {}", data["intents"])),
        Action::Resume { session, sequence } => ("resume", format!("{session} from {sequence}")),
        Action::Heartbeat(sequence) => (
            "heartbeat",
            sequence.map_or("null".into(), |sequence| sequence.to_string()),
        ),
        Action::Command { op, data } => ("command", format!("op {op} {data}")),
        Action::Closed(Some(code)) => ("closed", code.to_string()),
        Action::Closed(None) => ("gone", String::new()),
        Action::Post { channel, text } => ("post", format!("{channel} {text:?}")),
        Action::Request {
            method,
            path,
            status,
        } => ("request", format!("{method} {path} {status}")),
        _ => ("other", format!("{action:?}")),
    }
}
