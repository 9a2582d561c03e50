//! The command-line flags, and the gateway that they configure.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use threadcord::ShardId;
use threadcord::sim::{self, Answer, Fault, Gateway, Offer, StartError, Target};

const EXAMPLES: &str = "\
Faults are words, for example cut, silence, close=4009, invalid-session=false, drip=20000, upgrade=503, resume=nothing. \
An unknown word is reported with the allowed ones; the documentation of threadcord::sim::Fault explains each.

Each line on standard input is an order. A user acts in the first channel of the first guild:
  chat TEXT                       writes a message
  react MESSAGE EMOJI             reacts to a message
  command NAME [JSON]             uses a slash command, with an object of options
  autocomplete NAME OPTION JSON   types a slash command, at this option, with an object of options
  user-command USER NAME          uses a command in the menu of a user
  message-command MESSAGE NAME    uses a command in the menu of a message
  press CUSTOM_ID                 presses the newest button with this id
  select CUSTOM_ID VALUE...       chooses from the newest menu with this id
  submit CUSTOM_ID JSON           submits the newest modal with this id, with an object of its fields
  in CHANNEL ...                  does one of these in another channel

Other orders:
  emit NAME JSON                  sends an event of the first guild
  fault FAULT[@SHARD/TOTAL]       injects a fault now
  quit                            ends the program

The exit status is 1 if a client broke one of Discord's rules.";

const TIME_SCALE_HELP: &str =
    "The factor for Discord's durations: at 0.01 a window of 5 s lasts 50 ms";

const FAULT_HELP: &str =
    "A fault at a time after the start, for example 10s:cut@0/2 (without a shard: at random)";

const FAULT_KIND_HELP: &str =
    "A kind of random fault, may be repeated (default: one of each kind that a client survives)";

pub(crate) fn command() -> Command {
    Command::new("gateway-sim")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A simulated Discord gateway for testing bots")
        .after_help(EXAMPLES)
        .args(vec![
            number("port", "Port on the loopback interface; 0 is any free port", "0", 0, u64::from(u16::MAX)),
            switch("tls", "Serves wss and https; the certificate to trust is printed, or written to --certificate"),
            text("certificate", "FILE", "File to write the certificate to trust to, as PEM").requires("tls"),
            number("shards", "Number of shards that /gateway/bot recommends", "1", 1, u64::from(u32::MAX)),
            number(
                "shard-multiple",
                "For a large bot: the shard count must be a multiple of this",
                "1",
                1,
                u64::from(u32::MAX),
            ),
            number("max-concurrency", "Number of shards that may identify at once", "1", 1, u64::from(u32::MAX)),
            number("guilds", "Number of guilds that the bot is in", "3", 0, 1_000_000),
            number("members", "Number of members of each guild", "3", 1, 1_000_000),
            number("guilds-per-shard", "Maximum number of guilds of a shard; more close it with 4011", "2500", 1, 1_000_000),
            number("session-starts", "How many of today's 1000 IDENTIFYs are left", "1000", 0, 1000),
            rate("activity", "Events per second that the guilds generate, in total").default_value("0"),
            text("mix", "NAME=WEIGHT,...", "Which events --activity generates, with their weights"),
            parsed("compression", "KIND", "Compression that clients must request: any, none, zlib-stream or zstd-stream", offer)
                .default_value("any"),
            parsed("time-scale", "FACTOR", TIME_SCALE_HELP, factor).default_value("1"),
            duration("heartbeat-interval", "Heartbeat interval, before scaling", "41250ms"),
            duration("ready-delay", "Delay of READY", "0s"),
            duration("guild-delay", "Delay between the guilds as they become available", "0s"),
            duration("latency", "Delay of every message, in each direction", "0s"),
            duration("jitter", "Maximum random delay in addition to --latency", "0s"),
            number("replay-events", "Number of events that a session keeps for replay", "3500", 0, u64::from(u32::MAX)),
            duration("replay-delay", "Delay between RESUME and the start of the replay", "0s"),
            parsed(
                "on-takeover",
                "ANSWER",
                "What the old connection receives when its session is resumed on another: nothing, reconnect, \
                 invalid-session:true, invalid-session:false, close:CODE",
                Answer::from_str,
            )
            .default_value("nothing"),
            parsed("fault", "TIME:FAULT[@SHARD/TOTAL]", FAULT_HELP, scheduled).action(ArgAction::Append),
            rate("random-faults", "Random faults per second"),
            parsed("fault-kind", "FAULT", FAULT_KIND_HELP, Fault::from_str)
                .action(ArgAction::Append)
                .requires("random-faults"),
            number("rest-limit", "HTTP requests per route and channel within 5 s, before scaling", "5", 1, u64::from(u32::MAX)),
            number("global-rest-limit", "HTTP requests per second to all routes together, before scaling", "50", 1, u64::from(u32::MAX)),
            switch("strict", "Also refuses what deviates from Discord's documentation, even if Discord is not known to refuse it"),
            switch("routes", "Lists the HTTP routes that it serves, and exits"),
            number("seed", "Seed of the random number generator", "0", 0, u64::MAX),
            duration("duration", "Exits after this time; 0s: when it is interrupted", "0s"),
            switch("heartbeats", "Also shows heartbeats"),
            switch("quiet", "Shows only violations and the summary"),
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
        "more than 0 and at most 1000",
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
        .map_err(|_| format!("{time:?} is not a time, for example 250ms, 5s or 2m"))?;
    targeted(fault).map(|(target, fault)| (time, target, fault))
}

pub(crate) fn targeted(text: &str) -> Result<(Target, Fault), String> {
    // URLs and payloads may contain an `@`, too.
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
            .map_err(|_| format!("{text:?} is not a shard, for example 0/2"))
    };
    let (number, total) = text
        .split_once('/')
        .ok_or_else(|| format!("{text:?} is not a shard, for example 0/2"))?;
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

/// Returns the value of a flag that has a default.
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
