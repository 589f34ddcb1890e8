//! Which losses a host is kept from slowing down for: what the echoed time-stamp
//! of an acknowledgement says of the segment that filled a hole.

use super::super::wire::{parse_tcp, ACK};
use super::super::HostTcp;
use super::played::*;
use super::*;

/// What the router echoes after the `lost`-th of `n` segments, one a millisecond, came again
/// `after` the last; offsets are from `at`.
fn echo(p: &mut Played, at: u32, n: u32, lost: u32, after: Duration) -> Echo {
    let mut stamps = Vec::new();
    for i in 0..n {
        p.now += MS;
        let packet = p.data(at + i * SEG, ACK, &[1; SEG as usize]);
        stamps.push(stamp(&packet));
        if i != lost {
            p.give(&packet);
            while p.tcp.read(|b| b.len()) > 0 {}
            p.take();
        }
    }
    p.now += after;
    let again = p.data(at + lost * SEG, ACK, &[1; SEG as usize]);
    let second = stamp(&again);
    p.give(&again);
    while p.tcp.read(|b| b.len()) > 0 {}
    let told = p.take();
    let s = parse_tcp(told.last().unwrap()).unwrap();
    assert_eq!(
        s.ack,
        IRS.wrapping_add(1 + at + n * SEG),
        "everything is there"
    );
    let (_, value) = s.data_options().timestamps.unwrap();
    match value {
        v if v == second => Echo::Again,
        v if lost > 0 && v == stamps[lost as usize - 1] => Echo::Before,
        v => panic!("echoed {v}, neither of {stamps:?} nor {second}"),
    }
}

/// Whose time-stamp was echoed: the repetition's, or that of the segment before the hole.
#[derive(Debug, PartialEq, Eq)]
enum Echo {
    Again,
    Before,
}

fn stamp(packet: &[u8]) -> u32 {
    let s = parse_tcp(packet).unwrap();
    s.data_options().timestamps.unwrap().0
}

#[test]
fn rfc4015_a_loss_without_congestion_looks_like_reordering() {
    let mut p = Played::new(true);
    assert_eq!(echo(&mut p, 0, 20, 7, 15 * MS), Echo::Before);
    assert_eq!(p.tcp.losses_pardoned(), 1);
    // What follows counts as ever (RFC 7323 section 4.3).
    p.now += MS;
    let next = p.data(20 * SEG, ACK, &[1; 100]);
    p.give(&next);
    let told = p.take();
    let s = parse_tcp(told.last().unwrap()).unwrap();
    assert_eq!(s.data_options().timestamps.unwrap().1, stamp(&next));
}

#[test]
fn rfc3522_what_came_after_a_time_out_is_told() {
    let mut p = Played::new(true);
    assert_eq!(echo(&mut p, 0, 20, 7, 180 * MS), Echo::Again);
    assert_eq!(p.tcp.losses_pardoned(), 0);
}

#[test]
fn many_losses_are_told() {
    let mut p = Played::new(true);
    let mut told = 0;
    // One in thirty: more than one in fifty.
    for round in 0..100 {
        told += u32::from(echo(&mut p, round * 30 * SEG, 30, 7, 15 * MS) == Echo::Again);
    }
    assert!(told > 70, "{told} of 100");
    // One in a hundred: none is.
    let mut p = Played::new(true);
    for round in 0..60 {
        let echoed = echo(&mut p, round * 100 * SEG, 100, 90, 15 * MS);
        assert_eq!(echoed, Echo::Before, "{round}");
    }
}

#[test]
fn losses_behind_a_queue_are_told() {
    // The segments behind the hole are 8 ms later than those before it.
    let mut p = Played::new(true);
    for i in 0..10 {
        p.now += MS;
        let packet = p.data(i * SEG, ACK, &[1; SEG as usize]);
        p.give(&packet);
    }
    while p.tcp.read(|b| b.len()) > 0 {}
    p.take();
    let late = |p: &Played, i: u32| p.data(i * SEG, ACK, &[1; SEG as usize]);
    let behind: Vec<_> = (11..20).map(|i| late(&p, i)).collect();
    p.now += 8 * MS;
    for packet in &behind {
        p.give(packet);
    }
    p.take();
    p.now += 20 * MS;
    let again = late(&p, 10);
    p.give(&again);
    while p.tcp.read(|b| b.len()) > 0 {}
    let told = p.take();
    let s = parse_tcp(told.last().unwrap()).unwrap();
    assert_eq!(s.data_options().timestamps.unwrap().1, stamp(&again));
    assert_eq!(p.tcp.losses_pardoned(), 0);
}

#[test]
fn an_operator_may_have_every_loss_told() {
    let mut p = Played::with(
        true,
        HostTcpConfig {
            pardon: false,
            ..config(7)
        },
        20 * MS,
    );
    assert_eq!(echo(&mut p, 0, 20, 7, 15 * MS), Echo::Again);
    // Near hosts recover by themselves.
    let mut p = Played::with(true, config(7), MS);
    assert_eq!(echo(&mut p, 0, 20, 7, 15 * MS), Echo::Again);
}
