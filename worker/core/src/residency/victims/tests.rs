use proptest::prelude::*;

use super::*;

fn room(pages: u64, places: usize) -> Room {
    Room {
        pages,
        places,
        ..Room::default()
    }
}

fn names(count: usize) -> Vec<ModelName> {
    (0..count)
        .map(|index| ModelName::new(format!("m{index}")).unwrap())
        .collect()
}

fn candidates<'a>(names: &'a [ModelName], sizes: &[(u64, u64)]) -> Vec<Candidate<'a>> {
    let paired = names.iter().zip(sizes);
    paired
        .map(|(model, (pages, cost_us))| Candidate {
            model,
            pages: *pages,
            cost_us: *cost_us,
        })
        .collect()
}

fn chosen(sizes: &[(u64, u64)], pages: u64, places: usize) -> Option<Vec<usize>> {
    let names = names(sizes.len());
    cheapest(&candidates(&names, sizes), room(pages, places))
}

fn sum(sizes: &[(u64, u64)], indices: &[usize]) -> (u64, u64) {
    let of = indices.iter().map(|index| sizes[*index]);
    of.fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1))
}

/// What the cheapest set costs, by trying all.
fn least_cost(sizes: &[(u64, u64)], missing: Room) -> Option<u64> {
    let sets = 0..1_u32 << sizes.len();
    let members =
        |set: u32| -> Vec<usize> { (0..sizes.len()).filter(|index| set >> index & 1 == 1).collect() };
    let sets = sets.map(members).filter(|set| set.len() >= missing.places);
    let sets = sets
        .map(|set| sum(sizes, &set))
        .filter(|(pages, _)| *pages >= missing.pages);
    sets.map(|(_, cost)| cost).min()
}

fn sizes(most: usize) -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0..20_u64, 0..50_u64), 0..most)
}

proptest! {
    #[test]
    fn a_few_candidates_give_the_cheapest_set_of_all(
        sizes in sizes(10),
        pages in 0..60_u64,
        places in 0..4_usize,
    ) {
        let found = chosen(&sizes, pages, places);
        let cost = found.as_ref().map(|set| sum(&sizes, set).1);
        prop_assert_eq!(cost, least_cost(&sizes, room(pages, places)));
    }

    #[test]
    fn nobody_leaves_whose_leaving_is_not_needed(
        sizes in sizes(40),
        pages in 0..200_u64,
        places in 0..4_usize,
    ) {
        let Some(found) = chosen(&sizes, pages, places) else {
            let all: Vec<usize> = (0..sizes.len()).collect();
            prop_assert!(sum(&sizes, &all).0 < pages || sizes.len() < places);
            return Ok(());
        };
        prop_assert!(sum(&sizes, &found).0 >= pages && found.len() >= places);
        for spared in &found {
            let others: Vec<usize> = found.iter().copied().filter(|index| index != spared).collect();
            prop_assert!(sum(&sizes, &others).0 < pages || others.len() < places);
        }
    }
}

#[test]
fn two_cheap_models_leave_rather_than_one_that_is_dear() {
    assert_eq!(
        chosen(&[(40, 900), (20, 100), (20, 100)], 40, 1),
        Some(vec![1, 2])
    );
    assert_eq!(chosen(&[(40, 150), (20, 100), (20, 100)], 40, 1), Some(vec![0]));
}

#[test]
fn of_equally_cheap_models_the_first_leaves() {
    assert_eq!(chosen(&[(5, 7), (5, 7), (5, 7)], 5, 1), Some(vec![0]));
    assert_eq!(chosen(&[(5, 0), (9, 0)], 9, 1), Some(vec![1]), "the smaller set");
}

#[test]
fn many_candidates_are_taken_by_their_cost_for_each_page() {
    let mut sizes = vec![(1, 50); EXACT_MAX];
    sizes.extend([(30, 300), (10, 40), (20, 90)]);
    let last = EXACT_MAX;
    assert_eq!(chosen(&sizes, 30, 1), Some(vec![last + 1, last + 2]));
}
