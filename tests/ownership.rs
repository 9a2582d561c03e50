//! A session store that several processes share reports which process owns the sessions.

mod common;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{PATIENCE, config, counters_of, eventually, gateway, ready, status_of};
use parking_lot::Mutex;
use threadcord::error::StoreError;
use threadcord::limit::{Granter, LimitError, Ticket, Wake};
use threadcord::sim::{Action, Fault, Gateway, Observed};
use threadcord::store::{MemoryStore, OwnershipLost, Saved, SessionStore};
use threadcord::{Config, Error, ShardId, ShardManager, ShardState, StopReason};

const ONE: ShardId = ShardId::ONE;

/// What a store answers when the library asks who owns the sessions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Confirmed,
    Failed,
    Lost,
    Nothing,
}

/// A store whose answers the test sets.
#[derive(Clone)]
struct Told(Arc<Mutex<State>>);

struct State {
    answer: Answer,
    asked: u32,
    waiting: Vec<Granter>,
    saved: Saved,
}

impl Told {
    fn new(answer: Answer) -> Self {
        Self(Arc::new(Mutex::new(State {
            answer,
            asked: 0,
            waiting: Vec::new(),
            saved: Saved::default(),
        })))
    }

    fn set(&self, answer: Answer) {
        self.0.lock().answer = answer;
    }

    fn asked(&self) -> u32 {
        self.0.lock().asked
    }

    fn confirm_waiting(&self) {
        let waiting = std::mem::take(&mut self.0.lock().waiting);
        for granter in waiting {
            let _ = granter.grant();
        }
    }

    /// A configuration that resumes what was saved, as another process would.
    fn successor(&self, gateway: &Gateway) -> Config {
        let sessions = self.0.lock().saved.sessions.clone();
        config(gateway).session_store(MemoryStore::new(sessions))
    }
}

impl SessionStore for Told {
    fn load(&self) -> Result<Saved, StoreError> {
        Ok(self.0.lock().saved.clone())
    }

    fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        let mut state = self.0.lock();
        if state.answer == Answer::Lost {
            return Err(Box::new(OwnershipLost));
        }
        state.saved = saved.clone();
        Ok(())
    }

    fn confirm(&self, wake: Wake) -> Option<Ticket> {
        let (ticket, granter) = Ticket::pair(wake, |_| {});
        let answer = {
            let mut state = self.0.lock();
            state.asked += 1;
            state.answer
        };
        match answer {
            Answer::Confirmed => assert!(granter.grant()),
            Answer::Failed => granter.refuse(LimitError::failed("it is away")),
            Answer::Lost => granter.refuse(LimitError::Closed),
            Answer::Nothing => self.0.lock().waiting.push(granter),
        }
        Some(ticket)
    }
}

/// A gateway with a heartbeat interval of 200 ms.
fn lively() -> Gateway {
    let interval = Duration::from_secs(20);
    gateway()
        .guilds(1)
        .heartbeat_interval(interval)
        .start()
        .unwrap()
}

fn resumes(seen: &Observed) -> usize {
    seen.count(|action| matches!(action, Action::Resume { .. }))
}

fn heartbeats(seen: &Observed) -> usize {
    seen.count(|action| matches!(action, Action::Heartbeat(_)))
}

#[test]
fn a_session_is_resumed_once_the_store_confirms_it() {
    let gateway = lively();
    let store = Told::new(Answer::Nothing);
    let manager = ready(config(&gateway).session_store(store.clone()));
    assert_eq!(store.asked(), 0, "nothing is asked before an IDENTIFY");

    gateway.inject(ONE, Fault::Cut);
    eventually("it asks", || {
        status_of(&manager, ONE).state == ShardState::Confirming
    });
    let before = heartbeats(&gateway.observed());
    gateway.expect("it heartbeats meanwhile", PATIENCE, |seen| {
        heartbeats(seen) > before
    });
    assert_eq!(resumes(&gateway.observed()), 0);
    store.confirm_waiting();
    manager.wait_ready(PATIENCE).unwrap();

    // A store that fails is asked again.
    store.set(Answer::Failed);
    gateway.inject(ONE, Fault::Cut);
    eventually("it asks again", || store.asked() > 3);
    assert_eq!(resumes(&gateway.observed()), 1);
    store.set(Answer::Confirmed);
    gateway.expect("it resumes", PATIENCE, |seen| resumes(seen) == 2);
    manager.wait_ready(PATIENCE).unwrap();
    assert_eq!(counters_of(&manager, ONE).identifies, 1);
    gateway.assert_lawful();
}

#[test]
fn without_an_answer_a_session_is_resumed_once() {
    let gateway = lively();
    let store = Told::new(Answer::Nothing);
    let config = config(&gateway).session_store(store.clone());
    let mut timing = config.timing.clone();
    timing.confirm_timeout = Duration::from_millis(200);
    let manager = ready(config.timing(timing));

    gateway.inject(ONE, Fault::Cut);
    gateway.expect("it resumes", PATIENCE, |seen| resumes(seen) == 1);
    manager.wait_ready(PATIENCE).unwrap();
    gateway.inject(ONE, Fault::Cut);
    eventually("it asks", || store.asked() == 2);
    assert!(!gateway.wait_for(Duration::from_millis(400), |seen| resumes(seen) > 1));
    store.confirm_waiting();
    gateway.expect("it resumes", PATIENCE, |seen| resumes(seen) == 2);
    gateway.assert_lawful();
}

/// The connections end without a close frame, and another process continues the sessions.
fn is_left_alone(gateway: &Gateway, store: &Told, manager: &ShardManager) {
    let error = manager.run(2, |_, _| {}).unwrap_err();
    assert!(matches!(error, Error::OwnershipLost), "{error:?}");
    assert!(matches!(manager.check(), Err(Error::OwnershipLost)));
    let lost = ShardState::Stopped(StopReason::OwnershipLost);
    eventually("it stops", || status_of(manager, ONE).state == lost);
    assert_eq!(manager.events().count(), 0, "its new owner gets them");
    let saved = store.0.lock().saved.clone();
    manager.close();
    assert_eq!(store.0.lock().saved, saved, "nothing more is saved");

    let is_frame = |action: &Action| matches!(action, Action::Closed(Some(_)));
    assert_eq!(gateway.observed().count(is_frame), 0);
    let successor = ready(store.successor(gateway));
    assert_eq!(counters_of(&successor, ONE).identifies, 0, "it resumes");
    gateway.assert_lawful();
}

#[test]
fn a_session_that_another_process_has_is_not_resumed() {
    let gateway = lively();
    let store = Told::new(Answer::Confirmed);
    let config = config(&gateway).session_store(store.clone());
    let mut timing = config.timing.clone();
    // Nothing is saved, because a failed save would also report the takeover.
    timing.store_interval = PATIENCE;
    let manager = ready(config.timing(timing));
    eventually("it is saved", || !store.0.lock().saved.sessions.is_empty());
    store.set(Answer::Lost);
    gateway.inject(ONE, Fault::Cut);
    is_left_alone(&gateway, &store, &manager);
}

#[test]
fn a_process_whose_sessions_are_taken_over_drops_its_connections() {
    let gateway = lively();
    let store = Told::new(Answer::Confirmed);
    let config = config(&gateway).session_store(store.clone());
    let mut timing = config.timing.clone();
    timing.store_interval = Duration::from_millis(10);
    let manager = ready(config.timing(timing));
    eventually("it is saved", || !store.0.lock().saved.sessions.is_empty());
    // Another thread handles events in the meantime.
    thread::scope(|scope| {
        let running = scope.spawn(|| manager.run(1, |_, _| {}));
        store.set(Answer::Lost);
        let error = running.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::OwnershipLost), "{error:?}");
    });
    is_left_alone(&gateway, &store, &manager);
}
