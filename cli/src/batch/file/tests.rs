use serde_json::json;

use super::*;

fn completion(custom_id: &str) -> Value {
    json!({
        "custom_id": custom_id, "method": "POST", "url": "/v1/completions",
        "body": {"model": "m", "prompt": "x", "max_tokens": 3},
    })
}

fn read(lines: &[String]) -> Result<BatchFile, BatchError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    BatchFile::read(&path, 1000)
}

fn faults(lines: &[String]) -> Vec<(usize, String)> {
    match read(lines) {
        Err(BatchError::Faults { faults, .. }) => faults
            .into_iter()
            .map(|fault| (fault.line, fault.field))
            .collect(),
        other => panic!("no faults: {other:?}"),
    }
}

/// A line with another value in one place.
fn with(pointer: &str, value: Value) -> String {
    let mut line = completion("other");
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    line.pointer_mut(parent).unwrap()[key] = value;
    line.to_string()
}

#[test]
fn lines_are_read_with_model_shape_and_body() {
    let chat = json!({
        "custom_id": "b", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "org/c:1", "messages": [{"role": "user", "content": "hi"}]},
    });
    let embed = json!({
        "custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": {"model": "e", "input": ["a", "b"]},
    });
    let lines = [
        completion("a").to_string(),
        String::new(),
        chat.to_string(),
        embed.to_string(),
    ];
    let batch = read(&lines).unwrap();
    let found: Vec<(usize, &str, &str, Shape)> = batch
        .lines
        .iter()
        .map(|line| {
            (
                line.number,
                line.custom_id.as_str(),
                line.model.as_str(),
                line.shape,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (1, "a", "m", Shape::Completion),
            (3, "b", "org/c:1", Shape::Chat),
            (4, "c", "e", Shape::Embeddings)
        ]
    );
    let body: Value = serde_json::from_slice(&batch.body(&batch.lines[1]).unwrap()).unwrap();
    assert_eq!(body, chat["body"]);
    assert_eq!(batch.content, blake3::hash(lines.join("\n").as_bytes()));
}

#[test]
fn every_fault_of_every_line_is_told_with_its_field() {
    let cases = [
        ("{".to_owned(), ""),
        (with("/method", json!("GET")), "method"),
        (with("/url", json!("/v1/responses")), "url"),
        (with("/url", json!("/v1/embeddings")), "url"),
        (with("/priority", json!(1)), "priority"),
        (with("/custom_id", json!(7)), "custom_id"),
        (with("/custom_id", json!("")), "custom_id"),
        (with("/custom_id", json!("x".repeat(513))), "custom_id"),
        (with("/body", json!([])), "body"),
        (with("/body/model", json!(null)), "body.model"),
        (with("/body/model", json!("a\u{7}")), "body.model"),
        (with("/body/max_tokens", json!(0)), "body.max_tokens"),
        (with("/body/max_token", json!(1)), "body.max_token"),
        (with("/body/prompt", json!("x".repeat(2000))), "body"),
        (
            with("/body/cancel_on_disconnect", json!(true)),
            "body.cancel_on_disconnect",
        ),
        ("x".repeat(100_000), ""),
    ];
    for (line, field) in &cases {
        assert_eq!(
            faults(&[completion("a").to_string(), line.clone()]),
            [(2, (*field).to_owned())],
            "{line}"
        );
    }
    let all = [
        with("/method", json!(1)),
        with("/custom_id", json!("b")),
        "[]".to_owned(),
    ];
    assert_eq!(faults(&all), [(1, "method".to_owned()), (3, String::new())]);
    let twice = [completion("a"), completion("a")].map(|line| line.to_string());
    assert_eq!(faults(&twice), [(2, "custom_id".to_owned())]);
    assert_eq!(faults(&[]), [(1, String::new())]);
}

#[test]
fn faults_beyond_the_limit_are_counted() {
    let lines = vec!["[]".to_owned(); FAULTS_MAX + 7];
    let error = read(&lines).unwrap_err().to_string();
    assert!(error.contains("line 100: is no JSON object"), "{error}");
    assert!(error.ends_with("and 7 more faults"), "{error}");
}

#[test]
fn body_that_the_server_would_not_take_is_named_by_its_line() {
    let batch = read(&[
        completion("a").to_string(),
        with("/body/prompt", json!("x".repeat(200))),
    ])
    .unwrap();
    batch.check_sizes(HEADERS_BYTES_MAX + 500).unwrap();
    let error = batch
        .check_sizes(HEADERS_BYTES_MAX + 100)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("line 2, body: has") && !error.contains("line 1"),
        "{error}"
    );
}

#[test]
fn line_that_changes_after_the_check_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.jsonl");
    std::fs::write(&path, completion("a").to_string()).unwrap();
    let batch = BatchFile::read(&path, 1000).unwrap();
    std::fs::write(&path, completion("b").to_string()).unwrap();
    let error = batch.body(&batch.lines[0]).unwrap_err();
    assert!(matches!(error, BatchError::Changed { line: 1, .. }), "{error}");
}
