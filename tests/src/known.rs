//! Questions whose undisturbed answers are known.

use anyhow::{Result, ensure};
use flotilla_client::new_request_id;

use crate::{Fleet, Question};

/// A question with the answer that a fleet without faults gives.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    question: Question,
    /// Tokens of its answer.
    pub(crate) token_ids: Vec<u32>,
    /// Text of its answer.
    pub(crate) text: String,
}

impl Known {
    /// Asks a fleet that nothing disturbs.
    pub(crate) async fn ask(fleet: &Fleet, question: Question) -> Result<Self> {
        let answer = fleet.ask(&question).await?;
        ensure!(
            answer.end.is_ok(),
            "an undisturbed answer fails: {:?}",
            answer.end
        );
        Ok(Self {
            question,
            token_ids: answer.token_ids,
            text: answer.text,
        })
    }

    /// The question under an id of its own.
    pub(crate) fn again(&self) -> Question {
        Question {
            request: new_request_id(),
            ..self.question.clone()
        }
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.token_ids.len() as u64
    }
}
