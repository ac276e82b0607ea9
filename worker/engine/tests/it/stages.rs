//! A model in stages on several devices draws from the bits that it draws from as a whole, wherever it is cut.

use flotilla_worker_engine::{
    CpuBackend, DecoderModel, LoadError, ModelFolder, ModelLoader, ModelPlan, Precision, Sampling, Step,
    StepError, load_image,
};
use proptest::prelude::*;

use crate::batches::read_together;
use crate::fixture::{
    GOLDEN, KV_SPACE, Options, Sequence, backend, bits, blocks_of, demo_folder, generate, golden_folder,
    load, load_stages, load_with, map_blocks, plan, read_chunk,
};

/// Every way to cut so many layers into two or three stages, as where each of them ends.
fn cuts(layers: usize) -> Vec<Vec<usize>> {
    let once = (1..layers).map(|cut| vec![cut, layers]);
    let twice =
        (1..layers).flat_map(|first| (first + 1..layers).map(move |second| vec![first, second, layers]));
    once.chain(twice).collect()
}

fn layers_of(name: &str) -> usize {
    let folder = ModelFolder::open(&golden_folder(name)).unwrap();
    folder.config().layers.len()
}

const DRAWN: Sampling = Sampling {
    temperature: 1.0,
    seed: 7,
    ..Sampling::GREEDY
};

#[test]
fn every_cut_of_every_golden_model_makes_the_bits_and_tokens_of_the_whole() {
    let tokens: Vec<u32> = (3..60).collect();
    for name in GOLDEN {
        let mut whole = load(&golden_folder(name));
        let read = |model: &mut DecoderModel<CpuBackend>| {
            let mut sequence = Sequence::new(&tokens, blocks_of(0));
            let chunks = [20, 1, 35].map(|count| bits(&read_chunk(model, &mut sequence, count)));
            (chunks, generate(model, &mut sequence, 12, DRAWN))
        };
        let expected = read(&mut whole);
        for ends in cuts(layers_of(name)) {
            let mut split = load_stages(&golden_folder(name), &ends, Options::default());
            assert_eq!(split.stage_count(), ends.len());
            assert_eq!(
                read(&mut split),
                expected,
                "{name} in stages that end at {ends:?}"
            );
        }
    }
}

#[test]
fn demo_models_answer_in_stages_as_a_whole_whatever_their_precision() {
    for name in ["adder", "sorter", "reverser"] {
        for precision in [Precision::Stored, Precision::Int8, Precision::Int4] {
            let options = Options {
                precision,
                ..Options::default()
            };
            let mut whole = load_with(&demo_folder(name), options);
            let layers = whole.plan().layers().end;
            let answer = |model: &mut DecoderModel<CpuBackend>| {
                let mut sequence = Sequence::new(&[1, 5, 7, 4, 9], blocks_of(1));
                generate(model, &mut sequence, 20, DRAWN)
            };
            let expected = answer(&mut whole);
            for ends in cuts(layers) {
                let mut split = load_stages(&demo_folder(name), &ends, options);
                assert_eq!(
                    answer(&mut split),
                    expected,
                    "{name} {precision:?} cut at {ends:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn batches_and_chunks_of_a_split_model_have_the_bits_of_the_whole_read_alone(
        model in 0..GOLDEN.len(),
        pick: prop::sample::Index,
        mix in prop::collection::vec(
            (prop::collection::vec(0u32..96, 1..70), prop::collection::vec(1usize..24, 1..5)),
            1..6,
        ),
    ) {
        let (name, folder) = (GOLDEN[model], golden_folder(GOLDEN[model]));
        let cuts = cuts(layers_of(name));
        let mut split = load_stages(&folder, &cuts[pick.index(cuts.len())], Options::default());
        let mut whole = load(&folder);
        let (mut sequences, chunks): (Vec<Sequence>, Vec<Vec<usize>>) = mix
            .into_iter()
            .zip(0..)
            .map(|((tokens, chunks), index)| (Sequence::new(&tokens, blocks_of(index)), chunks))
            .unzip();
        let together = read_together(&mut split, &mut sequences, &chunks);
        for (sequence, logits) in sequences.iter().zip(together) {
            let mut alone = Sequence::new(&sequence.tokens, blocks_of(7));
            let count = alone.tokens.len();
            prop_assert_eq!(bits(&read_chunk(&mut whole, &mut alone, count)), bits(&logits));
        }
    }

    #[test]
    fn sequence_that_lost_its_blocks_in_a_split_model_goes_on_as_in_the_whole(
        model in 0..GOLDEN.len(),
        pick: prop::sample::Index,
        lost_after in 1usize..20,
    ) {
        let folder = golden_folder(GOLDEN[model]);
        let cuts = cuts(layers_of(GOLDEN[model]));
        let prompt = [3, 4, 5, 6, 7];
        let expected = generate(&mut load(&folder), &mut Sequence::new(&prompt, blocks_of(0)), 20, DRAWN);
        let mut split = load_stages(&folder, &cuts[pick.index(cuts.len())], Options::default());
        let mut sequence = Sequence::new(&prompt, blocks_of(0));
        generate(&mut split, &mut sequence, lost_after, DRAWN);
        // Somebody else writes to its blocks, and it is read again on others.
        generate(&mut split, &mut Sequence::new(&[9, 8], blocks_of(0)), 5, DRAWN);
        (sequence.read, sequence.block_table) = (0, blocks_of(3).collect());
        generate(&mut split, &mut sequence, 20 - lost_after, DRAWN);
        prop_assert_eq!(&sequence.tokens[prompt.len()..], &expected[..]);
    }
}

#[test]
fn stages_take_what_was_counted_before_it_was_known_where_to_cut() {
    for name in GOLDEN {
        let folder = ModelFolder::open(&golden_folder(name)).unwrap();
        let whole = plan(&folder, Options::default());
        let sizes = whole.stage_sizes().unwrap();
        assert_eq!(sizes.layers, folder.config().layers.len());
        for ends in cuts(sizes.layers) {
            let mut start = 0;
            let mut kv_bytes = 0;
            for end in ends {
                let stage = whole.stage(start..end).unwrap();
                let (is_first, is_last) = (start == 0, end == sizes.layers);
                let once = |is_there: bool, bytes: usize| if is_there { bytes } else { 0 };
                let weights_bytes = once(is_first, sizes.first_bytes)
                    + (end - start) * sizes.layer_bytes
                    + once(is_last, sizes.last_bytes);
                assert_eq!(stage.weights_bytes(), weights_bytes, "{name} {start}..{end}");
                let workspace_bytes = match (is_first, is_last) {
                    (true, _) => sizes.first_workspace_bytes,
                    (false, false) => sizes.inner_workspace_bytes,
                    (false, true) => sizes.last_workspace_bytes,
                };
                assert_eq!(stage.workspace_bytes(), workspace_bytes, "{name} {start}..{end}");
                assert_eq!(stage.kv_block_bytes(), (end - start) * sizes.kv_layer_block_bytes);
                kv_bytes += stage.kv_block_bytes();
                start = end;
            }
            assert_eq!(kv_bytes, whole.kv_block_bytes());
        }
    }
}

#[test]
fn images_of_stages_come_back_to_the_stages_that_they_were() {
    let folder = golden_folder("qwen2-bf16");
    let tokens: Vec<u32> = (3..30).collect();
    let read = |model: &mut DecoderModel<CpuBackend>| {
        bits(&read_chunk(model, &mut Sequence::new(&tokens, blocks_of(0)), 27))
    };
    let mut split = load_stages(&folder, &[1, 3], Options::default());
    let before = read(&mut split);
    let images = split.into_images().unwrap();
    let whole = plan(&ModelFolder::open(&folder).unwrap(), Options::default());
    let stages = [whole.stage(0..1).unwrap(), whole.stage(1..3).unwrap()];
    let parts = images.into_iter().zip(stages);
    let parts =
        parts.map(|(image, plan)| load_image(backend(Options::default()), plan, image, KV_SPACE).unwrap());
    let mut again = DecoderModel::join(parts);
    map_blocks(&mut again);
    assert_eq!(read(&mut again), before);
}

#[test]
fn loader_of_a_stage_wants_its_own_tensors_alone() {
    let folder = ModelFolder::open(&golden_folder("gqa-f32")).unwrap();
    let stage = plan(&folder, Options::default()).stage(1..2).unwrap();
    let has = |tensor| stage.weights().has(tensor);
    assert!(has("model.layers.1.mlp.up_proj.weight") && has("lm_head.weight"));
    assert!(!has("model.layers.0.mlp.up_proj.weight") && !has("model.embed_tokens.weight"));
    let mut loader = ModelLoader::new(backend(Options::default()), stage, KV_SPACE).unwrap();
    let foreign = "model.layers.0.mlp.up_proj.weight";
    let refused = loader.place(foreign, 0, &[0; 4]).unwrap_err();
    assert!(matches!(refused, LoadError::UnknownTensor { .. }), "{refused}");
}

#[test]
fn step_runs_stage_by_stage_and_is_refused_before_the_first() {
    let mut split = load_stages(&golden_folder("mistral-f32"), &[1, 2, 3], Options::default());
    let sequence = Sequence::new(&[3, 4, 5], blocks_of(0));
    let parts = [sequence.part(3, Some(Sampling::GREEDY))];
    let step = Step { sequences: &parts };
    let mut staged = split.begin(&step).unwrap();
    let order: Vec<usize> = std::iter::from_fn(|| staged.run_stage().unwrap()).collect();
    assert_eq!(order, [0, 1, 2]);
    assert!(staged.wait().unwrap().sequences[0].token().is_some());
    // The last slab has no memory.
    let elsewhere = Sequence::new(&[3, 4, 5], [64]);
    let parts = [elsewhere.part(3, None)];
    let refused = split.begin(&Step { sequences: &parts }).map(|_| ()).unwrap_err();
    assert!(
        matches!(refused, StepError::BlockWithoutMemory { block: 64, .. }),
        "{refused}"
    );
}
