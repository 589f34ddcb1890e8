//! `mef lab wan`: the emulator between two interfaces, in a thread of real-time
//! priority that sleeps until the next frame is due.
//!
//! Arrivals need not wake it while frames are in flight: the kernel stamps
//! them, and the virtual time of the line starts from the stamp.

use std::io::{BufRead, Write};
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::time::Duration;

use mef_io::os::{
    monotonic_now, poll_fds, process_cpu_time, set_realtime_priority, set_timer_slack_ns,
};
use mef_io::{AfPacket, Port, PortError};
use mef_packet::Instant;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::emulator::Emulator;
use super::stats::{Command, Snapshot};
use super::WanConfig;

/// Above the routers', whose packets it times.
const PRIORITY: u8 = 60;
/// Longest sleep without looking at the interfaces while frames come in.
const TICK: Duration = Duration::from_micros(500);
/// Longest sleep at all: commands wait no longer.
const IDLE: Duration = Duration::from_millis(20);
/// Frames taken from a port at a time.
const RECEIVE_BATCH: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum WanError {
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("signal handlers: {0}")]
    Signal(std::io::Error),
}

/// Emulates until told to end; prints snapshots as JSON lines on standard output.
///
/// `controlled`: commands come on standard input, whose end is the end. Else
/// SIGUSR1 asks for a snapshot, and the last one is printed at the end.
pub fn run(
    a: &str,
    b: &str,
    config: &WanConfig,
    seed: u64,
    controlled: bool,
) -> Result<ExitCode, WanError> {
    let quit = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&quit)).map_err(WanError::Signal)?;
    }
    signal_hook::flag::register(SIGUSR1, Arc::clone(&asked)).map_err(WanError::Signal)?;

    let ports = (AfPacket::open(a)?, AfPacket::open(b)?);
    let mut emulator = Emulator::new(ports.0, ports.1, config, monotonic_now(), seed);
    let (orders, from_control) = mpsc::channel::<(Instant, Command)>();
    let (answers, to_print) = mpsc::channel::<Snapshot>();
    // Started before this thread becomes real-time, which new threads would inherit.
    let printer = std::thread::spawn(move || print_all(&to_print));
    if controlled {
        std::thread::spawn(move || read_commands(&orders));
    } else {
        // Keeps the channel open without anybody sending.
        std::mem::forget(orders);
    }
    let realtime = set_realtime_priority(PRIORITY).is_ok();
    let _ = set_timer_slack_ns(1);
    say("ready");

    let fds: Vec<RawFd> = emulator.ports().iter().filter_map(Port::poll_fd).collect();
    let shortest = config.a_to_b.delay.min(config.b_to_a.delay);
    let may_sleep_blind = shortest >= 2 * TICK;
    let complete = |mut s: Snapshot| {
        s.realtime = realtime;
        s.cpu_s = process_cpu_time().as_secs_f64();
        s
    };
    while !quit.load(Ordering::Relaxed) {
        loop {
            match from_control.try_recv() {
                Ok((at, Command::Origin)) => emulator.set_origin(at),
                Ok((at, Command::Window)) => emulator.start_window(at),
                Ok((_, Command::Snapshot)) => {
                    let _ = answers.send(complete(emulator.snapshot(monotonic_now())));
                }
                Ok((_, Command::Quit)) | Err(mpsc::TryRecvError::Disconnected) => {
                    quit.store(true, Ordering::Relaxed);
                    break;
                }
                Err(mpsc::TryRecvError::Empty) => break,
            }
        }
        if asked.swap(false, Ordering::Relaxed) {
            let _ = answers.send(complete(emulator.snapshot(monotonic_now())));
        }
        let received = emulator.receive(RECEIVE_BATCH);
        emulator.release(monotonic_now);
        if received >= RECEIVE_BATCH {
            continue;
        }
        let until = emulator
            .next_due()
            .map_or(IDLE, |at| at.since(monotonic_now()).min(IDLE));
        if until.is_zero() {
            continue;
        }
        let slept = if received > 0 && may_sleep_blind {
            poll_fds(&[], until.min(TICK))
        } else {
            poll_fds(&fds, until)
        };
        if slept.is_err() && !quit.load(Ordering::Relaxed) {
            // Interrupted: the loop looks at the flags.
            continue;
        }
    }
    if !controlled {
        let _ = answers.send(complete(emulator.snapshot(monotonic_now())));
    }
    drop(answers);
    let _ = printer.join();
    Ok(ExitCode::SUCCESS)
}

fn say(event: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{{\"event\":\"{event}\"}}");
    let _ = out.flush();
}

fn print_all(snapshots: &mpsc::Receiver<Snapshot>) {
    for snapshot in snapshots {
        let Ok(mut line) = serde_json::to_vec(&snapshot) else {
            continue;
        };
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        if out.write_all(&line).and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

/// One JSON string a line: `"origin"`, `"window"`, `"snapshot"`, `"quit"`.
fn read_commands(orders: &mpsc::Sender<(Instant, Command)>) {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        match serde_json::from_str::<Command>(&line) {
            Ok(command) => {
                if orders.send((monotonic_now(), command)).is_err() {
                    return;
                }
            }
            Err(e) => eprintln!("mef lab wan: {line:?} is no command: {e}"),
        }
    }
}
