//! Connections of every kind end through the routers as they do without them.
//!
//! One seeded plan of 200 connections is played twice: over a clean path with
//! Linux routers, and through MEF over a lossy one. What TCP promises has to be
//! the same: who got which bytes, and how each end learned of the end. Of bytes
//! sent before a reset TCP promises only that a beginning of them arrives.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Mutex, OnceLock};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use socket2::{Domain, SockRef, Socket, Type};

use crate::lab::{need, wait_for, Lab, Routers, A1, B1};

const CONNECTIONS: usize = 200;
/// Connections at a time.
const AT_A_TIME: usize = 24;
/// Anything that takes longer has hung.
const HUNG: Duration = Duration::from_secs(20);
/// More than is under way at any moment: who sends so much is still at it when it is reset.
const ENDLESS: usize = 40_000_000;

/// How one end of a connection leaves it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leave {
    /// Sends everything, closes its half, reads to the end.
    AfterSending,
    /// Reads to the end, then sends, then closes its half.
    AfterTheOther,
    /// SO_LINGER 0 and close, once so much was read.
    Reset { read: usize },
    /// The same behind a closed half.
    HalfClosedThenReset { read: usize },
    /// A close with bytes left unread, which resets as well (RFC 1122, 4.2.2.13).
    CloseUnread { read: usize },
    /// Resets when the other end has confirmed that it has everything.
    ResetWhenConfirmed,
    /// The other end of that: confirms with one byte, then reads on.
    Confirm,
}

#[derive(Clone, Copy, Debug)]
enum Reading {
    Fast,
    /// Small reads with pauses.
    Slow,
    /// Nothing for this long: the window closes.
    Late(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Side {
    bytes: usize,
    leave: Leave,
    reading: Reading,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Answers {
        client: Side,
        server: Side,
    },
    /// Nobody listens.
    Refused,
    /// The address belongs to nobody.
    NoHost,
    /// No router knows a way.
    NoRoute,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    number: usize,
    /// The client is in site a.
    from_a: bool,
    target: Target,
}

/// How an end saw the connection end.
#[derive(Clone, Debug, PartialEq)]
enum End {
    /// Everything was sent, the other half ended in order.
    Clean,
    /// ECONNRESET or EPIPE, from whichever call met it first.
    Reset,
    /// It was this end that reset.
    Left,
    Refused,
    Unreachable(ErrorKind),
    Hung,
    Other(ErrorKind),
}

#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    end: End,
    /// Bytes received, where TCP promises how many.
    received: Option<usize>,
    /// What was received is a beginning of what was sent.
    is_prefix: bool,
}

fn size(random: &mut SmallRng) -> usize {
    match random.random_range(0..4) {
        0 => random.random_range(0..3),
        1 => random.random_range(1..2_000),
        2 => random.random_range(1_000..100_000),
        _ => random.random_range(100_000..1_000_000),
    }
}

fn side(random: &mut SmallRng, leave: Leave) -> Side {
    let bytes = size(random);
    let (reading, bytes) = match random.random_range(0..5) {
        0 => (Reading::Slow, bytes),
        1 => (
            Reading::Late(Duration::from_millis(random.random_range(100..1500))),
            bytes,
        ),
        _ => (Reading::Fast, bytes),
    };
    Side {
        bytes,
        leave,
        reading,
    }
}

fn plan(random: &mut SmallRng, number: usize) -> Plan {
    let read = size(random).min(200_000);
    let (one, other) = match random.random_range(0..20) {
        0..=3 => (Leave::AfterSending, Leave::AfterSending),
        4..=7 => (Leave::AfterSending, Leave::AfterTheOther),
        8..=10 => (Leave::Reset { read }, Leave::AfterSending),
        11..=12 => (Leave::HalfClosedThenReset { read }, Leave::AfterSending),
        13..=14 => (Leave::CloseUnread { read }, Leave::AfterSending),
        15..=17 => (Leave::ResetWhenConfirmed, Leave::Confirm),
        n => {
            let target = match (n, number % 3) {
                (18, _) => Target::Refused,
                (_, 0) => Target::NoRoute,
                _ => Target::NoHost,
            };
            return Plan {
                number,
                from_a: random.random(),
                target,
            };
        }
    };
    let mut one = side(random, one);
    let mut other = side(random, other);
    if matches!(
        one.leave,
        Leave::Reset { .. } | Leave::HalfClosedThenReset { .. } | Leave::CloseUnread { .. }
    ) {
        one.reading = Reading::Fast;
        other.bytes = ENDLESS;
    }
    // Nobody waits for a slow reader of much, unless it is reset.
    let slow = |s: Side| matches!(s.reading, Reading::Slow);
    if slow(one) && other.bytes != ENDLESS {
        other.bytes %= 100_000;
    }
    if slow(other) {
        one.bytes %= 100_000;
    }
    let (client, server) = if random.random() {
        (one, other)
    } else {
        (other, one)
    };
    Plan {
        number,
        from_a: random.random(),
        target: Target::Answers { client, server },
    }
}

/// What a sender sends: its own place in a table of random bytes, again and again.
fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut bytes = vec![0; 1_000_003];
        SmallRng::seed_from_u64(1).fill_bytes(&mut bytes);
        bytes
    })
}

/// The bytes of sender `who` from offset `at` on, as many as lie in one piece.
fn payload(who: usize, at: usize) -> &'static [u8] {
    let table = table();
    &table[(who * 7919 + at) % table.len()..]
}

fn end_of(e: &std::io::Error) -> End {
    match e.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Reset,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Hung,
        ErrorKind::ConnectionRefused => End::Refused,
        kind @ (ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {
            End::Unreachable(kind)
        }
        kind => End::Other(kind),
    }
}

/// Sends `bytes` as sender `who`.
fn send(mut stream: &TcpStream, who: usize, bytes: usize) -> Result<(), End> {
    let mut at = 0;
    while at < bytes {
        let piece = payload(who, at);
        let piece = &piece[..piece.len().min(bytes - at).min(100_000)];
        at += stream.write(piece).map_err(|e| end_of(&e))?;
    }
    Ok(())
}

struct Reader {
    who: usize,
    received: usize,
    is_prefix: bool,
}

impl Reader {
    /// Reads until the end of the other half or, if less, until there are `most` bytes.
    fn read(&mut self, mut stream: &TcpStream, how: Reading, most: usize) -> Result<(), End> {
        if let Reading::Late(time) = how {
            std::thread::sleep(time);
        }
        let mut chunk = vec![0; 64 << 10];
        while self.received < most {
            let mut room = chunk.len().min(most - self.received);
            if matches!(how, Reading::Slow) {
                room = room.min(4_000);
                std::thread::sleep(Duration::from_millis(10));
            }
            let n = stream.read(&mut chunk[..room]).map_err(|e| end_of(&e))?;
            if n == 0 {
                return Ok(());
            }
            let mut got = &chunk[..n];
            while !got.is_empty() {
                let expected = payload(self.who, self.received);
                let n = got.len().min(expected.len());
                self.is_prefix &= got[..n] == expected[..n];
                self.received += n;
                got = &got[n..];
            }
        }
        Ok(())
    }
}

/// Plays one end of a connection.
fn play(stream: TcpStream, me: Side, my_number: usize, other: Side, its_number: usize) -> Outcome {
    let _ = stream.set_read_timeout(Some(HUNG));
    let _ = stream.set_write_timeout(Some(HUNG));
    let mut reader = Reader {
        who: its_number,
        received: 0,
        is_prefix: true,
    };
    let s = &stream;
    let close_half = || s.shutdown(Shutdown::Write).map_err(|e| end_of(&e));
    let linger = || {
        let _ = SockRef::from(s).set_linger(Some(Duration::ZERO));
    };
    let done = match me.leave {
        Leave::AfterSending => std::thread::scope(|scope| {
            let sent = scope.spawn(|| send(s, my_number, me.bytes).and_then(|()| close_half()));
            let read = reader.read(s, me.reading, usize::MAX);
            let sent = sent.join().unwrap();
            // One of the two calls is told of a reset, the other sees what follows from it.
            match (read, sent) {
                (Err(End::Reset), _) | (_, Err(End::Reset)) => Err(End::Reset),
                (read, sent) => read.and(sent),
            }
        }),
        Leave::AfterTheOther => reader
            .read(s, me.reading, usize::MAX)
            .and_then(|()| send(s, my_number, me.bytes))
            .and_then(|()| close_half()),
        Leave::Reset { read }
        | Leave::HalfClosedThenReset { read }
        | Leave::CloseUnread { read } => std::thread::scope(|scope| {
            let sent = scope.spawn(|| send(s, my_number, me.bytes));
            let read = reader.read(s, Reading::Fast, read);
            sent.join().unwrap().and(read)?;
            match me.leave {
                Leave::CloseUnread { .. } => {}
                Leave::HalfClosedThenReset { .. } => {
                    close_half()?;
                    std::thread::sleep(Duration::from_millis(me.bytes as u64 % 200));
                    linger();
                }
                _ => linger(),
            }
            Err(End::Left)
        }),
        Leave::ResetWhenConfirmed => send(s, my_number, me.bytes)
            .and_then(|()| reader.read(s, Reading::Fast, 1))
            .and_then(|()| {
                linger();
                Err(End::Left)
            }),
        Leave::Confirm => reader
            .read(s, me.reading, other.bytes)
            .and_then(|()| send(s, my_number, 1))
            .and_then(|()| reader.read(s, Reading::Fast, usize::MAX)),
    };
    let promised = matches!(
        other.leave,
        Leave::AfterSending | Leave::AfterTheOther | Leave::ResetWhenConfirmed | Leave::Confirm
    );
    Outcome {
        end: done.err().unwrap_or(End::Clean),
        received: promised.then_some(reader.received),
        is_prefix: reader.is_prefix,
    }
}

fn socket(side: Side) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if !matches!(side.reading, Reading::Fast) {
        socket.set_recv_buffer_size(8 << 10).unwrap();
    }
    socket
}

/// Plays one connection; the outcomes of client and server.
fn connection(lab: &Lab, plan: Plan) -> (Outcome, Option<Outcome>) {
    let (from, to, address) = if plan.from_a {
        ("a1", "b1", B1)
    } else {
        ("b1", "a1", A1)
    };
    let port = 10_000 + plan.number as u16;
    let (ids, target) = ((2 * plan.number, 2 * plan.number + 1), plan.target);
    let (destination, sides) = match target {
        Target::Answers { client, server } => (address, Some((client, server))),
        Target::Refused => (address, None),
        Target::NoHost => {
            let [a, b, c, _] = address.octets();
            (Ipv4Addr::new(a, b, c, 77), None)
        }
        Target::NoRoute => (Ipv4Addr::new(10, 99, 0, 1), None),
    };
    let destination = SocketAddr::from((destination, port));
    let Some((client, server)) = sides else {
        let failed = lab.thread(from, move || {
            TcpStream::connect_timeout(&destination, HUNG)
                .map_or_else(|e| end_of(&e), |_| End::Clean)
        });
        let end = failed.join().unwrap();
        let outcome = Outcome {
            end,
            received: None,
            is_prefix: true,
        };
        return (outcome, None);
    };
    let (ready, listening) = mpsc::channel();
    let server_thread = lab.thread(to, move || {
        let listener = socket(server);
        listener.set_reuse_address(true).unwrap();
        listener.bind(&destination.into()).unwrap();
        listener.listen(1).unwrap();
        listener.set_read_timeout(Some(HUNG)).unwrap();
        ready.send(()).unwrap();
        match listener.accept() {
            Ok((stream, _)) => play(stream.into(), server, ids.1, client, ids.0),
            Err(e) => Outcome {
                end: end_of(&e),
                received: None,
                is_prefix: true,
            },
        }
    });
    listening.recv().unwrap();
    let client_thread = lab.thread(from, move || {
        let s = socket(client);
        match s.connect_timeout(&destination.into(), HUNG) {
            Ok(()) => play(s.into(), client, ids.0, server, ids.1),
            Err(e) => Outcome {
                end: end_of(&e),
                received: None,
                is_prefix: true,
            },
        }
    });
    let of_client = client_thread.join().unwrap();
    (of_client, Some(server_thread.join().unwrap()))
}

fn outcomes(lab: &Lab, plans: &[Plan]) -> Vec<(Outcome, Option<Outcome>)> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(vec![None; plans.len()]);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(plan) = plans.get(i) else { return };
                let outcome = connection(lab, *plan);
                all.lock().unwrap()[i] = Some(outcome);
            });
        }
    });
    let all = all.into_inner().unwrap();
    all.into_iter().map(Option::unwrap).collect()
}

#[test]
fn connections_of_every_kind_end_as_on_a_direct_path() {
    need!();
    let seed = std::env::var("MEF_SEED").map_or(1, |s| s.parse().unwrap());
    let mut random = SmallRng::seed_from_u64(seed);
    let plans: Vec<Plan> = (0..CONNECTIONS).map(|n| plan(&mut random, n)).collect();
    let path = "rate='200Mbit/s'\nrtt='20ms'\nqueue='200ms'";
    let direct = outcomes(&Lab::up(Routers::Direct, path), &plans);
    let lossy = format!("{path}\nloss=0.01");
    let lab = Lab::up(Routers::Mef, &lossy);
    let through = outcomes(&lab, &plans);
    let mut different = Vec::new();
    for ((plan, direct), through) in plans.iter().zip(&direct).zip(&through) {
        let all = [&direct.0, &through.0].into_iter().chain(&direct.1);
        let whole = all.chain(&through.1).all(|o| o.is_prefix);
        if direct != through || !whole {
            different.push(format!(
                "{plan:?}\n  direct  {direct:?}\n  through {through:?}"
            ));
        }
    }
    assert!(
        different.is_empty(),
        "seed {seed}: {} of {CONNECTIONS} differ\n{}",
        different.len(),
        different.join("\n")
    );
    // Every kind of end was met.
    let met = |end: &End| direct.iter().filter(|o| o.0.end == *end).count();
    for end in [End::Clean, End::Reset, End::Left, End::Refused] {
        assert!(met(&end) > 4, "{end:?}: {}", met(&end));
    }
    assert_eq!(met(&End::Hung), 0);
    // Nothing of them stays in the routers.
    for side in ['a', 'b'] {
        wait_for("all flows gone", Duration::from_secs(10), || {
            let flows = lab.status(side).links[0].flows;
            (flows == 0)
                .then_some(())
                .ok_or(format!("{side}: {flows} are left"))
        });
    }
}
