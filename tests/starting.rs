//! Starts that do not block, and starts before the network is up.

mod common;

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use common::{PATIENCE, config, eventually, gateway};
use threadcord::error::ErrorKind;
use threadcord::{Config, Error, Intents, Plan, ShardManager, Starting, Token};

/// A port of this machine on which no program listens.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn unreachable(port: u16) -> Config {
    let token = Token::new("MTAw.bbb.ccc").unwrap();
    Config::new(token, Intents::empty()).rest_url(format!("http://127.0.0.1:{port}/api"))
}

/// Polls, as a loop that draws frames would, until there is a result.
fn poll(starting: &mut Starting) -> Result<ShardManager, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(started) = starting.poll() {
            return started;
        }
        assert!(Instant::now() < deadline, "it starts in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_start_in_the_background_gives_the_manager_once() {
    let gateway = gateway().start().unwrap();
    let mut starting = ShardManager::start_in_background(config(&gateway)).unwrap();
    let manager = poll(&mut starting).unwrap();
    assert!(starting.poll().is_none());
    assert!(matches!(starting.wait(), Err(Error::Closed)));
    manager.wait_ready(PATIENCE).unwrap();
    let waited = ShardManager::start_in_background(config(&gateway).plan(Plan::Total(3))).unwrap();
    let status = waited.wait().unwrap().handle().status();
    assert_eq!(status.shards.len() + status.unopened.len(), 3);
    gateway.assert_lawful();
}

#[test]
fn what_can_be_checked_is_refused_at_once() {
    let refused = ShardManager::start_in_background(unreachable(1).plan(Plan::Total(0)));
    assert!(matches!(refused, Err(Error::Setting { .. })), "{refused:?}");
    let forever = unreachable(1).retry_start_for(Duration::MAX);
    let error = ShardManager::start(forever).unwrap_err().to_string();
    assert!(error.starts_with("`retry_start_for` is"), "{error}");
}

/// Forwards everything that arrives at a port.
fn forward(port: u16, to: SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let pipes = [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ];
            for (mut from, mut to) in pipes {
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        }
    });
}

#[test]
fn it_starts_once_discord_can_be_reached() {
    let gateway = gateway().start().unwrap();
    let port = free_port();
    let rest_url = gateway.rest_url();
    let address = rest_url.split('/').nth(2).unwrap();
    let to = address.to_socket_addrs().unwrap().next().unwrap();
    let elsewhere = rest_url.replace(&format!(":{}/", to.port()), &format!(":{port}/"));
    assert_ne!(elsewhere, rest_url);
    let settings = config(&gateway).rest_url(elsewhere);
    let mut starting =
        ShardManager::start_in_background(settings.retry_start_for(PATIENCE)).unwrap();

    // By then it has been refused, with luck: if not, this shows less, but is no less true.
    std::thread::sleep(Duration::from_millis(200));
    assert!(starting.poll().is_none());
    forward(port, to);
    let manager = starting.wait().unwrap();
    manager.wait_ready(PATIENCE).unwrap();
    gateway.assert_lawful();
}

#[test]
fn without_retries_the_first_failure_is_final() {
    let error = ShardManager::start(unreachable(free_port())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{}", error.report());
}

#[test]
fn dropping_the_handle_cancels_the_start() {
    let (port, hour) = (free_port(), Duration::from_secs(3600));
    let starting = ShardManager::start_in_background(unreachable(port).retry_start_for(hour));
    let is_starting = || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let names =
            threads.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "shard-start").count()
    };
    eventually("it starts", || is_starting() > 0);
    drop(starting);
    // Those of the other tests end, too.
    eventually("its thread ends", || is_starting() == 0);
}
