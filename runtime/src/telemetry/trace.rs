//! The timeline: events in rings of fixed size, and what they add up to.
//!
//! A ring has one writer, the thread of a session, and any number of readers, who copy what it holds while the writer goes on. The writer
//! never waits, never allocates, and overwrites the oldest event when the ring is full.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::device::{Fingerprint, Sms};
use crate::tenant::TenantId;

/// Something that happened to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, on the device's clock ([`Device::now`](crate::device::Device::now)). Of what took time: when it began.
    pub at: Duration,
    /// What.
    pub what: Happening,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Happening {
    /// The host launched a kernel, or captured it.
    Launch {
        /// Its key.
        kernel: Fingerprint,
        /// Where.
        partition: u32,
        /// SMs that its grid is sized for.
        sms: Sms,
    },
    /// The device ran a kernel: one whose launch was sampled or, on the simulator, any.
    Kernel {
        /// Its key.
        kernel: Fingerprint,
        /// Where.
        partition: u32,
        /// SMs that its grid is sized for, or that the simulator saw it on.
        sms: Sms,
        /// How long.
        took: Duration,
    },
    /// The session went on in another partition, or at another priority.
    Hop {
        /// Where it was.
        from: u32,
        /// Where it is.
        to: u32,
    },
    /// The host launched a captured graph.
    Replay {
        /// The partition of the stream that it was launched on.
        partition: u32,
    },
    /// The device ran a captured graph, in a replay that was timed. It may have waited some microseconds for the host in the meantime, if it had nothing else to do.
    Replayed {
        /// The partition of the stream that it was launched on; its nodes have partitions of their own.
        partition: u32,
        /// Kernels in it.
        launches: u64,
        /// How long.
        took: Duration,
    },
    /// A request was answered.
    Request {
        /// From its arrival to its end.
        took: Duration,
        /// Whether the tenant's objective was kept; true where it has none.
        kept: bool,
        /// The objective at its end, at least 1 ns; none where the tenant has none.
        objective: Option<Duration>,
    },
    /// Other SMs were granted.
    Grant {
        /// The tenant's own by the plan.
        owned: Sms,
        /// Those its elastic kernels may use now, without its own that others use.
        held: Sms,
        /// Those of them that are another tenant's.
        borrowed: Sms,
    },
}

/// One runtime's timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Whether times are virtual.
    pub simulated: bool,
    /// SMs of the GPU.
    pub sms: Sms,
    /// What happened to each tenant, oldest first.
    pub tenants: BTreeMap<TenantId, TenantTrace>,
    /// When plans came into force, with the policies that made them.
    pub plans: Vec<(Duration, String)>,
    /// Keys as text, by fingerprint.
    pub kernels: BTreeMap<u64, String>,
    /// The streams of the sessions.
    pub lanes: Vec<Lane>,
}

/// One tenant's part of a timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantTrace {
    /// The tenant's name.
    pub name: String,
    /// What happened, oldest first.
    pub events: Vec<Event>,
}

impl TenantTrace {
    /// A tenant to which nothing has happened.
    pub fn new(name: String) -> Self {
        Self { name, events: Vec::new() }
    }
}

/// A session's stream inside a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// Whose.
    pub tenant: TenantId,
    /// The stream, as the device numbers it.
    pub stream: u64,
    /// The partition.
    pub partition: u32,
    /// The partition's SMs.
    pub sms: Sms,
}

/// Events as words: time; kind in the low 8 bits, SMs in the next 16, partition above 32; two words that depend on the kind.
type Words = [u64; 4];

impl Event {
    fn encode(self) -> Words {
        let head = |kind: u64, sms: Sms, partition: u32| kind | u64::from(sms.0) << 8 | u64::from(partition) << 32;
        let (head, first, second) = match self.what {
            Happening::Launch { kernel, partition, sms } => (head(1, sms, partition), kernel.0, 0),
            Happening::Kernel { kernel, partition, sms, took } => (head(2, sms, partition), kernel.0, nanos(took)),
            Happening::Hop { from, to } => (head(3, Sms(0), to), u64::from(from), 0),
            Happening::Replay { partition } => (head(4, Sms(0), partition), 0, 0),
            Happening::Request { took, kept, objective } => {
                let objective = nanos(objective.unwrap_or_default()).min(u64::MAX >> 1);
                (head(5, Sms(0), 0), nanos(took), objective << 1 | u64::from(kept))
            }
            Happening::Grant { owned, held, borrowed } => (head(6, owned, 0), u64::from(held.0), u64::from(borrowed.0)),
            Happening::Replayed { partition, launches, took } => (head(7, Sms(0), partition), launches, nanos(took)),
        };
        [nanos(self.at), head, first, second]
    }

    fn decode([at, head, first, second]: Words) -> Option<Self> {
        let (sms, partition, kernel) = (Sms((head >> 8) as u16), (head >> 32) as u32, Fingerprint(first));
        let what = match head & 0xff {
            1 => Happening::Launch { kernel, partition, sms },
            2 => Happening::Kernel { kernel, partition, sms, took: Duration::from_nanos(second) },
            3 => Happening::Hop { from: first as u32, to: partition },
            4 => Happening::Replay { partition },
            5 => {
                let objective = Some(Duration::from_nanos(second >> 1)).filter(|objective| !objective.is_zero());
                Happening::Request { took: Duration::from_nanos(first), kept: second & 1 != 0, objective }
            }
            6 => Happening::Grant { owned: sms, held: Sms(first as u16), borrowed: Sms(second as u16) },
            7 => Happening::Replayed { partition, launches: first, took: Duration::from_nanos(second) },
            _ => return None,
        };
        Some(Self { at: Duration::from_nanos(at), what })
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Events that a ring holds at most: 512 MiB.
pub const MOST_EVENTS: usize = 1 << 24;

/// The last events of one thread.
pub(crate) struct Ring {
    /// A power of two of them.
    slots: Box<[[AtomicU64; 4]]>,
    /// Events that were begun so far: event `n` is in slot `n` modulo the number of slots.
    begun: AtomicU64,
    /// Events that are complete.
    written: AtomicU64,
}

impl Ring {
    /// A ring of at least `events` events, or of [`MOST_EVENTS`].
    pub(crate) fn new(events: usize) -> Self {
        let slots = (0..events.min(MOST_EVENTS).next_power_of_two()).map(|_| Default::default()).collect();
        Self { slots, begun: AtomicU64::new(0), written: AtomicU64::new(0) }
    }

    /// Writes an event. Only one thread may do so at a time: others would overwrite each other's events, though nothing worse.
    #[inline]
    pub(crate) fn push(&self, event: Event) {
        let number = self.written.load(Ordering::Relaxed);
        self.begun.store(number + 1, Ordering::Relaxed);
        // A reader that sees a word of this event must also see that it was begun (Boehm, "Can seqlocks get along with programming language
        // memory models?", 2012).
        fence(Ordering::Release);
        let slot = &self.slots[number as usize & (self.slots.len() - 1)];
        for (target, word) in slot.iter().zip(event.encode()) {
            target.store(word, Ordering::Relaxed);
        }
        self.written.store(number + 1, Ordering::Release);
    }

    /// The events that the ring holds, oldest first, without those that the writer may have overwritten meanwhile.
    pub(crate) fn snapshot(&self) -> Vec<Event> {
        let capacity = self.slots.len() as u64;
        let end = self.written.load(Ordering::Acquire);
        let from = end.saturating_sub(capacity);
        let slot = |number: u64| &self.slots[number as usize & (self.slots.len() - 1)];
        let copied: Vec<Words> = (from..end).map(|number| slot(number).each_ref().map(|word| word.load(Ordering::Relaxed))).collect();
        fence(Ordering::Acquire);
        // Each event that was begun meanwhile stands, or half of it, over the one a whole ring before it.
        let begun = self.begun.load(Ordering::Relaxed);
        let whole = (from..).zip(copied).filter(|(number, _)| number + capacity >= begun);
        whole.filter_map(|(_, words)| Event::decode(words)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn hop(number: u64) -> Event {
        Event { at: Duration::from_nanos(number), what: Happening::Hop { from: number as u32, to: !number as u32 } }
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let sms = || any::<u16>().prop_map(Sms);
        let took = || any::<u64>().prop_map(Duration::from_nanos);
        let kernel = || any::<u64>().prop_map(Fingerprint);
        prop_oneof![
            (kernel(), any::<u32>(), sms()).prop_map(|(kernel, partition, sms)| Happening::Launch { kernel, partition, sms }),
            (kernel(), any::<u32>(), sms(), took()).prop_map(|(kernel, partition, sms, took)| Happening::Kernel {
                kernel,
                partition,
                sms,
                took
            }),
            any::<(u32, u32)>().prop_map(|(from, to)| Happening::Hop { from, to }),
            any::<u32>().prop_map(|partition| Happening::Replay { partition }),
            (took(), any::<bool>(), proptest::option::of(1..=u64::MAX >> 1))
                .prop_map(|(took, kept, objective)| { Happening::Request { took, kept, objective: objective.map(Duration::from_nanos) } }),
            (sms(), sms(), sms()).prop_map(|(owned, held, borrowed)| Happening::Grant { owned, held, borrowed }),
            (any::<u32>(), any::<u64>(), took()).prop_map(|(partition, launches, took)| Happening::Replayed { partition, launches, took }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(at in any::<u64>(), what in happening()) {
            let ring = Ring::new(4);
            let event = Event { at: Duration::from_nanos(at), what };
            ring.push(event);
            prop_assert_eq!(ring.snapshot(), vec![event]);
        }
    }

    #[test]
    fn a_full_ring_forgets_the_oldest_events() {
        let ring = Ring::new(8);
        (0..100).for_each(|number| ring.push(hop(number)));
        assert_eq!(ring.snapshot(), (92..100).map(hop).collect::<Vec<_>>());
    }

    #[test]
    fn a_ring_of_one_event_holds_the_last() {
        let ring = Ring::new(1);
        (0..3).for_each(|number| ring.push(hop(number)));
        assert_eq!(ring.snapshot(), [hop(2)]);
    }

    #[test]
    fn a_reader_beside_the_writer_sees_whole_events_in_order() {
        let ring = Ring::new(64);
        thread::scope(|scope| {
            let writer = scope.spawn(|| (0..200_000).for_each(|number| ring.push(hop(number))));
            while !writer.is_finished() {
                let seen = ring.snapshot();
                for event in &seen {
                    assert_eq!(*event, hop(event.at.as_nanos() as u64), "an event is torn");
                }
                assert!(
                    seen.windows(2).all(|pair| pair[1].at == pair[0].at + Duration::from_nanos(1)),
                    "events are missing between others"
                );
            }
        });
        assert_eq!(ring.snapshot().last(), Some(&hop(199_999)));
    }
}
