//! Opening tokenizers, whole, broken and hostile.

use std::error::Error;

use flotilla_text::{AnswerText, FileError, SpecialTokens, StopStrings, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::json;

use crate::fixtures;

#[test]
fn adder_prompt_begins_with_its_special_token() {
    let tokenizer = Tokenizer::open(&fixtures::adder_folder()).unwrap();
    assert_eq!(
        tokenizer.encode("12+3=", SpecialTokens::Add).unwrap(),
        [1, 5, 6, 14, 7, 15]
    );
    assert_eq!(
        tokenizer.encode("12+3=", SpecialTokens::Skip).unwrap(),
        [5, 6, 14, 7, 15]
    );
    assert_eq!(tokenizer.count("12+3=", SpecialTokens::Add).unwrap(), 6);
    assert_eq!(tokenizer.decode_all(&[1, 5, 6, 2, 99]).unwrap(), "12");
    assert_eq!(tokenizer.vocabulary_size(), 16);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
}

#[test]
fn truncation_and_padding_of_the_file_are_not_obeyed() {
    let mut file = fixtures::byte_level();
    file["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    });
    let tokenizer = fixtures::open(&file);
    assert_eq!(tokenizer.count("abcdef", SpecialTokens::Add).unwrap(), 6);
}

#[test]
fn missing_and_malformed_files_are_named() {
    let empty = fixtures::folder(&[]);
    let error = Tokenizer::open(empty.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::File(FileError::Missing { .. })));
    assert!(
        error.to_string().contains("tokenizer.json is missing: fetch"),
        "{error}"
    );

    let broken = fixtures::folder(&[("tokenizer.json", "{\"version\": ")]);
    let error = Tokenizer::open(broken.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("tokenizer.json is not a usable tokenizer"),
        "{error}"
    );
    assert!(error.source().is_some());

    let file = fixtures::byte_level().to_string();
    let config = fixtures::folder(&[("tokenizer.json", &file), ("tokenizer_config.json", "[]")]);
    let error = Tokenizer::open(config.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("tokenizer_config.json is not a tokenizer configuration"),
        "{error}"
    );
}

/// What a mutated file may do is fail; a panic of the library must not leave the crate.
fn use_all_of(content: &str) {
    let folder = fixtures::folder(&[("tokenizer.json", content)]);
    let Ok(tokenizer) = Tokenizer::open(folder.path()) else {
        return;
    };
    let tokens = tokenizer
        .encode("12+3= ab", SpecialTokens::Add)
        .unwrap_or_else(|_refused| vec![1, 5, 6]);
    assert!(
        tokenizer
            .decode_all(&tokens)
            .is_ok_and(|text| text.len() < 1 << 20)
            || !tokens.is_empty()
    );
    let mut answer = AnswerText::new(tokenizer, StopStrings::default());
    for token in tokens {
        if answer.push(token).is_err() {
            return;
        }
    }
    assert!(answer.finish().len() <= 3);
}

proptest! {
    #[test]
    fn mutated_tokenizer_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..12, "[0-9\"\\[\\]{},a-z:]{0,4}"), 1..4),
    ) {
        let mut content = std::fs::read_to_string(fixtures::adder_folder().join("tokenizer.json")).unwrap();
        for (place, removed, inserted) in edits {
            let start = place.index(content.len());
            let end = (start + removed).min(content.len());
            if content.is_char_boundary(start) && content.is_char_boundary(end) {
                content.replace_range(start..end, &inserted);
            }
        }
        use_all_of(&content);
    }

    #[test]
    fn tokenizer_files_with_swapped_parts_never_panic(
        part in prop::sample::select(vec!["decoder", "pre_tokenizer", "post_processor", "normalizer", "model"]),
        other in prop::sample::select(vec![
            json!({"type": "Strip", "content": "1", "start": 2, "stop": 9}),
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": "1", "start": 0, "stop": 99}]}),
            json!({"type": "Metaspace", "replacement": "1", "prepend_scheme": "first", "split": false}),
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [], "special_tokens": {}}),
            json!({"type": "Unigram", "vocab": [], "unk_id": 7}),
            json!({"type": "BPE", "vocab": {"a": 4_294_967_295_u32}, "merges": ["a a"]}),
            json!({"type": "WordPiece", "vocab": {}, "unk_token": "?", "max_input_chars_per_word": 0, "continuing_subword_prefix": ""}),
            json!({"type": "Split", "pattern": {"Regex": "(a*)*$"}, "behavior": "Isolated", "invert": false}),
            json!(7),
            json!([]),
        ]),
    ) {
        let content = std::fs::read(fixtures::adder_folder().join("tokenizer.json")).unwrap();
        let mut file: serde_json::Value = serde_json::from_slice(&content).unwrap();
        file[part] = other;
        use_all_of(&file.to_string());
    }
}
