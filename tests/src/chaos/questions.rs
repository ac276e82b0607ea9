//! What is asked, and the undisturbed answers.

use anyhow::{Result, ensure};
use flotilla_protocol::Class;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use crate::known::Known;
use crate::random::Random;
use crate::{Fleet, Question};

/// Some questions; each is asked many times.
#[derive(Debug)]
pub(super) struct Questions {
    known: Vec<Known>,
}

impl Questions {
    /// Draws questions and asks each of them once.
    pub(super) async fn ask(fleet: &Fleet, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed, PURPOSE);
        let drawn: Vec<(Question, usize)> = (0..QUESTIONS).map(|_| draw(&mut random)).collect();
        let asked = stream::iter(drawn).map(async |(question, tokens)| {
            let known = Known::ask(fleet, question).await?;
            ensure!(
                known.token_ids.len() == tokens,
                "simulated answers run to their limit"
            );
            Ok(known)
        });
        Ok(Self {
            known: asked.buffered(QUESTIONS).try_collect().await?,
        })
    }

    /// The question of a request.
    pub(super) fn of(&self, number: usize) -> &Known {
        &self.known[number % self.known.len()]
    }
}

fn draw(random: &mut Random) -> (Question, usize) {
    let model = MODELS[usize::try_from(random.below(MODELS.len() as u64)).expect("an index")];
    let prompt_tokens = 1 + random.below(40);
    // Most are short; some are under way for seconds, so that faults meet them in their middle.
    let tokens = if random.percent(85) {
        1 + random.below(16)
    } else {
        40 + random.below(80)
    };
    let prompt: Vec<u64> = (0..prompt_tokens).map(|_| 1 + random.below(30_000)).collect();
    let body =
        json!({"prompt": prompt, "max_tokens": tokens, "temperature": 1.0, "seed": random.below(1 << 30)});
    let mut question = Question::new(model, body);
    if random.percent(25) {
        question.class = Class::Batch;
    }
    (question, usize::try_from(tokens).expect("a few tokens"))
}

/// The models of the fleet.
pub(super) const MODELS: [&str; 2] = ["m0", "m1"];
/// Different questions: enough for all lengths, few enough to be asked before the faults begin.
const QUESTIONS: usize = 64;
/// Keeps questions apart from faults.
const PURPOSE: u64 = 0x7175_6573_7469_6f6e;
