use mef_packet::{BitRate, Instant};
#[derive(Debug)]
pub struct CapacityGuard {
    rate: BitRate,
}
pub struct AckSample {
    pub now: Instant,
    pub sent_at: Instant,
    pub sent_bytes: u64,
    pub received_at_us: u64,
    pub delivered_bytes: u64,
    pub drops: u64,
    pub loss: f64,
    pub rtt: core::time::Duration,
}
impl CapacityGuard {
    pub fn new(_now: Instant, rate: BitRate) -> Self {
        Self { rate }
    }
    pub fn rate(&self) -> BitRate {
        self.rate
    }
    pub fn on_ack(&mut self, _s: AckSample) {}
    pub fn on_tick(&mut self, _now: Instant) {}
    pub fn session_started(&mut self, _now: Instant) {}
}
