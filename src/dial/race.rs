//! Decides when to try which of a host's IP addresses.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long an attempt runs before the next IP address is tried in parallel.
///
/// Source: [RFC 8305, Connection
/// attempts](https://datatracker.ietf.org/doc/html/rfc8305#section-5).
const STAGGER: Duration = Duration::from_millis(250);

/// The IP addresses of a host that have not been tried. Several attempts may run at once; the first
/// one that connects wins.
#[derive(Debug)]
pub(super) struct Race {
    left: VecDeque<SocketAddr>,
    /// When the next one is tried; `None` means at once.
    next_at: Option<Instant>,
}

impl Race {
    /// Orders the IP addresses: `first` comes first and `last` comes last, if they are among them.
    /// The others come in between in their given order, except that IPv4 and IPv6 alternate. So a
    /// network without one of the two costs only one attempt.
    pub(super) fn new(
        addresses: Vec<SocketAddr>,
        first: Option<SocketAddr>,
        last: Option<SocketAddr>,
    ) -> Self {
        let is_first = |address: &SocketAddr| Some(*address) == first;
        let is_last = |address: &SocketAddr| Some(*address) == last && !is_first(address);
        let (mut ends, others): (Vec<_>, Vec<_>) = addresses
            .into_iter()
            .partition(|address| is_first(address) || is_last(address));
        ends.dedup();

        let begins_with_v6 = others.first().is_some_and(SocketAddr::is_ipv6);
        let (one, other): (VecDeque<_>, VecDeque<_>) = others
            .into_iter()
            .partition(|address| address.is_ipv6() == begins_with_v6);
        let mut left: VecDeque<_> = ends.iter().copied().filter(is_first).collect();
        let (mut families, mut turn) = ([one, other], 0);
        while let Some(address) = families[turn]
            .pop_front()
            .or_else(|| families[1 - turn].pop_front())
        {
            left.push_back(address);
            turn = 1 - turn;
        }
        left.extend(ends.into_iter().filter(is_last));
        Self {
            left,
            next_at: None,
        }
    }

    /// Returns the IP address to try now, if there is one. It counts as tried.
    pub(super) fn next(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.next_at.is_some_and(|at| now < at) {
            return None;
        }
        let address = self.left.pop_front()?;
        self.next_at = Some(now + STAGGER);
        Some(address)
    }

    /// Notes that an attempt has failed, so that the next one need not wait.
    pub(super) fn failed(&mut self) {
        self.next_at = None;
    }

    /// When [`next`](Self::next) returns another one; `None` if none is left.
    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        (!self.left.is_empty()).then(|| self.next_at.unwrap_or(now))
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use super::*;

    fn address(text: &str) -> SocketAddr {
        format!("{text}:443").parse().unwrap()
    }

    fn order(mut race: Race) -> Vec<SocketAddr> {
        let now = Instant::now();
        let mut order = Vec::new();
        while race.next_at(now).is_some() {
            race.failed();
            order.extend(race.next(now));
        }
        order
    }

    #[test]
    fn the_families_take_turns() {
        let given = ["[::1]", "[::2]", "[::3]", "1.1.1.1", "2.2.2.2"].map(address);
        let [a, b, c, one, two] = given;
        let race = |first, last| Race::new(given.to_vec(), first, last);
        assert_eq!(order(race(None, None)), [a, one, b, two, c]);
        assert_eq!(order(race(Some(two), None)), [two, a, one, b, c]);
        assert_eq!(order(race(Some(two), Some(a))), [two, b, one, c, a]);
        assert_eq!(order(race(Some(a), Some(a))), [a, b, one, c, two]);
        let unknown = Some(address("9.9.9.9"));
        assert_eq!(order(race(unknown, unknown)), [a, one, b, two, c]);
        assert_eq!(order(Race::new(vec![one, two], None, None)), [one, two]);
        assert_eq!(order(Race::new(Vec::new(), None, None)), []);
    }

    #[test]
    fn the_next_follows_after_a_while_or_a_failure() {
        let start = Instant::now();
        let [one, two, three] = ["1.1.1.1", "2.2.2.2", "3.3.3.3"].map(address);
        let mut race = Race::new(vec![one, two, three], None, None);
        assert_eq!(race.next(start), Some(one));
        assert_eq!(race.next(start), None);
        assert_eq!(race.next_at(start), Some(start + STAGGER));
        assert_eq!(race.next(start + STAGGER), Some(two));

        race.failed();
        let soon = start + STAGGER + Duration::from_millis(1);
        assert_eq!(race.next_at(soon), Some(soon));
        assert_eq!(race.next(soon), Some(three));
        assert_eq!(race.next_at(soon), None);
    }
}
