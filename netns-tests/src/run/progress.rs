//! Tells people how far a lab is: a bar on a terminal, a line a run elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::measure::Case;
use crate::results::Run;

pub struct Progress {
    bar: Option<ProgressBar>,
    runs: usize,
    started: usize,
    /// Seconds of the runs before this one, as they were expected.
    before: f64,
    current: Duration,
    run_start: Instant,
}

impl Progress {
    pub fn new(runs: usize, expected_seconds: f64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new((expected_seconds * 10.0) as u64);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {elapsed} of about {msg}") {
                bar.set_style(style);
            }
            bar
        });
        if bar.is_none() {
            eprintln!("{runs} runs, about {} s", expected_seconds.round());
        }
        Self {
            bar,
            runs,
            started: 0,
            before: 0.0,
            current: Duration::ZERO,
            run_start: Instant::now(),
        }
    }

    pub fn start_run(&mut self, case: &Case<'_>) {
        self.started += 1;
        self.before += self.current.as_secs_f64();
        self.current = Duration::from_secs_f64(super::measure::expected_seconds(
            case.topology,
            case.seconds,
        ));
        self.run_start = Instant::now();
        let what = case.describe();
        match &self.bar {
            Some(bar) => {
                let total = bar.length().unwrap_or(0) / 10;
                bar.set_message(format!("{total}s  [{}/{}] {what}", self.started, self.runs));
            }
            None => eprintln!("[{}/{}] {what}", self.started, self.runs),
        }
    }

    /// To be called now and then while a run goes on.
    pub fn tick(&self) {
        if let Some(bar) = &self.bar {
            let done = self.run_start.elapsed().min(self.current).as_secs_f64();
            bar.set_position(((self.before + done) * 10.0) as u64);
        }
    }

    pub fn finish_run(&self, run: &Run) {
        let mut text = format!("      {:.1} Mbit/s", run.goodput_bps / 1e6);
        if run.ceiling_bps > 0.0 && run.tail_seconds > 0.0 {
            text += &format!(
                ", {:.1}% of the ceiling",
                run.goodput_bps / run.ceiling_bps * 100.0
            );
        }
        text += &format!(", queue p99 {:.1} ms", run.wan.queue_p99_us as f64 / 1e3);
        for error in &run.errors {
            text += &format!("\n      {error}");
        }
        self.note(&text);
    }

    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
