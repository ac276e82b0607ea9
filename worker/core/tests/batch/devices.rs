//! Several batches on the pages of one device, under any order of joining, leaving, pausing, failing and resizing.

use proptest::prelude::*;

use crate::case::step;
use crate::world::World;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_sequence_that_is_not_removed_ends_as_it_would_alone(
        steps in prop::collection::vec(step(), 0..150),
    ) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.apply(step));
        world.run_to_the_end();
        prop_assert!(world.is_empty(), "everyone ends");
        prop_assert!(world.batches.iter().all(|batch| batch.blocks_held() == 0), "all blocks come back");
        world.close();
    }
}
