//! Tenants that come and go beside one that runs: its outputs keep their bits, its requests go on, and all memory comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use smidgen_runtime::device::Device;
use smidgen_runtime::policy::{Exclusive, Slo, StaticEqual};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::Share;
use smidgen_runtime::{Runtime, Tenancy};

use smidgen::weights::Weights;

use crate::support::{Random, device, is_sanitized, rounds};
use crate::tenant::{Tenant, decoder, encoder};
use crate::tiny_models::{fixture, fixture_ids};

/// Guests that are there at most, so that three sizes of partitions are made.
const MOST_GUESTS: usize = 3;

/// What the driver may keep of a stream or a graph for the next one.
const DRIVER_KEEPS: u64 = 4 << 20;

/// What a request of a tenant may take while others come and go: replans, uploads of weights, allocations and graphs of theirs must not hold it up for longer than a few
/// partitions take to be made, 4 ms each on a GPU that is at work.
const LONGEST_BESIDE_ADMISSIONS: Duration = Duration::from_millis(20);

/// A guest, its outputs alone, and its admission.
struct Guest<'a> {
    tenant: Tenant,
    expected: &'a [u8],
    tenancy: Tenancy<&'a Runtime>,
}

fn free_bytes(device: &Arc<dyn Device>) -> u64 {
    device.free_bytes().expect("a device that answers")
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn two_hundred_admissions_and_dismissals_leave_a_neighbour_s_bits_and_the_memory_as_they_were() {
    let device = device();
    let runtime = |policy| Runtime::new(Arc::clone(&device), policy, Arc::new(ProfileStore::default()));
    let mut random = Random::new(11);
    let prompts: Vec<Vec<u32>> = [9, 1, 130, 64].map(|length| (0..length).map(|_| random.between(0, 4000)).collect()).into();
    let steady_weights = decoder();
    let guests = ["bert", "distilbert", "llama-tied", "gpt2"]
        .map(|name| (Weights::open(&fixture(name)).expect("a model directory"), fixture_ids(name)));

    let alone = runtime(Box::new(Exclusive));
    let run_alone = |weights: &Weights, sequences: &[Vec<u32>]| {
        let mut tenant = Tenant::new(&alone, weights, sequences);
        let output = tenant.run().expect("a request");
        alone.dismiss(tenant.id()).expect("an admitted tenant");
        output
    };
    let steady_expected = run_alone(&steady_weights, &prompts);
    let expected: Vec<Vec<u8>> = guests.iter().map(|(weights, ids)| run_alone(weights, ids)).collect();

    let shared = runtime(Box::new(StaticEqual));
    let mut steady = Tenant::new(&shared, &steady_weights, &prompts);
    let admit = |which: usize| {
        let (weights, ids) = &guests[which];
        let tenant = Tenant::new(&shared, weights, ids);
        let tenancy = Tenancy::new(&shared, tenant.id());
        Guest { tenant, expected: &expected[which], tenancy }
    };
    let mut present: Vec<Guest<'_>> = Vec::new();
    // Partitions are made, modules loaded and caches filled the first time.
    for which in 0..guests.len() {
        present.truncate(MOST_GUESTS - 1);
        present.push(admit(which));
        present.iter_mut().for_each(|guest| drop(guest.tenant.run().expect("a request")));
        steady.run().expect("a request");
    }
    present.clear();
    steady.run().expect("a request");
    let start = free_bytes(&device);

    let (mut admitted, mut dismissed) = (0, 0);
    while admitted < rounds(200) || dismissed < rounds(200) {
        let admits = present.is_empty() || (present.len() < MOST_GUESTS && random.between(0, 1) == 0);
        if admits {
            present.push(admit(random.between(0, guests.len() as u32 - 1) as usize));
            admitted += 1;
        } else {
            let gone = present.swap_remove(random.between(0, present.len() as u32 - 1) as usize);
            assert_eq!(gone.tenant.id(), gone.tenancy.tenant());
            dismissed += 1;
        }
        // Now and then one is paused beside the others.
        if let (0, Some(guest)) = (admitted % 7, present.first()) {
            shared.pause(guest.tenant.id()).expect("an admitted tenant");
            assert!(steady.run().expect("a request") == steady_expected, "beside a paused tenant");
            shared.resume(guest.tenant.id()).expect("a paused tenant");
        }
        assert!(steady.run().expect("a request") == steady_expected, "after {admitted} admissions and {dismissed} dismissals");
        for guest in &mut present {
            assert!(guest.tenant.run().expect("a request") == guest.expected, "a {} among others", guest.tenant.name());
        }
    }
    present.clear();
    assert!(steady.run().expect("a request") == steady_expected, "when all guests have gone");
    let missing = start.saturating_sub(free_bytes(&device));
    assert!(missing <= DRIVER_KEEPS, "{missing} bytes did not come back");
    assert_eq!(shared.tenants().len(), 1);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_tenant_that_is_resized_again_and_again_computes_the_same_bits() {
    let device = device();
    let runtime = Runtime::new(Arc::clone(&device), Box::new(StaticEqual), Arc::new(ProfileStore::default()));
    let mut random = Random::new(12);
    let prompts: Vec<Vec<u32>> = [33, 90].map(|length| (0..length).map(|_| random.between(0, 4000)).collect()).into();
    let (mut resized, mut other) = (Tenant::new(&runtime, &decoder(), &prompts), Tenant::new(&runtime, &decoder(), &prompts));
    let expected = resized.run().expect("a request");
    for percent in [60, 80, 30, 60, 95, 10].into_iter().take(rounds(6) as usize) {
        runtime.resize(resized.id(), Share::Percent(percent)).expect("SMs enough");
        for tenant in [&mut resized, &mut other] {
            assert!(tenant.run().expect("a request") == expected, "{percent}%");
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_tenant_s_requests_go_on_while_others_are_admitted_load_their_weights_and_leave() {
    let device = device();
    let runtime = Runtime::new(Arc::clone(&device), Box::new(Slo::default()), Arc::new(ProfileStore::default()));
    let mut random = Random::new(13);
    let mut ids = |lengths: &[u32]| -> Vec<Vec<u32>> {
        lengths.iter().map(|&length| (0..length).map(|_| random.between(0, 4000)).collect()).collect()
    };
    let mut steady = Tenant::new(&runtime, &decoder(), &ids(&[128; 8]));
    steady.run().expect("a request");
    let expected = steady.run_last_pass().expect("a step");
    let graph = steady.capture().expect("a step again");
    let mut step = || {
        let begun = Instant::now();
        assert!(steady.replay(&graph).expect("a replay") == expected);
        begun.elapsed()
    };
    let (guest_weights, guest_ids) = (encoder(), ids(&[64, 20]));
    let visit = || {
        let mut guest = Tenant::new(&runtime, &guest_weights, &guest_ids);
        let _tenancy = Tenancy::new(&runtime, guest.id());
        guest.run().expect("a request")
    };
    let guest_expected = visit();
    let mut quiet: Vec<Duration> = (0..rounds(200)).map(|_| step()).collect();

    let is_over = AtomicBool::new(false);
    let mut beside = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            device.bind_thread().expect("the GPU's context can be made current");
            let mut times = vec![step()];
            while !is_over.load(Ordering::Relaxed) {
                times.push(step());
            }
            times
        });
        let guests_are_right = (0..rounds(20)).all(|_| visit() == guest_expected);
        is_over.store(true, Ordering::Relaxed);
        let times = server.join().expect("steps that are right");
        assert!(guests_are_right);
        times
    });
    quiet.sort_unstable();
    beside.sort_unstable();
    let [median, longest] = [beside.len() / 2, beside.len() - 1].map(|at| beside[at]);
    eprintln!(
        "a step takes {:?}, the longest of {} {:?}; beside {} guests who come and go {median:?}, the longest of {} {longest:?}",
        quiet[quiet.len() / 2],
        quiet.len(),
        quiet[quiet.len() - 1],
        rounds(20),
        beside.len()
    );
    assert!(longest < LONGEST_BESIDE_ADMISSIONS || is_sanitized(), "{longest:?}");
}
