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
    /// Queue wanted in any case.
    pub queue: f64,
    /// Factor on the delivery rate while there is no queue.
    pub grow: f64,
    /// How long forecasts are remembered.
    pub memory: f64,
}

impl Params {
    pub fn of(target: Target) -> Self {
        let quantile = match target {
            Target::Latency => 0.585,
            Target::Balanced => 0.82,
            Target::Throughput => 0.90,
        };
        Self {
            window: 0.05,
            delta: 0.2,
            quantile,
            queue: 0.01,
            grow: 2.0,
            memory: 20.0,
        }
    }
}
