//! The ledger's account is right after any history.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

use flotilla_protocol::ModelName;
use flotilla_worker_core::ledger::{DeviceIndex, Ledger, LedgerError, Purpose, Reservation};
use proptest::prelude::*;

const PAGES_TOTAL: u64 = 100;

#[derive(Debug, Clone)]
enum Step {
    Reserve(u64),
    ReserveAll(Vec<u64>),
    Release(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..60_u64).prop_map(Step::Reserve),
        prop::collection::vec(0..40_u64, 0..5).prop_map(Step::ReserveAll),
        any::<prop::sample::Index>().prop_map(Step::Release),
    ]
}

fn owner() -> ModelName {
    ModelName::new("m").unwrap()
}

fn purpose(at: usize) -> Purpose {
    [Purpose::Weights, Purpose::Kv, Purpose::Workspace][at % 3]
}

/// Runs one step and keeps what it gave.
fn apply(ledger: &mut Ledger, held: &mut Vec<Reservation>, step: Step) {
    let pages_free = ledger.pages_free();
    let (asked, given) = match step {
        Step::Reserve(pages) => (
            pages,
            ledger
                .reserve(&owner(), purpose(held.len()), pages)
                .map(|one| vec![one]),
        ),
        Step::ReserveAll(parts) => {
            let parts: Vec<_> = parts
                .into_iter()
                .enumerate()
                .map(|(at, pages)| (purpose(at), pages))
                .collect();
            let asked = parts.iter().map(|(_, pages)| pages).sum();
            (asked, ledger.reserve_all(&owner(), &parts))
        }
        Step::Release(index) => {
            if !held.is_empty() {
                let reservation = held.swap_remove(index.index(held.len()));
                let pages = reservation.pages();
                ledger.release(reservation);
                assert_eq!(
                    ledger.pages_free(),
                    pages_free + pages,
                    "exactly what was taken comes back"
                );
            }
            return;
        }
    };
    match given {
        Ok(given) => {
            assert_eq!(given.iter().map(Reservation::pages).sum::<u64>(), asked);
            assert_eq!(ledger.pages_free(), pages_free - asked);
            held.extend(given);
        }
        Err(LedgerError::NoRoom {
            pages_needed,
            pages_free: free,
            pages_total,
        }) => {
            assert!(asked > pages_free, "refused only when it does not fit");
            assert_eq!(
                (pages_needed, free, pages_total),
                (asked, pages_free, PAGES_TOTAL)
            );
            assert_eq!(ledger.pages_free(), pages_free, "a refusal takes nothing");
        }
    }
}

proptest! {
    #[test]
    fn held_and_free_pages_are_all_pages_after_any_history(steps in prop::collection::vec(step(), 0..60)) {
        let mut ledger = Ledger::new(DeviceIndex(0), PAGES_TOTAL);
        let mut held = Vec::new();
        for step in steps {
            apply(&mut ledger, &mut held, step);
            ledger.check_invariants();
            for purpose in [Purpose::Weights, Purpose::Kv, Purpose::Workspace] {
                let of_purpose = held.iter().filter(|one| one.purpose() == purpose);
                prop_assert_eq!(ledger.pages_for(purpose), of_purpose.map(Reservation::pages).sum::<u64>());
            }
        }
        held.into_iter().for_each(|one| ledger.release(one));
        prop_assert_eq!(ledger.pages_free(), PAGES_TOTAL);
        prop_assert_eq!(ledger.pages_of(&owner()), 0);
    }
}

#[test]
#[should_panic(expected = "goes back to its own ledger")]
fn a_reservation_of_another_device_is_not_taken_back() {
    let mut one = Ledger::new(DeviceIndex(0), 10);
    let mut other = Ledger::new(DeviceIndex(1), 10);
    let reservation = one.reserve(&owner(), Purpose::Kv, 3).unwrap();
    other.release(reservation);
}
