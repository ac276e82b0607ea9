//! Answers that must have a shape.

use flotilla_text::{GrammarError, GrammarVocabulary, JsonGrammar, OneOf};
use serde_json::{Value, json};

use super::*;

impl Loaded {
    fn grammar(&self, schema: &Value, end_tokens: &[u32]) -> Option<Box<AnswerGrammar>> {
        let tokenizer = self.opened.text.prompts.tokenizer();
        let vocabulary = GrammarVocabulary::new(tokenizer, 16, end_tokens).unwrap();
        let schema = schema.as_object().unwrap().clone();
        let answer = vocabulary.answer(&JsonGrammar::of_schema(schema, OneOf::Exact));
        Some(Box::new(answer.unwrap()))
    }

    fn shaped(&self, prompt: &str, schema: &Value) -> NewRun {
        NewRun {
            grammar: self.grammar(schema, &self.opened.text.stop_token_ids),
            ..self.sum(prompt, 64)
        }
    }
}

const WARM: Sampling = Sampling {
    temperature: 4.0,
    ..Sampling::GREEDY
};

#[tokio::test]
async fn answer_has_the_shape_that_is_asked_for_and_ends_with_it() {
    let loaded = loaded(4).await;
    for (schema, answer) in [
        (json!({"type": "integer"}), "579"),
        (json!({"enum": [1, 57, 580]}), "57"),
        (json!({"type": "integer", "minimum": 600, "maximum": 699}), "679"),
    ] {
        let run = loaded
            .engine
            .join(loaded.shaped("123+456=", &schema))
            .await
            .unwrap();
        let made = everything(run).await;
        assert_eq!(loaded.text(&made), answer, "{schema}");
        assert_eq!(made.last(), Some(&Made::Ended(RunEnd::Stop)));
    }
}

#[tokio::test]
async fn model_without_an_end_token_stops_where_the_shape_is_complete() {
    let loaded = loaded(4).await;
    let mut run = loaded.sum("123+456=", 64);
    run.stop_token_ids = [].into();
    run.grammar = loaded.grammar(&json!({"enum": [579]}), &[]);
    let made = everything(loaded.engine.join(run).await.unwrap()).await;
    assert_eq!(loaded.text(&made), "579");
    assert_eq!(made.last(), Some(&Made::Ended(RunEnd::Stop)));
}

#[tokio::test]
async fn answer_that_cannot_go_on_ends_with_the_reason_and_others_go_on() {
    let loaded = loaded(4).await;
    let free = loaded.engine.join(loaded.sum("123+456=", 64)).await.unwrap();
    let object = loaded.shaped("123+456=", &json!({"type": "object"}));
    let made = everything(loaded.engine.join(object).await.unwrap()).await;
    assert_eq!(made, [Made::Ended(RunEnd::Shapeless(GrammarError::NoToken))]);

    let mut foreign = loaded.shaped("123+456=", &json!({"enum": [579]}));
    foreign.tokens.push(4);
    let made = everything(loaded.engine.join(foreign).await.unwrap()).await;
    assert_eq!(
        made,
        [Made::Ended(RunEnd::Shapeless(GrammarError::Refused { token: 4 }))],
        "a journal of another answer"
    );
    assert_eq!(loaded.text(&everything(free).await), "579");
}

/// The mask is made anew from the tokens that earlier attempts made, and choosing among what it leaves is a
/// function of seed and position.
#[tokio::test]
async fn continued_answer_of_a_shape_is_the_same_as_an_uninterrupted_one() {
    let loaded = loaded(4).await;
    for seed in 0..8 {
        let run = |made: &[u32]| {
            let mut run = loaded.shaped(
                "777+333=",
                &json!({"type": "number", "minimum": 10, "maximum": 9999999}),
            );
            run.sampling = Sampling {
                seed,
                logprobs: Some(20),
                ..WARM
            };
            run.tokens.extend(made);
            run.new_tokens_max -= made.len();
            run
        };
        let whole = everything(loaded.engine.join(run(&[])).await.unwrap()).await;
        let number: f64 = loaded.text(&whole).parse().unwrap();
        assert!((10.0..=9_999_999.0).contains(&number), "{number}");
        let ids: Vec<u32> = whole.iter().filter_map(token).collect();
        for made in 1..ids.len() {
            let rest = everything(loaded.engine.join(run(&ids[..made])).await.unwrap()).await;
            assert_eq!(rest, whole[made..]);
        }
    }
}

/// Digits are all that the mask leaves, so they share the whole probability.
#[tokio::test]
async fn logprobs_are_of_what_the_shape_allows() {
    let loaded = loaded(4).await;
    let mut run = loaded.shaped("1+1=", &json!({"type": "integer", "minimum": 1, "maximum": 3}));
    run.sampling.logprobs = Some(20);
    let made = everything(loaded.engine.join(run).await.unwrap()).await;
    let Made::Token {
        logprobs: Some(first),
        ..
    } = &made[0]
    else {
        panic!("{made:?}")
    };
    let mut ids: Vec<u32> = first.top().iter().map(|entry| entry.token).collect();
    ids.sort_unstable();
    assert_eq!(ids, [5, 6, 7]);
    let total: f32 = first.top().iter().map(|entry| entry.logprob.exp()).sum();
    assert!((total - 1.0).abs() < 1e-4, "{total}");
}

/// Nobody else would wake the thread when all its requests are left out.
#[tokio::test]
async fn engine_is_told_of_masks_that_are_waited_for_outside_of_the_steps() {
    let loaded = loaded(4).await;
    let (told, mut inbox, _pool) = Engine::with_inbox(Pool::new());
    let masks = loaded.engine.masks.as_ref().unwrap();
    let shape = |drawn: &[u32]| {
        let grammar = loaded.grammar(&json!({"type": "integer"}), &[2]).unwrap();
        masks.begin(*grammar, drawn, told.commands.downgrade())
    };
    let quick = shape(&[5]);
    assert!(quick.is_ready(), "the step waits for it");
    // So many tokens to take in first count as slow.
    let slow = shape(&[5; 300]);
    let command = timeout(PATIENCE, inbox.recv()).await.unwrap();
    assert!(matches!(command, Some(Command::Drained)));
    assert!(slow.is_ready());
    assert_eq!(slow.mask().wait(), quick.mask().wait());
    assert!(inbox.try_recv().is_err(), "quick ones wake nobody");
}

fn token(made: &Made) -> Option<u32> {
    match made {
        Made::Token { id, .. } => Some(*id),
        Made::Ended(_) => None,
    }
}
