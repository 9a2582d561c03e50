//! A manager's state and counters in the Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Duration;

use super::ManagerStatus;
use crate::histogram::Histogram;
use crate::protocol::ShardState;
use crate::shard::{ShardCounters, ShardStatus};
use crate::shard_id::ShardId;

impl ManagerStatus {
    /// Formats the whole status in the Prometheus text format, for a `/metrics` endpoint. Serve it
    /// as `text/plain; version=0.0.4`.
    ///
    /// Counters begin at 0 when the manager is started and never decrease. All durations are in
    /// seconds. Metrics with the labels `shard` (the shard's number) and `shards` (the total) have
    /// one value per shard; counters include shards that a reshard has replaced.
    ///
    /// | name | type | labels | what it is |
    /// |---|---|---|---|
    /// | `threadcord_healthy` | gauge | | 1 if [`is_healthy`](Self::is_healthy), else 0 |
    /// | `threadcord_shard_state` | gauge | `shard`, `shards`, `state` | 1 for the state that the shard is in |
    /// | `threadcord_shard_latency_seconds` | gauge | `shard`, `shards` | from a heartbeat to its ACK |
    /// | `threadcord_shard_last_received_seconds` | gauge | `shard`, `shards` | time since Discord last sent something |
    /// | `threadcord_shard_guilds` | gauge | `shard`, `shards` | guilds of its session |
    /// | `threadcord_shard_outstanding_events` | gauge | `shard`, `shards` | events that are not handled yet |
    /// | `threadcord_shard_outstanding_bytes` | gauge | `shard`, `shards` | their bytes, inflated |
    /// | `threadcord_shard_waiting_commands` | gauge | `shard`, `shards` | commands that are not sent yet |
    /// | `threadcord_events_total` | counter | `shard`, `shards` | events delivered |
    /// | `threadcord_event_bytes_total` | counter | `shard`, `shards` | their bytes, inflated |
    /// | `threadcord_events_filtered_total` | counter | `shard`, `shards` | events that the filter has dropped |
    /// | `threadcord_events_by_name_total` | counter | `event` | events delivered by all shards, by Discord's name |
    /// | `threadcord_stalls_total` | counter | `shard`, `shards` | how often it stopped reading because events were not handled |
    /// | `threadcord_stalled_seconds_total` | counter | `shard`, `shards` | for how long, in stalls that have ended |
    /// | `threadcord_connects_total` | counter | `shard`, `shards` | connections started |
    /// | `threadcord_disconnects_total` | counter | `shard`, `shards`, `reason` | connections lost: `zombied`, `connection_lost`, `close_4009`, ... |
    /// | `threadcord_identifies_total` | counter | `shard`, `shards` | IDENTIFYs sent |
    /// | `threadcord_resumes_total` | counter | `shard`, `shards` | sessions resumed |
    /// | `threadcord_sessions_lost_total` | counter | `shard`, `shards` | sessions lost |
    /// | `threadcord_heartbeats_total` | counter | `shard`, `shards` | heartbeats sent |
    /// | `threadcord_heartbeats_missed_total` | counter | `shard`, `shards` | heartbeats without an ACK when the next was due |
    /// | `threadcord_commands_sent_total` | counter | `shard`, `shards` | commands sent |
    /// | `threadcord_commands_refused_total` | counter | `shard`, `shards` | commands refused: too many waited, or the shard had stopped |
    /// | `threadcord_identify_wait_seconds` | histogram | | from HELLO to IDENTIFY |
    /// | `threadcord_event_wait_seconds` | histogram | | from the socket to the handler, see [`ShardCounters::event_wait`] |
    /// | `threadcord_event_handling_seconds` | histogram | | from then until the event was dropped or released |
    /// | `threadcord_queued_events` | gauge | | events that no handler has begun |
    /// | `threadcord_handler_panics_total` | counter | | handlers that panicked |
    /// | `threadcord_identifies_remaining` | gauge | | IDENTIFYs left today |
    /// | `threadcord_identifies_limit` | gauge | | IDENTIFYs a day |
    /// | `threadcord_identifies_waiting` | gauge | | shards that wait for their turn |
    /// | `threadcord_rest_answers_total` | counter | `status` | Discord's responses; 429 if rate limited |
    /// | `threadcord_rest_failures_total` | counter | | attempts without a response |
    /// | `threadcord_rest_held_total` | counter | | requests that were not sent, see [`RestCounters::held`](crate::rest::RestCounters::held) |
    /// | `threadcord_rest_wait_seconds` | histogram | | how long attempts waited for their turn |
    pub fn prometheus(&self) -> String {
        let mut page = Page::default();
        page.one("threadcord_healthy", "gauge", u8::from(self.is_healthy()));
        self.write_shards(&mut page);
        self.write_counters(&mut page);

        page.one("threadcord_queued_events", "gauge", self.queued_events);
        page.one(
            "threadcord_handler_panics_total",
            "counter",
            self.handler_panics,
        );
        if let Some(limit) = &self.limit {
            page.one("threadcord_identifies_remaining", "gauge", limit.remaining);
            page.one("threadcord_identifies_limit", "gauge", limit.total);
            page.one(
                "threadcord_identifies_waiting",
                "gauge",
                limit.waiting.len(),
            );
        }

        page.begin("threadcord_rest_answers_total", "counter");
        for (status, count) in &self.rest.answers {
            page.value(&[("status", status)], count);
        }
        page.one(
            "threadcord_rest_failures_total",
            "counter",
            self.rest.failures,
        );
        page.one("threadcord_rest_held_total", "counter", self.rest.held);
        page.histogram("threadcord_rest_wait_seconds", &self.rest.wait);
        page.text
    }

    /// Writes the gauges of each shard. While a reshard closes the old shards, two may have the
    /// same number and total; then the later one in the list is used.
    fn write_shards(&self, page: &mut Page) {
        let shards: BTreeMap<ShardId, &ShardStatus> = self
            .shards
            .iter()
            .map(|status| (status.shard, status))
            .collect();
        let mut gauge = |name: &str, value: &dyn Fn(&ShardStatus) -> Option<String>| {
            page.begin(&format!("threadcord_shard_{name}"), "gauge");
            for (shard, status) in &shards {
                if let Some(value) = value(status) {
                    page.of_shard(*shard, &[], value);
                }
            }
        };
        let seconds = |duration: Option<Duration>| Some(duration?.as_secs_f64().to_string());
        gauge("latency_seconds", &|status| seconds(status.latency));
        gauge("last_received_seconds", &|status| {
            seconds(status.last_received)
        });
        gauge("guilds", &|status| {
            status.guilds.map(|guilds| guilds.to_string())
        });
        gauge("outstanding_events", &|status| {
            Some(status.outstanding_events.to_string())
        });
        gauge("outstanding_bytes", &|status| {
            Some(status.outstanding_bytes.to_string())
        });
        gauge("waiting_commands", &|status| {
            Some(status.waiting_commands.to_string())
        });

        page.begin("threadcord_shard_state", "gauge");
        for (shard, status) in &shards {
            page.of_shard(*shard, &[("state", &state(status.state))], 1);
        }
    }

    fn write_counters(&self, page: &mut Page) {
        let mut counter = |name: &str, value: &dyn Fn(&ShardCounters) -> u64| {
            page.begin(&format!("threadcord_{name}_total"), "counter");
            for (shard, counters) in &self.counters {
                page.of_shard(*shard, &[], value(counters));
            }
        };
        counter("events", &|counters| counters.events);
        counter("event_bytes", &|counters| counters.bytes);
        counter("events_filtered", &|counters| counters.filtered);
        counter("stalls", &|counters| counters.stalls);
        counter("connects", &|counters| counters.connects);
        counter("identifies", &|counters| counters.identifies);
        counter("resumes", &|counters| counters.resumes);
        counter("sessions_lost", &|counters| counters.sessions_lost);
        counter("heartbeats", &|counters| counters.heartbeats);
        counter("heartbeats_missed", &|counters| counters.missed_heartbeats);
        counter("commands_sent", &|counters| counters.commands_sent);
        counter("commands_refused", &|counters| counters.commands_refused);

        page.begin("threadcord_stalled_seconds_total", "counter");
        for (shard, counters) in &self.counters {
            page.of_shard(*shard, &[], counters.stalled_for.as_secs_f64());
        }
        page.begin("threadcord_disconnects_total", "counter");
        for (shard, counters) in &self.counters {
            for (reason, count) in &counters.disconnects {
                page.of_shard(*shard, &[("reason", &reason.word())], count);
            }
        }

        let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
        let (mut identify, mut wait, mut handling) = <(Histogram, Histogram, Histogram)>::default();
        for counters in self.counters.values() {
            for (name, count) in &counters.events_by_name {
                *by_name.entry(name).or_default() += count;
            }
            identify.add(&counters.identify_wait);
            wait.add(&counters.event_wait);
            handling.add(&counters.event_handling);
        }
        page.begin("threadcord_events_by_name_total", "counter");
        for (name, count) in by_name {
            page.value(&[("event", &name)], count);
        }
        page.histogram("threadcord_identify_wait_seconds", &identify);
        page.histogram("threadcord_event_wait_seconds", &wait);
        page.histogram("threadcord_event_handling_seconds", &handling);
    }
}

/// A shard's state as one word, for a label.
fn state(stage: ShardState) -> String {
    match stage {
        // The reason is in the log.
        ShardState::Stopped(_) => "stopped".to_owned(),
        stage => stage.to_string().replace(' ', "_"),
    }
}

/// The text so far. Label values need no escaping: none contains a quote, a backslash or a line
/// break.
#[derive(Default)]
struct Page {
    text: String,
    name: String,
}

impl Page {
    /// Starts a metric; its values follow.
    fn begin(&mut self, name: &str, kind: &str) {
        name.clone_into(&mut self.name);
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
    }

    fn value(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.line("", labels, value);
    }

    fn of_shard(&mut self, shard: ShardId, labels: &[(&str, &dyn Display)], value: impl Display) {
        let (number, total) = (shard.number(), shard.total());
        let mut all: Vec<(&str, &dyn Display)> = vec![("shard", &number), ("shards", &total)];
        all.extend(labels);
        self.value(&all, value);
    }

    /// Writes a metric with one value.
    fn one(&mut self, name: &str, kind: &str, value: impl Display) {
        self.begin(name, kind);
        self.value(&[], value);
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        self.begin(name, "histogram");
        let mut count = 0;
        for (bound, in_bucket) in histogram.buckets() {
            count += in_bucket;
            let bound = bound.map_or("+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
            self.line("_bucket", &[("le", &bound)], count);
        }
        self.line("_sum", &[], histogram.sum().as_secs_f64());
        self.line("_count", &[], count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{label}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Disconnect;

    #[test]
    fn the_text_has_every_shard_and_sums_what_is_told_once() {
        let shard = |number| ShardId::new(number, 2).unwrap();
        let mut counters = ShardCounters {
            events: 3,
            ..ShardCounters::default()
        };
        counters.events_by_name.insert("READY", 1);
        counters.disconnects.insert(Disconnect::Zombied, 2);
        counters.identify_wait.record(Duration::from_secs(2), 1);
        let mut status = ManagerStatus {
            counters: [0, 1].map(|n| (shard(n), counters.clone())).into(),
            ..ManagerStatus::default()
        };
        status.rest.answers.insert(429, 7);

        let text = status.prometheus();
        for line in [
            "# TYPE threadcord_events_total counter",
            "threadcord_events_total{shard=\"1\",shards=\"2\"} 3",
            "threadcord_events_by_name_total{event=\"READY\"} 2",
            "threadcord_disconnects_total{shard=\"0\",shards=\"2\",reason=\"zombied\"} 2",
            "threadcord_identify_wait_seconds_bucket{le=\"1\"} 0",
            "threadcord_identify_wait_seconds_bucket{le=\"5\"} 2",
            "threadcord_identify_wait_seconds_bucket{le=\"+Inf\"} 2",
            "threadcord_identify_wait_seconds_sum 4",
            "threadcord_identify_wait_seconds_count 2",
            "threadcord_rest_answers_total{status=\"429\"} 7",
            "threadcord_healthy 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
