//! Streamed text against the text of all tokens at once.

use std::sync::LazyLock;

use flotilla_text::{AnswerError, AnswerText, SimulatedVocabulary, SpecialTokens, StopStrings, Tokenizer};
use proptest::prelude::*;
use serde_json::json;

use crate::fixtures::{self, BYTE_LEVEL_END};

static BYTE_LEVEL: LazyLock<Tokenizer> = LazyLock::new(|| fixtures::open(&fixtures::byte_level()));
static ADDER: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::open(&fixtures::adder_folder()).unwrap());
static METASPACE: LazyLock<Tokenizer> = LazyLock::new(|| {
    let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    fixtures::open(&fixtures::with(words(&["▁", "▁a", "b", "▁c▁", "界"]), decoder))
});
static WORD_PIECE: LazyLock<Tokenizer> = LazyLock::new(|| {
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    fixtures::open(&fixtures::with(
        words(&["a", "##b", ".", "do", "n't", "界"]),
        decoder,
    ))
});
static WORD_SUFFIX: LazyLock<Tokenizer> = LazyLock::new(|| {
    let decoder = json!({"type": "BPEDecoder", "suffix": "</w>"});
    fixtures::open(&fixtures::with(words(&["a", "b</w>", "c", "d</w>"]), decoder))
});
static NO_DECODER: LazyLock<Tokenizer> =
    LazyLock::new(|| fixtures::open(&fixtures::with(words(&["a", "b", "界"]), json!(null))));

/// The decoder of Llama 2, Mistral and Gemma, with some of its byte tokens.
static BYTE_FALLBACK: LazyLock<Tokenizer> = LazyLock::new(|| {
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    let tokens = [
        "▁", "▁a", "b", "<0x20>", "<0x41>", "<0xE7>", "<0x95>", "<0x8C>", "界", "▁▁",
    ];
    fixtures::open(&fixtures::with(words(&tokens), decoder))
});

fn words(tokens: &[&str]) -> Vec<String> {
    tokens.iter().map(ToString::to_string).collect()
}

fn stops(strings: &[String]) -> StopStrings {
    StopStrings::new(strings).unwrap()
}

/// The text before the first stop string, by looking at every end of the text.
fn cut<'a>(text: &'a str, stops: &[String]) -> &'a str {
    for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let longest = stops
            .iter()
            .filter(|stop| text[..end].ends_with(*stop))
            .map(String::len)
            .max();
        if let Some(bytes) = longest {
            return &text[..end - bytes];
        }
    }
    text
}

/// The text of an answer that changes its worker after each of these tokens.
fn streamed(tokenizer: &Tokenizer, tokens: &[u32], strings: &[String], changes: &[usize]) -> String {
    let mut text = String::new();
    let mut answer = AnswerText::new(tokenizer.clone(), stops(strings));
    for (index, &token) in tokens.iter().enumerate() {
        if changes.contains(&index) {
            answer =
                AnswerText::resume(tokenizer.clone(), stops(strings), &tokens[..index], text.len()).unwrap();
        }
        let emitted = answer.push(token).unwrap();
        text.push_str(&emitted.text);
        assert_eq!(emitted.stopped, answer.stopped());
        assert_eq!(answer.emitted_bytes(), text.len());
    }
    text.push_str(&answer.finish());
    text
}

fn streamed_equals_whole(
    tokenizer: &Tokenizer,
    tokens: &[u32],
    strings: &[String],
    changes: &[usize],
) -> Result<(), TestCaseError> {
    let whole = tokenizer.decode_all(tokens).unwrap();
    prop_assert_eq!(
        streamed(tokenizer, tokens, strings, changes),
        cut(&whole, strings),
        "of {:?}",
        whole
    );
    Ok(())
}

fn changes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0_usize..24, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn byte_level_text_is_that_of_all_tokens(
        tokens in prop::collection::vec(prop_oneof![0_u32..270, 256_u32..262], 0..24),
        strings in prop::collection::vec("[a \u{fffd}界]{1,3}|STOP|the|😀a", 0..3),
        changes in changes(),
    ) {
        streamed_equals_whole(&BYTE_LEVEL, &tokens, &strings, &changes)?;
    }

    #[test]
    fn encoded_text_comes_back_cut_at_its_stop_string(
        text in "([a-c界é😀 \n]|STOP){0,16}",
        strings in prop::collection::vec("[a-c界é😀]{1,3}", 0..3),
        changes in changes(),
    ) {
        let tokens = BYTE_LEVEL.encode(&text, SpecialTokens::Skip).unwrap();
        prop_assert_eq!(streamed(&BYTE_LEVEL, &tokens, &strings, &changes), cut(&text, &strings));
    }

    #[test]
    fn simulated_text_is_that_of_all_tokens_and_its_tokens_come_back(
        tokens in prop::collection::vec(0_u32..110, 0..24),
        strings in prop::collection::vec("[a-e u]{1,3}", 0..3),
        changes in changes(),
    ) {
        let simulated = Tokenizer::simulated(SimulatedVocabulary::new(100));
        streamed_equals_whole(&simulated, &tokens, &strings, &changes)?;
        let text = simulated.decode_all(&tokens).unwrap();
        let words: Vec<u32> = tokens.into_iter().filter(|token| (1..100).contains(token)).collect();
        prop_assert_eq!(simulated.encode(&text, SpecialTokens::Add).unwrap(), words);
    }

    #[test]
    fn adder_text_is_that_of_all_tokens(
        tokens in prop::collection::vec(0_u32..18, 0..24),
        strings in prop::collection::vec("[0-9+=]{1,2}", 0..3),
        changes in changes(),
    ) {
        streamed_equals_whole(&ADDER, &tokens, &strings, &changes)?;
    }

    #[test]
    fn text_of_decoders_that_move_spaces_is_that_of_all_tokens(
        tokens in prop::collection::vec(0_u32..8, 0..16),
        strings in prop::collection::vec("[a-d ]{1,2}", 0..3),
        changes in changes(),
    ) {
        for tokenizer in [&METASPACE, &WORD_PIECE, &WORD_SUFFIX, &NO_DECODER] {
            streamed_equals_whole(tokenizer, &tokens, &strings, &changes)?;
        }
    }

    #[test]
    fn byte_fallback_text_is_that_of_all_tokens_where_its_bytes_are_characters(
        tokens in prop::collection::vec(0_u32..10, 0..16),
        strings in prop::collection::vec("[abA 界]{1,2}", 0..3),
        changes in changes(),
    ) {
        if BYTE_FALLBACK.decode_all(&tokens).unwrap().contains('\u{fffd}') {
            streamed(&BYTE_FALLBACK, &tokens, &strings, &changes);
        } else {
            streamed_equals_whole(&BYTE_FALLBACK, &tokens, &strings, &changes)?;
        }
    }

    #[test]
    fn flushed_text_is_not_emitted_again(
        tokens in prop::collection::vec(prop_oneof![0_u32..257, 256_u32..262], 0..16),
        strings in prop::collection::vec("[a 界]{1,3}|STOP", 0..3),
    ) {
        let whole = streamed(&BYTE_LEVEL, &tokens, &strings, &[]);
        for (emitted_bytes, _) in whole.char_indices().chain([(whole.len(), ' ')]) {
            let resumed = AnswerText::resume(BYTE_LEVEL.clone(), stops(&strings), &tokens, emitted_bytes).unwrap();
            prop_assert_eq!(resumed.finish(), &whole[emitted_bytes..]);
        }
    }
}

#[test]
fn half_an_emoji_is_held_back() {
    let mut answer = AnswerText::new(BYTE_LEVEL.clone(), StopStrings::default());
    assert_eq!(answer.push(259).unwrap().text, "");
    assert_eq!(answer.push(BYTE_LEVEL_END).unwrap().text, "");
    assert_eq!(answer.push(260).unwrap().text, "😀a");
    assert_eq!(answer.push(259).unwrap().text, "");
    assert_eq!(answer.finish(), "\u{fffd}");
}

#[test]
fn bytes_that_can_be_no_character_are_emitted_at_once() {
    let mut answer = AnswerText::new(BYTE_LEVEL.clone(), StopStrings::default());
    for _ in 0..1000 {
        assert_eq!(answer.push(0xff).unwrap().text, "\u{fffd}");
    }
}

#[test]
fn text_that_cannot_be_of_the_tokens_is_refused() {
    let resume = |tokens: &[u32], bytes| {
        AnswerText::resume(BYTE_LEVEL.clone(), StopStrings::default(), tokens, bytes).map(|_| ())
    };
    assert!(matches!(
        resume(&[65, 66], 3),
        Err(AnswerError::EmittedBeyondTokens {
            emitted_bytes: 3,
            possible_bytes: 2
        })
    ));
    assert!(matches!(
        resume(&[258], 1),
        Err(AnswerError::EmittedInsideCharacter { emitted_bytes: 1 })
    ));
    assert!(resume(&[258], 3).is_ok());
}

/// `Strip` counts on tokens as long as its cut, and panics on shorter ones.
#[test]
fn decoder_that_panics_is_an_error_that_names_the_token() {
    let decoder = json!({"type": "Strip", "content": " ", "start": 0, "stop": 3});
    let tokenizer = fixtures::open(&fixtures::with(words(&["   ", " "]), decoder));
    let mut answer = AnswerText::new(tokenizer, StopStrings::default());
    assert_eq!(answer.push(0).unwrap().text, "");
    assert!(matches!(answer.push(1), Err(AnswerError::Token { token: 1, .. })));
}
