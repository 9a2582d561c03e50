//! Shows what clients do.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::time::Instant;

use clap::ArgMatches;
use threadcord::ShardId;
use threadcord::sim::{self, Action, Record};

/// Prints what was observed line by line, and counts it for the summary.
pub(crate) struct Log {
    start: Instant,
    quiet: bool,
    heartbeats: bool,
    actions: BTreeMap<&'static str, usize>,
    faults: BTreeMap<String, usize>,
    violations: BTreeMap<String, usize>,
    warnings: BTreeMap<String, usize>,
    events: u64,
    sessions: u64,
    lost: usize,
}

impl Log {
    pub(crate) fn new(arguments: &ArgMatches) -> Self {
        Self {
            start: Instant::now(),
            quiet: arguments.get_flag("quiet"),
            heartbeats: arguments.get_flag("heartbeats"),
            actions: BTreeMap::new(),
            faults: BTreeMap::new(),
            violations: BTreeMap::new(),
            warnings: BTreeMap::new(),
            events: 0,
            sessions: 0,
            lost: 0,
        }
    }

    pub(crate) fn show(&mut self, seen: &sim::Observed) -> io::Result<()> {
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
            let what = format!("VIOLATION {violation}");
            let line = self.line(violation.at, &shard(violation.shard), &what);
            lines.push((violation.at, line));
        }

        for warning in &seen.warnings {
            let count = self.warnings.entry(warning.rule.clone()).or_default();
            *count += 1;
            // Only the first of each rule is shown: a library may cause it with every request.
            if *count == 1 && !self.quiet {
                let what = format!("WARNING {warning}");
                let line = self.line(warning.at, &shard(warning.shard), &what);
                lines.push((warning.at, line));
            }
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

    /// Prints the summary. Returns whether every client followed the rules.
    pub(crate) fn summary(&self) -> io::Result<bool> {
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
        table(&mut out, "warnings", &self.warnings)?;
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

/// Returns a word for an action, and its details.
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
            request, status, ..
        } => {
            let files = request.files.iter().map(|file| format!(" + {file:?}"));
            let files: String = files.collect();
            let detail = format!("{} {} {status}{files}", request.method, request.path);
            ("request", detail)
        }
        _ => ("other", format!("{action:?}")),
    }
}
