//! What is asked, how its client behaves, and the undisturbed answers.

use anyhow::Result;
use flotilla_protocol::Class;
use serde_json::{Value, json};

use crate::known::Known;
use crate::random::Random;
use crate::{Fleet, Question};

/// What a client does with its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Follows the events to the end.
    Follow,
    /// Asks by request and reply.
    Infer,
    /// Cancels after the first tokens.
    Cancel,
    /// Goes away after the first tokens; the request ends with it.
    Leave,
    /// Asks what is refused.
    Wrong,
}

/// The questions.
#[derive(Debug)]
pub(super) struct Mix {
    known: Vec<Known>,
}

impl Mix {
    /// Draws questions and asks each of them once.
    pub(super) async fn draw(fleet: &Fleet, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed, PURPOSE);
        let mut known = Vec::with_capacity(QUESTIONS);
        for _ in 0..QUESTIONS {
            known.push(Known::ask(fleet, draw(&mut random)).await?);
        }
        Ok(Self { known })
    }

    /// A question, and what its client does.
    pub(super) fn pick(&self, random: &mut Random) -> (&Known, Manner) {
        let index = usize::try_from(random.below(self.known.len() as u64)).expect("an index");
        let manner = match random.below(100) {
            0..=77 => Manner::Follow,
            78..=87 => Manner::Infer,
            88..=92 => Manner::Cancel,
            93..=95 => Manner::Leave,
            _ => Manner::Wrong,
        };
        (&self.known[index], manner)
    }
}

fn draw(random: &mut Random) -> Question {
    let (model, mut body) = match random.below(100) {
        0..=24 => (
            "adder",
            json!({"prompt": format!("{}+{}=", random.below(1000), random.below(1000))}),
        ),
        25..=44 => (
            "sorter",
            json!({"prompt": format!("sort {}=", random.below(100_000))}),
        ),
        45..=59 => ("reverser", json!({"prompt": "reverse flotilla="})),
        60..=89 => (LONG, long_prompt(random)),
        _ => (
            SHAPED,
            json!({"prompt": "a person:", "response_format": person()}),
        ),
    };
    body["max_tokens"] = json!(96);
    body["seed"] = json!(random.below(1 << 30));
    if random.percent(50) {
        body["temperature"] = json!(0.0);
    }
    let mut question = Question::new(model, body);
    if random.percent(25) {
        question.class = Class::Batch;
    }
    question
}

/// Some share a beginning, so that blocks of keys and values are found again.
fn long_prompt(random: &mut Random) -> Value {
    let shared = (0..80).map(|word| 2 + word % 40);
    let own: Vec<u64> = (0..random.below(60)).map(|_| 2 + random.below(500)).collect();
    let words: Vec<String> = shared.chain(own).map(|word| format!("w{word}")).collect();
    json!({"prompt": words.join(" ")})
}

fn person() -> Value {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "kind": {"enum": ["cat", "dog", null]},
            "legs": {"type": "integer", "minimum": 0, "maximum": 4},
        },
        "required": ["name", "kind", "legs"],
        "additionalProperties": false,
    });
    json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": true}})
}

/// A model with long answers.
pub(super) const LONG: &str = "long";
/// A model that can spell JSON.
pub(super) const SHAPED: &str = "shaped";
/// Different questions: enough for all kinds.
const QUESTIONS: usize = 48;
/// Keeps questions apart from their times.
const PURPOSE: u64 = 0x6d69_7875_7265_7321;
