//! The flags, and the gateway that they ask for.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use threadcord::ShardId;
use threadcord::sim::{self, Answer, Fault, Gateway, Offer, StartError, Target};

const EXAMPLES: &str = "\
Faults are words, for example cut, silence, close=4009, invalid-session=false, drip=20000, upgrade=503, resume=nothing. \
A wrong word is answered with the right ones; the documentation of threadcord::sim::Fault explains each.

Lines on standard input let things happen meanwhile, in the first guild:
  chat TEXT                       somebody writes
  react MESSAGE EMOJI             somebody reacts to a message
  command NAME [JSON]             somebody uses a slash command, with an object of options
  autocomplete NAME OPTION JSON   somebody types a slash command, at this option
  user-command USER NAME          somebody uses a command in the menu of a user
  message-command MESSAGE NAME    somebody uses a command in the menu of a message
  press CUSTOM_ID                 somebody presses the newest button of this id
  select CUSTOM_ID VALUE...       somebody chooses from the newest menu of this id
  submit CUSTOM_ID JSON           somebody submits the newest modal of this id, with an object of its fields
  in CHANNEL ...                  one of these in another channel
  emit NAME JSON                  an event of the first guild
  fault FAULT[@SHARD/TOTAL]       a fault, now
  quit                            the end

It exits with 1 if a client broke a rule of Discord's.";

const TIME_SCALE_HELP: &str =
    "What Discord's durations are multiplied by: at 0.01 a window of 5 s has 50 ms";

const FAULT_HELP: &str =
    "A fault at a time after the start, for example 10s:cut@0/2; without a shard it strikes any";

const FAULT_KIND_HELP: &str =
    "Which faults by chance, may be given often (default: one of each that a client survives)";

pub(crate) fn command() -> Command {
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
            rate("activity", "Events a second that the guilds cause, in all").default_value("0"),
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
            number("rest-limit", "HTTP requests of a route and a channel within 5 s, before scaling", "5", 1, u64::from(u32::MAX)),
            number("global-rest-limit", "HTTP requests of all routes a second, before scaling", "50", 1, u64::from(u32::MAX)),
            switch("strict", "Refuses also what Discord documents otherwise and is not known to refuse"),
            switch("routes", "Lists the HTTP routes that it answers, and ends"),
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

pub(crate) fn targeted(text: &str) -> Result<(Target, Fault), String> {
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

pub(crate) fn start(arguments: &ArgMatches) -> Result<Gateway, Box<dyn Error>> {
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
        .rest_limit(small("rest-limit")?, Duration::from_secs(5))
        .global_rest_limit(small("global-rest-limit")?)
        .strict(arguments.get_flag("strict"))
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
pub(crate) fn value<T: Clone + Send + Sync + 'static>(
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
