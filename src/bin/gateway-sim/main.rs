//! The simulated gateway as a program, for bots in any language.

mod arguments;
mod log;
mod orders;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::ArgMatches;
use threadcord::sim::{Fault, Gateway, Target};

use self::arguments::{command, start, value};
use self::log::Log;
use self::orders::read_orders;

/// The maximum time until an action of a client is shown.
const TICK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let arguments = command().get_matches();
    if arguments.get_flag("routes") {
        for (method, path) in Gateway::routes() {
            println!("{method:<7} {path}");
        }
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Serves until the program ends. Returns whether every client followed the rules.
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
    // The thread reads until the input ends, so it is not joined.
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

/// Prints what a bot needs to connect.
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
