//! What a line of unknown capacity is to be good for: how much of it may stay unused
//! so that packets wait less.

/// The setting of a line, and what the controller makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// Short queues; some of a varying line is left unused.
    Latency,
    /// Most of the line at moderate queues.
    #[default]
    Balanced,
    /// All of the line; queues as long as that needs.
    Throughput,
}

/// Figures of the control law. Times in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Window of the delivery rate.
    pub window: f64,
    /// Time in which a difference from the wanted amount in flight is made good.
    pub delta: f64,
    /// Share of past forecasts that the wanted amount in flight is to satisfy.
    pub quantile: f64,
    /// The same on a line that varies by itself.
    pub varying: Varying,
    /// Queue wanted in any case.
    pub queue: f64,
    /// Factor on the delivery rate while there is no queue.
    pub grow: f64,
    /// How long forecasts are remembered.
    pub memory: f64,
}

/// What is wanted in flight on a line that varies by itself: as much as leaves a bearable queue
/// when the line falls as far as in the worst twentieth of the past, within two quantiles.
#[derive(Clone, Copy, Debug)]
pub struct Varying {
    /// The quantiles.
    pub least: f64,
    pub most: f64,
    /// The bearable queue: so much, and so much per second that what is known is old.
    pub tail: f64,
    pub tail_age: f64,
    /// Queue that is not worth saving.
    pub small: f64,
    /// How long forecasts are remembered: so rare a fall takes longer to be known.
    pub memory: f64,
}

impl Params {
    pub fn of(target: Target) -> Self {
        let (quantile, least, most, tail, tail_age, small) = match target {
            Target::Latency => (0.585, 0.56, 0.80, 0.05, 0.3, 0.002),
            Target::Balanced => (0.82, 0.50, 0.88, 0.05, 1.85, 0.015),
            Target::Throughput => (0.90, 0.88, 0.94, 0.4, 2.0, 0.015),
        };
        Self {
            window: 0.05,
            delta: 0.2,
            quantile,
            varying: Varying {
                least,
                most,
                tail,
                tail_age,
                small,
                memory: 60.0,
            },
            queue: 0.01,
            grow: 2.0,
            memory: 20.0,
        }
    }
}
