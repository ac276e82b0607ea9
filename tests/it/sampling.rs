//! Penalties, biases and log-probabilities, from a request to its answer.

use anyhow::Result;
use flotilla_tests::{Fleet, Question};
use serde_json::{Value, json};

#[tokio::test]
async fn log_probabilities_come_with_every_token_and_only_when_asked_for() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let ask = async |body| fleet.ask(&Question::new("adder", body)).await;
    let told = ask(json!({"prompt": "123+456=", "logprobs": 2})).await?;
    assert_eq!(told.text, "579");
    assert_eq!(told.logprobs.len(), told.token_ids.len());
    for (token, logprobs) in told.token_ids.iter().zip(&told.logprobs) {
        // The adder knows what it says.
        assert!(logprobs.logprob > -0.1 && logprobs.logprob <= 0.0, "{logprobs:?}");
        assert_eq!(logprobs.top.len(), 2);
        assert_eq!(logprobs.top[0], (*token, logprobs.logprob));
        assert!(logprobs.top[1].1 < logprobs.logprob);
    }
    let alone = ask(json!({"prompt": "123+456=", "logprobs": 0})).await?;
    assert!(alone.logprobs.iter().all(|logprobs| logprobs.top.is_empty()));
    assert_eq!(alone.logprobs.len(), told.logprobs.len());
    assert!(ask(json!({"prompt": "123+456="})).await?.logprobs.is_empty());
    let body = json!({"prompt": "2+2=", "logprobs": 1}).to_string();
    let reply = fleet
        .connection
        .client
        .request("flotilla.infer.adder", body.into())
        .await?;
    let reply: Value = serde_json::from_slice(&reply.payload)?;
    let tokens = reply["choices"][0]["logprobs"]["tokens"].as_array().map(Vec::len);
    assert_eq!(tokens, Some(told.token_ids.len() - 2), "{reply}");
    Ok(())
}

#[tokio::test]
async fn biases_and_penalties_change_the_answer() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let ask = async |body| fleet.ask(&Question::new("adder", body)).await;
    let plain = ask(json!({"prompt": "111+111="})).await?;
    assert_eq!(plain.text, "222");
    let two = plain.token_ids[0];
    let mut body = json!({"prompt": "111+111=", "max_tokens": 3});
    body["logit_bias"] = json!({two.to_string(): -100});
    let banned = ask(body).await?;
    assert!(!banned.token_ids.contains(&two), "{}", banned.text);
    let once = |field: &str, value: f32| json!({"prompt": "111+111=", "max_tokens": 3, field: value});
    // A token that was said once keeps a ten-thousandth of its logit.
    let penalised = ask(once("repetition_penalty", 1e4)).await?;
    assert_eq!(
        penalised.token_ids.iter().filter(|token| **token == two).count(),
        1,
        "{}",
        penalised.text
    );
    let same = ask(once("repetition_penalty", 1.0)).await?;
    assert_eq!(same.text, "222");
    let unlikely = ask(json!({"prompt": "2+2=", "temperature": 2, "min_p": 1, "seed": 5})).await?;
    assert_eq!(
        unlikely.text, "4",
        "only the likeliest token is as likely as itself"
    );
    Ok(())
}
