//! Weights that arrive in pieces, and weights that never do.

use std::sync::Arc;

use flotilla_worker_engine::{
    Backend, CpuBackend, CpuThreads, DecoderModel, KvSpace, LoadError, ModelFolder, ModelLoader, PAGE_BYTES,
    Sampling, SequenceOutput, Step, load_image,
};
use proptest::prelude::*;

use crate::fixture::{
    GOLDEN, KV_SPACE, Sequence, bits, blocks_of, golden_folder, load, loader, map_blocks, read_chunk,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn pieces_of_any_size_in_any_order_make_the_same_model(
        name in 0..GOLDEN.len(),
        piece_bytes in 1usize..5000,
        order in any::<u64>(),
    ) {
        let path = golden_folder(GOLDEN[name]);
        let folder = ModelFolder::open(&path).unwrap();
        let mut loader = loader(&folder);
        let mut pieces = Vec::new();
        for tensor in folder.tensors() {
            let bytes = tensor.read().unwrap();
            let starts = (0..).step_by(piece_bytes);
            let named = |(start, piece): (usize, &[u8])| (&tensor.info.name, start, piece.to_vec());
            pieces.extend(starts.zip(bytes.chunks(piece_bytes)).map(named));
        }
        // A multiplicative hash of the index is a shuffle that the seed fixes.
        let mut index = 0u64;
        pieces.sort_by_cached_key(|_| {
            index += 1;
            index.wrapping_mul(order | 1)
        });
        for (name, start, piece) in pieces {
            loader.place(name, start, &piece).unwrap();
        }
        let mut model = loader.finish().unwrap();
        map_blocks(&mut model);
        let tokens: Vec<u32> = (3..30).collect();
        let logits = read_chunk(&mut model, &mut Sequence::new(&tokens, blocks_of(0)), 27);
        let expected = read_chunk(&mut load(&path), &mut Sequence::new(&tokens, blocks_of(0)), 27);
        prop_assert_eq!(bits(&logits), bits(&expected));
    }
}

#[test]
fn missing_and_incomplete_tensors_are_listed_in_load_order() {
    let folder = ModelFolder::open(&golden_folder("gqa-f32")).unwrap();
    let mut loader = loader(&folder);
    for tensor in folder.tensors() {
        let bytes = tensor.read().unwrap();
        match tensor.info.name.as_str() {
            "model.norm.weight" => {}
            "model.layers.1.mlp.up_proj.weight" => {
                loader.place(&tensor.info.name, 4, &bytes[4..]).unwrap();
            }
            name => loader.place(name, 0, &bytes).unwrap(),
        }
    }
    let LoadError::Missing { tensors } = loader.finish().map(|_| ()).unwrap_err() else {
        panic!("tensors are missing")
    };
    assert_eq!(
        tensors,
        ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    );
}

#[test]
fn pieces_outside_their_tensor_are_refused() {
    let folder = ModelFolder::open(&golden_folder("gqa-f32")).unwrap();
    let mut loader = loader(&folder);
    let refused = loader.place("model.norm.weight", 157, &[0; 4]).unwrap_err();
    assert!(matches!(
        refused,
        LoadError::PieceOutOfBounds {
            offset_bytes: 157,
            piece_bytes: 4,
            tensor_bytes: 160,
            ..
        }
    ));
    assert!(matches!(
        loader.place("model.norm.weight", usize::MAX, &[0; 4]),
        Err(LoadError::PieceOutOfBounds { .. })
    ));
    assert!(matches!(
        loader.place("lm_head.bias", 0, &[]),
        Err(LoadError::UnknownTensor { .. })
    ));
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let cases: [(&str, &[u8]); 5] = [
        ("gqa-f32", &f32::NAN.to_le_bytes()),
        ("gqa-f32", &f32::NEG_INFINITY.to_le_bytes()),
        ("gqa-f16", &0x7c00u16.to_le_bytes()),
        ("mha-bf16-tied", &0x7f80u16.to_le_bytes()),
        ("mha-bf16-tied", &0xffc1u16.to_le_bytes()),
    ];
    for (name, bad) in cases {
        let folder = ModelFolder::open(&golden_folder(name)).unwrap();
        let mut loader = loader(&folder);
        for tensor in folder.tensors() {
            let mut bytes = tensor.read().unwrap();
            if tensor.info.name == "model.layers.1.mlp.down_proj.weight" {
                bytes[7 * bad.len()..][..bad.len()].copy_from_slice(bad);
            }
            loader.place(&tensor.info.name, 0, &bytes).unwrap();
        }
        let LoadError::NotFinite { tensor, element } = loader.finish().map(|_| ()).unwrap_err() else {
            panic!("{name} has a weight that is not finite")
        };
        assert_eq!(
            (tensor.as_str(), element),
            ("model.layers.1.mlp.down_proj.weight", 7),
            "{name}"
        );
    }
}

#[test]
fn more_blocks_than_can_be_told_are_refused() {
    let folder = ModelFolder::open(&golden_folder("gqa-f32")).unwrap();
    let plan = loader(&folder).plan().clone();
    let backend = CpuBackend::new(Arc::new(CpuThreads::for_this_machine()));
    let kv_space = KvSpace {
        slabs_max: (1 << 18) + 1,
        ..KV_SPACE
    };
    let refused = ModelLoader::new(backend, plan, kv_space);
    assert!(
        matches!(refused, Err(LoadError::KvTooLarge { .. })),
        "512 GiB and a page are out of reach"
    );
}

/// The outputs of two sequences that end in different tokens, of a model whose logit 0 is the largest f32 times
/// element `column` of the last hidden state; together, then each alone.
fn outputs_of_overflowing_head(folder: &ModelFolder, column: usize) -> [Vec<SequenceOutput>; 2] {
    let mut loader = loader(folder);
    for tensor in folder.tensors() {
        let mut bytes = tensor.read().unwrap();
        if tensor.info.name == "lm_head.weight" {
            let mut row = [0f32; 40];
            row[column] = f32::MAX;
            bytes[..4 * 40].copy_from_slice(&row.map(f32::to_le_bytes).concat());
        }
        loader.place(&tensor.info.name, 0, &bytes).unwrap();
    }
    let mut model = loader.finish().unwrap();
    map_blocks(&mut model);
    let sequences = [
        Sequence::new(&[3, 50], blocks_of(0)),
        Sequence::new(&[3, 49], blocks_of(1)),
    ];
    let parts = sequences
        .each_ref()
        .map(|sequence| sequence.part(2, Some(Sampling::GREEDY)));
    let mut run = |parts| {
        model
            .submit(&Step { sequences: parts })
            .unwrap()
            .wait()
            .unwrap()
            .sequences
            .to_vec()
    };
    let together = run(&parts);
    let alone = parts.chunks(1).flat_map(run).collect();
    [together, alone]
}

/// Finite weights may still give infinite logits.
#[test]
fn logits_that_are_not_finite_give_no_token_to_that_sequence_alone() {
    let folder = ModelFolder::open(&golden_folder("gqa-f32")).unwrap();
    let mut only_one_overflows = 0;
    for column in 0..40 {
        let [together, alone] = outputs_of_overflowing_head(&folder, column);
        assert_eq!(together, alone);
        let overflows = together
            .iter()
            .filter(|output| **output == SequenceOutput::NoToken)
            .count();
        only_one_overflows += usize::from(overflows == 1);
    }
    assert!(
        only_one_overflows > 5,
        "{only_one_overflows} columns tell the sequences apart"
    );
}

#[test]
fn models_can_move_to_the_thread_of_their_device() {
    let folder = ModelFolder::open(&golden_folder("gqa-f32")).unwrap();
    let model = load(&golden_folder("gqa-f32"));
    let names = std::thread::scope(|scope| {
        let reader = scope.spawn(|| folder.tensor_infos().len());
        let owner = scope.spawn(move || model.plan().tensors().len());
        (reader.join().unwrap(), owner.join().unwrap())
    });
    assert_eq!(names.0, names.1);
}

#[test]
fn model_that_was_taken_off_the_device_and_brought_back_makes_the_same_logits() {
    for name in GOLDEN {
        let path = golden_folder(name);
        let tokens: Vec<u32> = (3..30).collect();
        let read = |model: &mut DecoderModel<CpuBackend>| {
            bits(&read_chunk(model, &mut Sequence::new(&tokens, blocks_of(0)), 27))
        };
        let mut model = load(&path);
        let before = read(&mut model);
        let plan = model.plan().clone();
        let image = model.into_images().unwrap().remove(0);
        let threads = Arc::new(CpuThreads::for_this_machine());
        let mut model = load_image(CpuBackend::new(threads), plan, image, KV_SPACE).unwrap();
        map_blocks(&mut model);
        assert_eq!(read(&mut model), before, "{name}");
    }
}

#[test]
fn image_of_another_size_is_refused() {
    let plan = load(&golden_folder("gqa-f32")).plan().clone();
    let backend = || CpuBackend::new(Arc::new(CpuThreads::for_this_machine()));
    let (mut other, planned) = (backend(), plan.weights_pages());
    let region = other.reserve((planned + 1) * PAGE_BYTES).unwrap();
    other.map_pages(region, 0..planned + 1).unwrap();
    let image = other.take_out(region).unwrap();
    let refused = load_image(backend(), plan, image, KvSpace::NONE)
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(refused, LoadError::OtherImage { pages, planned_pages } if pages == planned_pages + 1),
        "{refused}"
    );
}
