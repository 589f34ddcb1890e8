//! What one application writes, the other reads: over a path that loses, delays,
//! reorders and duplicates, both ways at once.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use crate::lab::{need, Lab, Routers, B1};

const STALL: Duration = Duration::from_secs(30);

/// Sends `bytes` random bytes and takes what comes until the end; both hashes, and the number received.
pub fn exchange(stream: TcpStream, seed: u64, bytes: u64) -> (Vec<u8>, Vec<u8>, u64) {
    stream.set_read_timeout(Some(STALL)).unwrap();
    stream.set_write_timeout(Some(STALL)).unwrap();
    let mut out = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 64 << 10];
        let mut left = bytes;
        while left > 0 {
            let n = left.min(chunk.len() as u64) as usize;
            random.fill_bytes(&mut chunk[..n]);
            hash.update(&chunk[..n]);
            out.write_all(&chunk[..n]).expect("sending");
            left -= n as u64;
        }
        out.shutdown(Shutdown::Write).unwrap();
        hash.finalize().to_vec()
    });
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 64 << 10];
    let mut received = 0;
    let mut stream = stream;
    loop {
        let n = stream.read(&mut chunk).expect("receiving");
        if n == 0 {
            break;
        }
        hash.update(&chunk[..n]);
        received += n as u64;
    }
    (sender.join().unwrap(), hash.finalize().to_vec(), received)
}

/// Sends random bytes from a1 to b1 and back at the same time; both have to arrive as they were.
pub fn both_ways(lab: &Lab, bytes: u64) {
    let address = SocketAddr::from((B1, 7000));
    let (ready, listening) = std::sync::mpsc::channel();
    let server = lab.thread("b1", move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        exchange(listener.accept().unwrap().0, 2, bytes)
    });
    listening.recv().unwrap();
    let client = lab.thread("a1", move || {
        exchange(TcpStream::connect(address).unwrap(), 1, bytes)
    });
    let (sent_a, got_a, number_a) = client.join().unwrap();
    let (sent_b, got_b, number_b) = server.join().unwrap();
    assert_eq!((number_a, number_b), (bytes, bytes));
    assert!(sent_a == got_b, "a to b: other bytes than were sent");
    assert!(sent_b == got_a, "b to a: other bytes than were sent");
}

#[test]
fn random_data_both_ways_survives_loss_reordering_and_duplication() {
    need!();
    let bytes = match std::env::var_os("MEF_LONG") {
        Some(_) => 1_000_000_000,
        None => 100_000_000,
    };
    let lab = Lab::up(
        Routers::Mef,
        "rate='200Mbit/s'\nrtt='40ms'\nqueue='1BDP'\nloss=0.05\njitter='10ms'\nreorder=true\nduplicate=0.01",
    );
    both_ways(&lab, bytes);
    for side in ['a', 'b'] {
        let status = lab.status(side);
        let replayed = status.drops.get("open.crypto.replayed").copied();
        assert!(replayed.unwrap_or(0) > 0, "{side}: no duplicate was met");
    }
}
