//! What a viewer would have seen of a stream: from the bytes that came per step of time, a
//! player that starts when it has some seconds, stops when it has none, and goes on when it
//! has as many again.
//!
//! ```text
//!            BUFFER seconds here            nothing left
//!  FILLING ───────────────────────▶ PLAYING ─────────────▶ FILLING (a stall)
//! ```

use serde::{Deserialize, Serialize};

use crate::load::BUCKET_NS;

/// Media that a player wants before it plays, seconds.
const BUFFER: f64 = 2.0;

/// How a stream was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Playback {
    /// connect() to the first picture, seconds; 0 if there was none.
    pub startup_s: f64,
    /// Times that it stopped for want of data, and for how long in all.
    pub stalls: u64,
    pub stalled_s: f64,
    /// Media seen, seconds.
    pub played_s: f64,
}

/// Plays a stream of `rate` bit/s whose bytes came in `buckets`, the first of which begins
/// `begin` seconds after connect(), until `end`.
pub(super) fn playback(buckets: &[u64], begin: f64, rate: f64, end: f64) -> Playback {
    let step = BUCKET_NS as f64 / 1e9;
    let mut seen = Playback::default();
    let (mut buffered, mut playing) = (0.0, false);
    let mut at = begin;
    let mut bytes = buckets.iter();
    while at < end {
        buffered += bytes.next().map_or(0.0, |b| *b as f64 * 8.0 / rate);
        at += step;
        if !playing && buffered >= BUFFER {
            playing = true;
            if seen.startup_s == 0.0 {
                seen.startup_s = at;
            }
        }
        if playing {
            let played = step.min(buffered);
            seen.played_s += played;
            buffered -= played;
            if played < step {
                playing = false;
                seen.stalls += 1;
                seen.stalled_s += step - played;
            }
        } else if seen.stalls > 0 {
            seen.stalled_s += step;
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 Mbit/s are 100 kB in a tenth of a second.
    const RATE: f64 = 8e6;

    #[test]
    fn a_stream_that_comes_as_it_is_made_never_stalls() {
        let seen = playback(&[100_000; 100], 0.1, RATE, 10.0);
        assert_eq!((seen.stalls, seen.stalled_s), (0, 0.0));
        assert!((seen.startup_s - 2.1).abs() < 0.01, "{seen:?}");
        assert!((seen.played_s - 8.0).abs() < 0.2, "{seen:?}");
    }

    #[test]
    fn a_gap_longer_than_the_buffer_is_one_stall_until_it_is_full_again() {
        let mut buckets = vec![100_000; 50];
        buckets.extend([0; 30]);
        buckets.extend([100_000; 100]);
        // Two seconds were buffered: the picture stands 1 s for the gap and 2 s to fill.
        let seen = playback(&buckets, 0.0, RATE, 18.0);
        assert_eq!(seen.stalls, 1);
        assert!((2.8..3.2).contains(&seen.stalled_s), "{seen:?}");
    }

    #[test]
    fn half_of_what_is_needed_stalls_again_and_again_and_nothing_is_never_seen() {
        let seen = playback(&[50_000; 300], 0.0, RATE, 30.0);
        // Four seconds of filling, four of playing.
        assert_eq!(seen.stalls, 3, "{seen:?}");
        let seen = playback(&[], 0.0, RATE, 30.0);
        assert_eq!((seen.startup_s, seen.played_s, seen.stalls), (0.0, 0.0, 0));
    }
}
