use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use proptest::prelude::*;

use super::Queue;
use crate::tenant::{Class, TenantId};

const CHUNK: u64 = 1 << 20;
/// Bytes per second of the link: a byte a nanosecond.
const LINK: u64 = 1_000_000_000;
const TENANTS: u32 = 4;

#[derive(Debug, Clone)]
enum Event {
    /// A chunk of so many bytes of a tenant.
    Push(u32, u64),
    /// A tenant changes class.
    Class(u32, bool),
    /// A tenant is shaped to so many bytes per second.
    Rate(u32, Option<u64>),
    /// The lane's chunks that wait are taken back.
    Withdraw(u32),
    /// Nothing is asked for, for so many nanoseconds.
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let rate = prop::option::of(50_000_000..LINK);
    prop_oneof![
        8 => (0..TENANTS, 1..=CHUNK).prop_map(|(tenant, bytes)| Event::Push(tenant, bytes)),
        1 => (0..TENANTS, any::<bool>()).prop_map(|(tenant, latency)| Event::Class(tenant, latency)),
        1 => (0..TENANTS, rate).prop_map(|(tenant, rate)| Event::Rate(tenant, rate)),
        1 => (0..TENANTS).prop_map(Event::Withdraw),
        3 => (0..3 * CHUNK).prop_map(Event::Wait),
    ]
}

/// A chunk: whose, which in its order, bytes, and when it was pushed.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Chunk {
    tenant: u32,
    number: u64,
    bytes: u64,
    pushed: u64,
}

/// A link that takes chunks one after another.
struct Link {
    queue: Queue<Chunk>,
    now: u64,
    free_at: u64,
    /// Ends of the chunks on the link, and their classes.
    ends: Vec<(u64, Class)>,
    /// Every chunk, with when it was let go.
    sent: Vec<(u64, Chunk)>,
}

impl Link {
    fn new(in_flight: u32) -> Self {
        Self { queue: Queue::new(in_flight, CHUNK), now: 0, free_at: 0, ends: Vec::new(), sent: Vec::new() }
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    fn pump(&mut self) {
        let now = self.now();
        while let Some((class, chunk)) = self.queue.pop(now, |_| true) {
            self.free_at = self.free_at.max(self.now) + chunk.bytes;
            self.ends.push((self.free_at, class));
            self.sent.push((self.now, chunk));
        }
    }

    /// Goes to the next instant at which something changes, at most to `until`; whether there is one before.
    fn step(&mut self, until: u64) -> bool {
        self.pump();
        let shaped = self.queue.next_at(self.now()).map_or(u64::MAX, |at| at.as_nanos() as u64);
        let next = self.ends.iter().map(|&(end, _)| end).min().unwrap_or(u64::MAX).min(shaped);
        if next == u64::MAX || next > until {
            self.now = if until == u64::MAX { self.now } else { until };
            return false;
        }
        self.now = next;
        for (_, class) in self.ends.extract_if(.., |&mut (end, _)| end <= next) {
            self.queue.done(class);
        }
        self.pump();
        true
    }

    /// Chunks of throughput tenants on the link.
    fn throughput(&self) -> usize {
        self.ends.iter().filter(|&&(_, class)| class == Class::Throughput).count()
    }
}

proptest! {
    #[test]
    fn every_byte_is_sent_once_in_its_tenant_s_order_unless_taken_back(
        events in prop::collection::vec(event(), 1..120),
        in_flight in 1_u32..4,
    ) {
        let mut link = Link::new(in_flight);
        let mut expected: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for (number, event) in (0..).zip(events) {
            match event {
                Event::Push(tenant, bytes) => {
                    let chunk = Chunk { tenant, number, bytes, pushed: link.now };
                    link.queue.push(u64::from(tenant), TenantId(tenant), bytes, chunk);
                    expected.entry(tenant).or_default().push(number);
                }
                Event::Class(tenant, latency) => {
                    link.queue.set_class(TenantId(tenant), if latency { Class::Latency } else { Class::Throughput });
                }
                Event::Rate(tenant, rate) => link.queue.set_rate(TenantId(tenant), rate.and_then(NonZeroU64::new), link.now()),
                Event::Withdraw(tenant) => {
                    link.queue.withdraw(u64::from(tenant));
                    let sent: Vec<u64> = link.sent.iter().filter(|(_, chunk)| chunk.tenant == tenant).map(|(_, chunk)| chunk.number).collect();
                    expected.entry(tenant).or_default().retain(|number| sent.contains(number));
                }
                Event::Wait(nanos) => {
                    let until = link.now + nanos;
                    while link.step(until) {}
                }
            }
            link.pump();
            prop_assert!(link.throughput() <= in_flight as usize);
        }
        while link.step(u64::MAX) {}
        for (tenant, numbers) in expected {
            let sent: Vec<u64> = link.sent.iter().filter(|(_, chunk)| chunk.tenant == tenant).map(|(_, chunk)| chunk.number).collect();
            prop_assert_eq!(sent, numbers, "tenant {}", tenant);
        }
    }

    /// One latency tenant sends now and then; three others always have something to send.
    #[test]
    fn a_latency_tenant_goes_at_once_behind_no_more_of_others_than_their_few_chunks(
        arrivals in prop::collection::vec((0..5 * CHUNK, 1..=CHUNK), 1..20),
        in_flight in 1_u32..4,
    ) {
        let mut link = Link::new(in_flight);
        link.queue.set_class(TenantId(0), Class::Latency);
        let mut pushed = BTreeMap::<u32, usize>::new();
        let mut saturate = |link: &mut Link| {
            for tenant in 1..TENANTS {
                let sent = link.sent.iter().filter(|(_, chunk)| chunk.tenant == tenant).count();
                let pushed = pushed.entry(tenant).or_default();
                while *pushed - sent < 2 {
                    let chunk = Chunk { tenant, number: *pushed as u64, bytes: CHUNK, pushed: link.now };
                    link.queue.push(u64::from(tenant), TenantId(tenant), CHUNK, chunk);
                    *pushed += 1;
                }
            }
            link.pump();
        };
        for (number, (pause, bytes)) in (0..).zip(arrivals) {
            let until = link.now + pause;
            saturate(&mut link);
            while link.step(until) {
                saturate(&mut link);
            }
            prop_assert!(link.throughput() <= in_flight as usize);
            let on_link = link.free_at.saturating_sub(link.now);
            let start = link.now;
            link.queue.push(0, TenantId(0), bytes, Chunk { tenant: 0, number, bytes, pushed: start });
            link.pump();
            prop_assert_eq!(link.sent.last().map(|&(at, chunk)| (at, chunk.tenant, chunk.number)), Some((start, 0, number)));
            prop_assert_eq!(link.free_at - start, on_link + bytes);
        }
    }

    #[test]
    fn shaped_tenants_keep_their_rate_over_any_window_alone_and_together(
        chunks in prop::collection::vec((1..TENANTS, CHUNK / 4..=CHUNK), 2..80),
        own in 50_000_000..LINK,
        together in 50_000_000..LINK,
    ) {
        let mut link = Link::new(2);
        link.queue.set_rate(TenantId(1), NonZeroU64::new(own), Duration::ZERO);
        link.queue.set_throughput_rate(NonZeroU64::new(together), Duration::ZERO);
        let total: u64 = chunks.iter().map(|(_, bytes)| bytes).sum();
        for (number, (tenant, bytes)) in (0..).zip(chunks) {
            link.queue.push(u64::from(tenant), TenantId(tenant), bytes, Chunk { tenant, number, bytes, pushed: 0 });
        }
        while link.step(u64::MAX) {}
        prop_assert_eq!(link.sent.iter().map(|(_, chunk)| chunk.bytes).sum::<u64>(), total);
        for (rate, counts) in [(together, 1..TENANTS), (own, 1..2)] {
            let sent: Vec<_> = link.sent.iter().filter(|(_, chunk)| counts.contains(&chunk.tenant)).collect();
            for (first, (from, _)) in sent.iter().enumerate() {
                let mut bytes = 0_u64;
                for (at, chunk) in &sent[first..] {
                    bytes += chunk.bytes;
                    let allowed = CHUNK + (u128::from(at - from) * u128::from(rate) / u128::from(LINK)) as u64 + 1;
                    prop_assert!(bytes <= allowed, "{bytes} bytes within {} ns, {allowed} allowed", at - from);
                }
            }
        }
    }
}

#[test]
fn throughput_tenants_take_turns_chunk_by_chunk() {
    let mut queue = Queue::new(1, CHUNK);
    for number in 0..3 {
        for tenant in 0..2 {
            queue.push(tenant, TenantId(tenant as u32), CHUNK, (tenant, number));
        }
    }
    let mut order = Vec::new();
    while let Some((class, chunk)) = queue.pop(Duration::ZERO, |_| true) {
        order.push(chunk);
        queue.done(class);
    }
    assert_eq!(order, [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]);
}

#[test]
fn a_lane_whose_first_chunk_is_not_ready_holds_up_nobody_else() {
    let mut queue = Queue::new(4, CHUNK);
    for (lane, number) in [(0, 0), (0, 1), (1, 0)] {
        queue.push(lane, TenantId(lane as u32), CHUNK, (lane, number));
    }
    // The second chunk of lane 0 would be ready, but must not overtake the first.
    let ready = |&chunk: &(u64, i32)| chunk != (0, 0);
    assert_eq!(queue.pop(Duration::ZERO, ready), Some((Class::Throughput, (1, 0))));
    assert_eq!(queue.pop(Duration::ZERO, ready), None);
    assert_eq!(queue.pop(Duration::ZERO, |_| true), Some((Class::Throughput, (0, 0))));
}

#[test]
fn a_latency_tenant_is_held_up_by_its_own_rate_alone() {
    let (latency, throughput) = (TenantId(0), TenantId(1));
    let mut queue = Queue::new(1, CHUNK);
    queue.set_class(latency, Class::Latency);
    assert!(queue.is_express(latency) && !queue.is_express(throughput));
    queue.push(1, throughput, CHUNK, 0);
    assert_eq!(queue.pop(Duration::ZERO, |_| true), Some((Class::Throughput, 0)));
    // The link has its fill of the others.
    (1..4).for_each(|number| queue.push(0, latency, CHUNK, number));
    assert_eq!(queue.pop(Duration::ZERO, |_| true), Some((Class::Latency, 1)));
    queue.set_rate(latency, NonZeroU64::new(LINK), Duration::ZERO);
    assert!(!queue.is_express(latency));
    assert_eq!(queue.pop(Duration::ZERO, |_| true), Some((Class::Latency, 2)));
    assert_eq!(queue.pop(Duration::ZERO, |_| true), None, "the burst is used up");
    queue.set_rate(latency, None, Duration::ZERO);
    assert!(queue.is_express(latency));
    assert_eq!(queue.pop(Duration::ZERO, |_| true), Some((Class::Latency, 3)));
}
