//! Answers of a given shape, drawn at random from what their grammars allow.

use flotilla_text::{
    AnswerGrammar, AnswerText, GrammarError, GrammarVocabulary, JsonGrammar, OneOf, StopStrings, Tokenizer,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::fixtures::{self, BYTE_LEVEL_END};
use crate::schemas::schema;

fn grammar(schema: &Value) -> JsonGrammar {
    JsonGrammar::of_schema(object(schema), OneOf::Exact)
}

fn object(schema: &Value) -> Map<String, Value> {
    schema.as_object().unwrap().clone()
}

fn is_allowed(mask: &[u32], token: u32) -> bool {
    mask[token as usize / 32] >> (token % 32) & 1 == 1
}

fn allowed(answer: &mut AnswerGrammar, size: u32) -> Vec<u32> {
    let mask = answer.mask().unwrap();
    (0..size).filter(|token| is_allowed(&mask, *token)).collect()
}

/// Tokens of an answer, each the one that a number chooses among those that are allowed; ends are taken where
/// they may be. None when the numbers do not suffice.
fn drawn(
    answer: &mut AnswerGrammar,
    size: u32,
    end: u32,
    numbers: impl Iterator<Item = u64>,
) -> Option<Vec<u32>> {
    let mut tokens = Vec::new();
    for number in numbers {
        let allowed = allowed(answer, size);
        if allowed.contains(&end) {
            return Some(tokens);
        }
        let token = allowed[usize::try_from(number).unwrap() % allowed.len()];
        answer.push(token).unwrap();
        tokens.push(token);
    }
    None
}

/// SplitMix64.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    (1..).map(move |index: u64| {
        let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 1
    })
}

/// The text of tokens as a worker streams it.
fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let mut answer = AnswerText::new(tokenizer.clone(), StopStrings::default());
    let mut text: String = tokens
        .iter()
        .map(|token| answer.push(*token).unwrap().text)
        .collect();
    text.push_str(&answer.finish());
    text
}

/// Bytes, and tokens that end or begin within characters and strings.
fn byte_level() -> (Tokenizer, GrammarVocabulary) {
    let tokenizer = fixtures::open(&fixtures::byte_level());
    let size = u32::try_from(tokenizer.vocabulary_size()).unwrap();
    let vocabulary = GrammarVocabulary::new(&tokenizer, size, &[BYTE_LEVEL_END]).unwrap();
    (tokenizer, vocabulary)
}

/// Llama 2's kind: blanks are written as U+2581, the first of a text is taken away, and bytes have tokens.
fn byte_fallback() -> (Tokenizer, GrammarVocabulary) {
    let tokenizer = fixtures::open(&fixtures::byte_fallback());
    let size = u32::try_from(tokenizer.vocabulary_size()).unwrap();
    let vocabulary = GrammarVocabulary::new(&tokenizer, size, &[fixtures::BYTE_FALLBACK_END]).unwrap();
    (tokenizer, vocabulary)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_is_drawn_parses_and_is_of_its_schema(
        schema in schema(), seed in any::<u64>(), is_fallback in any::<bool>(), broken_after in 0usize..40,
    ) {
        let (tokenizer, vocabulary) = if is_fallback { byte_fallback() } else { byte_level() };
        let end = if is_fallback { fixtures::BYTE_FALLBACK_END } else { BYTE_LEVEL_END };
        let size = u32::try_from(tokenizer.vocabulary_size()).unwrap();
        let grammar = grammar(&schema.to_value());
        prop_assert_eq!(grammar.check(), Ok(()), "{}", schema.to_value());
        let mut answer = vocabulary.answer(&grammar).unwrap();
        let drawn_tokens = drawn(&mut answer, size, end, numbers(seed).take(4000));
        // A string without an end takes its time where one token of 250 closes it.
        prop_assume!(drawn_tokens.is_some());
        let tokens = drawn_tokens.unwrap();
        let text = streamed(&tokenizer, &tokens);
        let value: Value = serde_json::from_str(&text).expect(&text);
        prop_assert!(schema.admits(&value), "{} is not of {}", text, schema.to_value());

        // Another worker, which has the journal's tokens and never saw a mask.
        let mut resumed = vocabulary.answer(&grammar).unwrap();
        let broken_after = broken_after.min(tokens.len());
        tokens[..broken_after].iter().for_each(|token| resumed.push(*token).unwrap());
        let rest = drawn(&mut resumed, size, end, numbers(seed).skip(broken_after)).unwrap();
        prop_assert_eq!(rest, &tokens[broken_after..]);
    }
}

#[test]
fn answer_ends_where_the_grammar_does() {
    let (_, vocabulary) = byte_level();
    let mut answer = vocabulary
        .answer(&grammar(&json!({"enum": ["a", "ab"]})))
        .unwrap();
    for byte in b"\"a" {
        assert!(!allowed(&mut answer, 262).contains(&BYTE_LEVEL_END));
        answer.push(u32::from(*byte)).unwrap();
    }
    assert_eq!(allowed(&mut answer, 262), [u32::from(b'"'), u32::from(b'b')]);
    answer.push(u32::from(b'"')).unwrap();
    assert!(answer.is_complete());
    assert_eq!(allowed(&mut answer, 262), [BYTE_LEVEL_END]);

    let mut number = vocabulary.answer(&grammar(&json!({"type": "integer"}))).unwrap();
    number.push(u32::from(b'1')).unwrap();
    assert!(!number.is_complete(), "another digit may follow");
    assert!(allowed(&mut number, 262).contains(&BYTE_LEVEL_END));
}

#[test]
fn end_tokens_are_no_text_even_if_they_have_one() {
    let (tokenizer, _) = byte_level();
    let vocabulary = GrammarVocabulary::new(&tokenizer, 262, &[u32::from(b'x'), 9999]).unwrap();
    let mut answer = vocabulary.answer(&grammar(&json!({"type": "string"}))).unwrap();
    answer.push(u32::from(b'"')).unwrap();
    let letters = allowed(&mut answer, 262);
    assert!(letters.contains(&u32::from(b'w')) && !letters.contains(&u32::from(b'x')));
    assert!(!letters.contains(&BYTE_LEVEL_END), "a special token is no text");
    answer.push(u32::from(b'"')).unwrap();
    assert_eq!(allowed(&mut answer, 262), [u32::from(b'x')]);
}

#[test]
fn rows_without_a_token_are_never_allowed_and_tokens_without_a_row_are_left_out() {
    let (tokenizer, _) = byte_level();
    for size in [200, 300] {
        let vocabulary = GrammarVocabulary::new(&tokenizer, size, &[]).unwrap();
        let mut answer = vocabulary.answer(&JsonGrammar::any_object()).unwrap();
        assert_eq!(allowed(&mut answer, size), [u32::from(b'{')]);
        "{\"a\":\""
            .bytes()
            .for_each(|byte| answer.push(byte.into()).unwrap());
        let letters = allowed(&mut answer, size);
        assert!(!letters.contains(&260), "the second half of an emoji");
        assert_eq!(letters.contains(&261), size == 300, "a token of the text");
        assert!(letters.iter().all(|token| *token < 262));
        "b\"}".bytes().for_each(|byte| answer.push(byte.into()).unwrap());
        assert!(answer.is_complete());
        assert_eq!(allowed(&mut answer, size), [0; 0], "there is no end token");
    }
}

#[test]
fn first_token_may_have_the_blank_that_is_taken_away() {
    let (tokenizer, vocabulary) = byte_fallback();
    let size = u32::try_from(tokenizer.vocabulary_size()).unwrap();
    let (plain, blank) = (fixtures::fallback_id("{"), fixtures::fallback_id("▁{"));
    let mut answer = vocabulary.answer(&JsonGrammar::any_object()).unwrap();
    let first = allowed(&mut answer, size);
    assert!(first.contains(&plain) && first.contains(&blank), "{first:?}");
    answer.push(blank).unwrap();
    assert_eq!(streamed(&tokenizer, &[blank]), "{");
    let mut other = vocabulary.answer(&JsonGrammar::any_object()).unwrap();
    other.push(plain).unwrap();
    assert_eq!(answer.mask(), other.mask());
}

/// The bytes that masks are made of are those that answers are made of.
#[test]
fn each_token_is_masked_by_the_bytes_that_it_adds_to_a_text() {
    for (tokenizer, vocabulary) in [byte_level(), byte_fallback()] {
        let size = u32::try_from(tokenizer.vocabulary_size()).unwrap();
        let open = tokenizer
            .encode("\"", flotilla_text::SpecialTokens::Skip)
            .unwrap();
        let quote = *open.last().unwrap();
        for token in 0..size {
            let added = streamed(&tokenizer, &[quote, token, quote]);
            let Some(added) = added.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
                panic!("token {token} took quotes away: {added:?}")
            };
            let is_cut = added.contains(char::REPLACEMENT_CHARACTER);
            if is_cut || added.is_empty() {
                continue;
            }
            let expected = json!({"const": added});
            let mut answer = vocabulary.answer(&grammar(&expected)).unwrap();
            answer.push(quote).unwrap();
            // What is escaped in JSON begins with a backslash, whatever it is.
            let is_escaped = |char: char| char < ' ' || matches!(char, '"' | '\\' | '\x7f');
            let is_plain = added == "\\" || !added.chars().any(is_escaped);
            assert_eq!(
                is_allowed(&answer.mask().unwrap(), token),
                is_plain,
                "{token} is {added:?}"
            );
        }
    }
}

#[test]
fn schemas_that_cannot_be_obeyed_are_refused_with_what_is_wrong() {
    let cases = [
        (json!({"type": "strin"}), "Invalid type: strin"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"not": {"type": "string"}}), "not"),
        (
            json!({"$ref": "https://example.com/schema"}),
            "https://example.com/schema",
        ),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), "minimum"),
        (json!({"type": "string", "pattern": "("}), "("),
        (
            json!({"x-guidance": {"whitespace_flexible": false}}),
            "x-guidance",
        ),
        (
            json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}),
            "oneOf",
        ),
    ];
    for (schema, part) in cases {
        match grammar(&schema).check() {
            Err(GrammarError::Schema { message }) => assert!(message.contains(part), "{schema}: {message}"),
            other => panic!("{schema}: {other:?}"),
        }
    }
    assert_eq!(grammar(&json!({"$ref": "#"})).check(), Err(GrammarError::NoToken));
    let either = json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]});
    assert_eq!(
        JsonGrammar::of_schema(object(&either), OneOf::Any).check(),
        Ok(())
    );
    let apart = json!({"oneOf": [{"type": "string"}, {"type": "integer"}]});
    assert_eq!(grammar(&apart).check(), Ok(()), "nothing is both");
}

#[test]
fn tokens_that_are_not_allowed_are_refused() {
    let (_, vocabulary) = byte_level();
    let mut answer = vocabulary.answer(&JsonGrammar::any_object()).unwrap();
    assert_eq!(answer.push(7), Err(GrammarError::Refused { token: 7 }));
    assert_eq!(
        answer.push(BYTE_LEVEL_END),
        Err(GrammarError::Refused {
            token: BYTE_LEVEL_END
        })
    );
}

#[test]
fn vocabulary_that_cannot_write_the_answer_has_no_token_for_it() {
    let tokenizer = Tokenizer::open(&fixtures::adder_folder()).unwrap();
    let vocabulary = GrammarVocabulary::new(&tokenizer, 16, &[2]).unwrap();
    let mut object = vocabulary.answer(&JsonGrammar::any_object()).unwrap();
    assert_eq!(object.mask(), Err(GrammarError::NoToken));
    let mut number = vocabulary.answer(&grammar(&json!({"type": "integer"}))).unwrap();
    assert_eq!(allowed(&mut number, 16), (4..14).collect::<Vec<_>>());
}

#[test]
fn tokenizers_whose_tokens_depend_on_each_other_are_refused() {
    let pieces = fixtures::with(
        vec!["a".to_owned(), "##b".to_owned()],
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
    );
    let refused = GrammarVocabulary::new(&fixtures::open(&pieces), 2, &[]);
    assert_eq!(refused.unwrap_err(), GrammarError::Tokenizer);
}
