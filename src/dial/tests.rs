use std::net::{Shutdown, TcpListener};
use std::thread;
use std::time::Duration;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn dead() -> SocketAddr {
    listener().1
}

fn deadline() -> Instant {
    clock::now() + PATIENCE
}

#[test]
fn addresses_that_refuse_give_way_and_the_last_error_is_told() {
    let dialer = Dialer::default();
    let (_listener, alive) = listener();
    let addresses = vec![dead(), dead(), alive];
    let (stream, address) = dialer.connect("host", 1, addresses, deadline()).unwrap();
    assert_eq!((stream.peer_addr().unwrap(), address), (alive, alive));

    let failed = dialer.connect("host", 1, vec![dead(), dead()], deadline());
    let Err(DialError::Io(error)) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

/// Simulates an IP address that does not answer: Linux drops connection attempts to a listener
/// whose queue is full.
#[cfg(all(target_os = "linux", feature = "sim"))]
#[test]
fn an_address_that_says_nothing_has_a_head_start_and_is_not_first_the_next_time() {
    use socket2::{Domain, Socket, Type};

    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    silent.bind(&any.into()).unwrap();
    silent.listen(0).unwrap();
    let dead = silent.local_addr().unwrap().as_socket().unwrap();
    let connect = |timeout| BlockingStream::connect_timeout(&dead, timeout);
    let _in_queue = connect(PATIENCE).unwrap();
    assert!(connect(Duration::from_millis(100)).is_err(), "it is full");

    let dialer = Dialer::default();
    let (_listener, alive) = listener();
    let start = clock::now();
    let addresses = vec![dead, alive];
    let connected = dialer.connect("host", 1, addresses.clone(), deadline());
    let (_, address) = connected.unwrap();
    assert_eq!(address, alive);
    println!("{:?} with a dead first address", start.elapsed());

    // The second one is tried once the first one has had its time, and not before.
    let poll = Poll::new().unwrap();
    let tried = |dialer: &Dialer, after| {
        let mut dial = dialer.dial("host", 1, addresses.clone(), deadline());
        for at in [start, start + after] {
            let _ = dial.poll(poll.registry(), Token(0), at);
        }
        dial.running
            .iter()
            .map(|(_, address)| *address)
            .collect::<Vec<_>>()
    };
    let millis = Duration::from_millis;
    assert_eq!(tried(&dialer, millis(249)), [dead]);
    assert_eq!(tried(&dialer, millis(250)), [dead, alive]);
    dialer.remember("host", 1, alive, true);
    assert!(!tried(&dialer, millis(0)).contains(&dead));
    dialer.remember("host", 1, dead, false);
    assert!(!tried(&dialer, millis(0)).contains(&dead));

    let failed = dialer.connect("other", 1, vec![dead], clock::now());
    let Err(DialError::Io(error)) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

/// Starts a proxy that answers the first request with `answer`, and then closes if `closes`.
fn proxy(answer: &'static [u8], closes: bool) -> (Dialer, Vec<SocketAddr>) {
    let (listener, address) = listener();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request);
        stream.write_all(answer).unwrap();
        if closes {
            let _ = stream.shutdown(Shutdown::Both);
        }
        thread::park();
    });
    let proxy = Proxy::parse(&format!("http://{address}")).unwrap();
    (Dialer::new(Some(proxy)), vec![address])
}

#[test]
fn a_proxy_that_opens_no_connection_is_named() {
    let failure = |answer, closes, patience| {
        let (dialer, addresses) = proxy(answer, closes);
        assert_eq!(dialer.route("x", 1).1, addresses[0].port());
        let deadline = clock::now() + patience;
        match dialer.connect("x", 1, addresses.clone(), deadline) {
            Err(DialError::Proxy(error)) => {
                assert_eq!(error.proxy, addresses[0].to_string());
                assert_eq!(error.target, "x:1");
                let outcome = dialer.outcomes.lock()["x:1"];
                assert!(outcome.address == addresses[0] && !outcome.has_worked);
                error.failure
            }
            other => panic!("{other:?}"),
        }
    };
    let refused = failure(b"HTTP/1.1 403 Forbidden\r\n\r\n", false, PATIENCE);
    assert!(matches!(refused, ProxyFailure::Refused(403)));
    let closed = failure(b"HTTP/1.1 200 O", true, PATIENCE);
    assert!(matches!(closed, ProxyFailure::Closed));
    let garbage = failure(b"220 mail.example ESMTP\r\n", false, PATIENCE);
    assert!(matches!(garbage, ProxyFailure::Malformed));
    let silent = failure(b"", false, Duration::from_millis(200));
    assert!(matches!(silent, ProxyFailure::TimedOut));

    let dead = dead();
    let proxy = Proxy::parse(&format!("http://{dead}")).unwrap();
    let dialer = Dialer::new(Some(proxy));
    let unreachable = dialer.connect("x", 1, vec![dead], deadline());
    let Err(DialError::Proxy(error)) = unreachable else {
        panic!("{unreachable:?}")
    };
    assert!(matches!(error.failure, ProxyFailure::Unreachable(_)));

    let (dialer, addresses) = self::proxy(b"HTTP/1.1 200 OK\r\n\r\n", false);
    dialer.connect("x", 1, addresses, deadline()).unwrap();
}
