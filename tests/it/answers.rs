//! Right answers from the demonstration models, in every dialect of a request.

use anyhow::Result;
use flotilla_client::Answer;
use flotilla_protocol::event::FinishReason;
use flotilla_protocol::{Attempt, Class};
use flotilla_tests::{Fleet, Question};
use serde_json::json;

fn finish_reason(answer: &Answer) -> FinishReason {
    answer
        .end
        .as_ref()
        .expect("an answer and no failure")
        .finish_reason
}

#[tokio::test]
async fn demonstration_models_answer_right_in_one_attempt() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let cases = [
        ("adder", "123+456=", "579"),
        ("adder", "999+1=", "1000"),
        ("sorter", "sort 52914=", "12459"),
        ("reverser", "reverse hello=", "olleh"),
    ];
    for (model, prompt, right) in cases {
        let answer = fleet.ask(&Question::prompt(model, prompt)).await?;
        assert_eq!(answer.text, right, "{model}: {prompt}");
        assert_eq!(finish_reason(&answer), FinishReason::Stop);
        assert_eq!(answer.attempts, Attempt(1));
        let usage = answer.end.expect("checked above").usage;
        assert_eq!(
            usage.prompt_tokens as usize,
            prompt.len() + 1,
            "every character, and the begin token"
        );
        assert_eq!(usage.completion_tokens as usize, right.len());
    }
    Ok(())
}

#[tokio::test]
async fn request_in_message_pack_is_answered_in_message_pack() -> Result<()> {
    use flotilla_client::{Events, NewRequest, submit};
    use flotilla_protocol::Encoding;

    let fleet = Fleet::builder().start().await?;
    let question = Question::new("adder", json!({"prompt": "20+22="}));
    let mut events = Events::subscribe(&fleet.connection, question.request.clone()).await?;
    let new = NewRequest {
        request: question.request.clone(),
        class: Class::Batch,
        model: question.model.clone(),
        encoding: Encoding::MessagePack,
        body: Encoding::MessagePack.encode(&question.body)?,
    };
    submit(&fleet.connection, new).await?;
    assert_eq!(Answer::collect(&mut events).await?.text, "42");
    let stored = flotilla_client::Journal::new(&fleet.connection)
        .read(&question.request, 0)
        .await?;
    assert!(stored.iter().all(|entry| entry.encoding == Encoding::MessagePack));
    Ok(())
}

#[tokio::test]
async fn limits_of_the_answer_are_kept() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let short = fleet
        .ask(&Question::new(
            "adder",
            json!({"prompt": "123+456=", "max_tokens": 2}),
        ))
        .await?;
    assert_eq!(
        (short.text.as_str(), finish_reason(&short)),
        ("57", FinishReason::Length)
    );

    let stopped = fleet
        .ask(&Question::new(
            "adder",
            json!({"prompt": "123+456=", "stop": ["9"]}),
        ))
        .await?;
    assert_eq!(
        (stopped.text.as_str(), finish_reason(&stopped)),
        ("57", FinishReason::Stop)
    );

    let tokens = fleet
        .ask(&Question::new("adder", json!({"prompt": [1, 5, 14, 6, 15]})))
        .await?;
    assert_eq!(
        tokens.end.expect("an answer").usage.prompt_tokens,
        5,
        "token ids are taken as they are"
    );
    Ok(())
}

#[tokio::test]
async fn prompt_that_a_worker_has_read_before_is_taken_from_its_cache_and_answered_the_same() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let prompt: Vec<u32> = (0..40).map(|n| n % 16).collect();
    let body = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0});
    let first = fleet.ask(&Question::new("adder", body.clone())).await?;
    let second = fleet.ask(&Question::new("adder", body)).await?;
    assert_eq!(first.token_ids, second.token_ids);
    let [first, second] = [first, second].map(|answer| answer.end.expect("an answer").usage);
    assert_eq!(
        first,
        first.with_cached_tokens(0),
        "nothing was there to be found"
    );
    assert_eq!(
        second,
        first.with_cached_tokens(32),
        "two blocks of 16 tokens, and the rest is read"
    );
    Ok(())
}

#[tokio::test]
async fn same_seed_gives_same_answer_and_another_seed_another() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let ask = async |seed: i64| {
        let body = json!({"prompt": "sort 52914=", "temperature": 2.0, "seed": seed, "max_tokens": 60});
        fleet
            .ask(&Question::new("sorter", body))
            .await
            .map(|answer| answer.token_ids)
    };
    let first = ask(7).await?;
    assert_eq!(first, ask(7).await?);
    let mut others = Vec::new();
    for seed in 0..6 {
        others.push(ask(seed).await?);
    }
    assert!(
        others.iter().any(|other| *other != first),
        "the seed has no effect"
    );
    Ok(())
}

#[tokio::test]
async fn models_change_places_when_memory_holds_only_one() -> Result<()> {
    let fleet = Fleet::builder()
        .set("worker.models_per_device_max=1")
        .start()
        .await?;
    for round in 0..3 {
        for (model, prompt, right) in [
            ("adder", "1+2=", "3"),
            ("sorter", "sort 21=", "12"),
            ("reverser", "reverse ab=", "ba"),
        ] {
            let answer = fleet.ask(&Question::prompt(model, prompt)).await?;
            assert_eq!(answer.text, right, "round {round}");
            let report = fleet.status().await?.workers.remove(0).report;
            let used = report.devices[0].pages_weights;
            assert!(
                used <= 1,
                "one small model has one page of weights, the ledger says {used}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn request_published_twice_is_answered_once() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let question = Question::prompt("adder", "5+6=");
    let answer = fleet.ask(&question).await?;
    let mut again = fleet.submit(&question).await?;
    assert_eq!(
        Answer::collect(&mut again).await?,
        answer,
        "the stored answer is read again"
    );
    Ok(())
}
