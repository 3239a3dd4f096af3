//! Who copies next: chunks of latency tenants at once, the others' in the order in which they came and few at a time, nobody faster than its rate. Pure
//! bookkeeping.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::time::Duration;

use super::bucket::Bucket;
use crate::tenant::{Class, TenantId};

/// Number of an uploader: its chunks keep their order.
pub(super) type LaneId = u64;

struct Waiting<T> {
    lane: LaneId,
    tenant: TenantId,
    bytes: u64,
    chunk: T,
}

/// Chunks that wait for the link, and how many of throughput tenants are on it.
pub(super) struct Queue<T> {
    latency: VecDeque<Waiting<T>>,
    throughput: VecDeque<Waiting<T>>,
    in_flight: u32,
    most_in_flight: u32,
    /// Bytes that a shaped tenant may send at once.
    burst: u64,
    classes: BTreeMap<TenantId, Class>,
    rates: BTreeMap<TenantId, Bucket>,
    /// All throughput tenants together.
    throughput_rate: Option<Bucket>,
}

impl<T> Queue<T> {
    /// An empty queue that lets `most_in_flight` chunks of throughput tenants, 1 at least, on the link at a time.
    pub(super) fn new(most_in_flight: u32, burst: u64) -> Self {
        Self {
            latency: VecDeque::new(),
            throughput: VecDeque::new(),
            in_flight: 0,
            most_in_flight: most_in_flight.max(1),
            burst,
            classes: BTreeMap::new(),
            rates: BTreeMap::new(),
            throughput_rate: None,
        }
    }

    /// Sets a tenant's class, for the chunks that wait too.
    pub(super) fn set_class(&mut self, tenant: TenantId, class: Class) {
        if self.classes.insert(tenant, class) == Some(class) {
            return;
        }
        let (from, to) = match class {
            Class::Latency => (&mut self.throughput, &mut self.latency),
            Class::Throughput => (&mut self.latency, &mut self.throughput),
        };
        let (moved, stay): (VecDeque<_>, VecDeque<_>) = from.drain(..).partition(|waiting| waiting.tenant == tenant);
        *from = stay;
        to.extend(moved);
    }

    /// Bytes per second that a tenant may send.
    pub(super) fn set_rate(&mut self, tenant: TenantId, rate: Option<NonZeroU64>, now: Duration) {
        match rate {
            Some(rate) => drop(self.rates.insert(tenant, Bucket::new(rate, self.burst, now))),
            None => drop(self.rates.remove(&tenant)),
        }
    }

    /// Bytes per second that all throughput tenants may send together.
    pub(super) fn set_throughput_rate(&mut self, rate: Option<NonZeroU64>, now: Duration) {
        self.throughput_rate = rate.map(|rate| Bucket::new(rate, self.burst, now));
    }

    /// Forgets what was set for a tenant. Its chunks that wait stay.
    pub(super) fn forget(&mut self, tenant: TenantId) {
        self.classes.remove(&tenant);
        self.rates.remove(&tenant);
    }

    /// Whether nothing ever holds up a tenant's chunks here.
    pub(super) fn is_express(&self, tenant: TenantId) -> bool {
        self.classes.get(&tenant) == Some(&Class::Latency) && !self.rates.contains_key(&tenant)
    }

    /// Appends a chunk to its class.
    pub(super) fn push(&mut self, lane: LaneId, tenant: TenantId, bytes: u64, chunk: T) {
        let class = self.classes.get(&tenant).copied().unwrap_or_default();
        let waiting = Waiting { lane, tenant, bytes, chunk };
        match class {
            Class::Latency => self.latency.push_back(waiting),
            Class::Throughput => self.throughput.push_back(waiting),
        }
    }

    /// The chunk that goes next, which is in flight from now on, with the class under which it goes; none where nobody is `ready` and within the rate. Chunks of
    /// throughput tenants wait while the link has its fill of them; those of latency tenants neither wait for them nor count among them.
    pub(super) fn pop(&mut self, now: Duration, mut ready: impl FnMut(&T) -> bool) -> Option<(Class, T)> {
        let (class, at) = match self.first(Class::Latency, now, &mut ready) {
            Some(at) => (Class::Latency, at),
            None if self.in_flight < self.most_in_flight => (Class::Throughput, self.first(Class::Throughput, now, &mut ready)?),
            None => return None,
        };
        let waiting = match class {
            Class::Latency => self.latency.remove(at),
            Class::Throughput => self.throughput.remove(at),
        }?;
        if let Some(bucket) = self.rates.get_mut(&waiting.tenant) {
            bucket.take(waiting.bytes, now);
        }
        if class == Class::Throughput {
            if let Some(bucket) = &mut self.throughput_rate {
                bucket.take(waiting.bytes, now);
            }
            self.in_flight += 1;
        }
        Some((class, waiting.chunk))
    }

    /// A chunk that went under `class` has arrived, or was not sent after all.
    pub(super) fn done(&mut self, class: Class) {
        if class == Class::Throughput {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    /// The chunks that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &T> {
        self.latency.iter().chain(&self.throughput).map(|waiting| &waiting.chunk)
    }

    /// Takes back a lane's chunks that wait.
    pub(super) fn withdraw(&mut self, lane: LaneId) {
        self.latency.retain(|waiting| waiting.lane != lane);
        self.throughput.retain(|waiting| waiting.lane != lane);
    }

    /// When the next chunk that waits only for its rate may go; none where there is no such chunk.
    pub(super) fn next_at(&self, now: Duration) -> Option<Duration> {
        let at = |class, waiting: &Waiting<T>| self.passes_at(class, waiting, now);
        let latency = self.latency.iter().map(|waiting| at(Class::Latency, waiting));
        latency.chain(self.throughput.iter().map(|waiting| at(Class::Throughput, waiting))).filter(|&at| at > now).min()
    }

    /// The place in its class of the first chunk that may go. A lane keeps its order: once one of its chunks is held up, so are those behind it.
    fn first(&self, class: Class, now: Duration, ready: &mut impl FnMut(&T) -> bool) -> Option<usize> {
        let mut held_up = Vec::new();
        let waiting = match class {
            Class::Latency => &self.latency,
            Class::Throughput => &self.throughput,
        };
        waiting.iter().position(|waiting| {
            let goes = !held_up.contains(&waiting.lane) && self.passes_at(class, waiting, now) <= now && ready(&waiting.chunk);
            if !goes {
                held_up.push(waiting.lane);
            }
            goes
        })
    }

    fn passes_at(&self, class: Class, waiting: &Waiting<T>, now: Duration) -> Duration {
        let shared = self.throughput_rate.as_ref().filter(|_| class == Class::Throughput);
        let buckets = self.rates.get(&waiting.tenant).into_iter().chain(shared);
        buckets.map(|bucket| bucket.passes_at(waiting.bytes, now)).max().unwrap_or(now)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
