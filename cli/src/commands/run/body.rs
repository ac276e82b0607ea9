//! The body of a request, from flags.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use flotilla_protocol::request::ChatMessage;
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::UsageError;

/// What to run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Input {
    /// A completion.
    Prompt(String),
    /// A conversation.
    #[serde(rename = "messages")]
    Chat(Vec<ChatMessage>),
}

/// Fields of the body that have a flag. The dispatcher checks the values, so that its errors and limits are
/// the only ones.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub(super) struct BodyOptions {
    /// Most tokens of the answer
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    /// How freely tokens are drawn, 0 to 2; 0 always takes the likeliest
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    /// Draws only among the likeliest tokens that together have this probability
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    /// Draws only among this many tokens
    #[arg(long, allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<i64>,
    /// Draws only among tokens that are this likely, compared with the likeliest: 0 to 1
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f32>,
    /// Makes the prompt's and the answer's tokens less likely when above 1
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f32>,
    /// Makes the answer's tokens less likely, -2 to 2
    #[arg(long, allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    /// Makes the answer's tokens less likely with each time they come, -2 to 2
    #[arg(long, allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    /// Same seed, same answer
    #[arg(long, allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    /// Text that ends the answer; may be repeated
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop: Vec<String>,
    /// The request is worthless after this many milliseconds
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
    /// How long the model stays loaded afterwards: "10m", "0", "-1" for until evicted
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "keep_alive")]
    keep_alive: Option<String>,
    /// From [`ShapeOptions`].
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_format: Option<Value>,
}

/// Flags for the shape of the answer.
#[derive(Debug, Clone, Args)]
pub(super) struct ShapeOptions {
    /// The answer is a JSON object
    #[arg(long, conflicts_with = "json_schema")]
    json_object: bool,
    /// The answer is JSON of the schema in this file
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
}

impl ShapeOptions {
    /// The body's `response_format`; `None` when no flag is set.
    ///
    /// # Errors
    /// The file cannot be read, or is no JSON.
    pub(super) fn response_format(&self) -> anyhow::Result<Option<Value>> {
        if self.json_object {
            return Ok(Some(json!({"type": "json_object"})));
        }
        let Some(path) = &self.json_schema else {
            return Ok(None);
        };
        let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let schema: Value = serde_json::from_slice(&content)
            .map_err(|error| UsageError::new(format!("{} is no JSON: {error}", path.display())))?;
        let described = json!({"name": "answer", "schema": schema});
        Ok(Some(json!({"type": "json_schema", "json_schema": described})))
    }
}

#[derive(Debug, Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    input: Input,
    #[serde(flatten)]
    options: &'a BodyOptions,
    /// The answer is printed here or nowhere.
    cancel_on_disconnect: bool,
}

impl BodyOptions {
    /// The body as JSON.
    pub(super) fn body(&self, input: Input) -> Vec<u8> {
        let body = Body {
            input,
            options: self,
            cancel_on_disconnect: true,
        };
        serde_json::to_vec(&body).expect("a body has text keys only")
    }
}

/// A plain number is seconds, which travel as a number; the rest is a text such as `10m`.
fn keep_alive<S: serde::Serializer>(value: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    match value.as_deref().map(|text| (text, text.parse::<i64>())) {
        Some((_, Ok(seconds))) => serializer.serialize_i64(seconds),
        Some((text, Err(_))) => serializer.serialize_str(text),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::request::{InferenceRequest, ResponseFormat};
    use flotilla_protocol::{Encoding, ModelName};

    use super::*;

    fn decode(body: &[u8]) -> InferenceRequest {
        let model = ModelName::new("adder").unwrap();
        InferenceRequest::decode(&model, Encoding::Json, body, 10_000).unwrap()
    }

    #[test]
    fn every_flag_reaches_the_field_of_its_name() {
        let options = BodyOptions {
            max_tokens: Some(7),
            temperature: Some(0.5),
            top_p: Some(0.25),
            top_k: Some(3),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(-0.5),
            frequency_penalty: Some(0.75),
            seed: Some(-2),
            stop: vec!["a".into(), "b".into()],
            deadline_ms: Some(900),
            keep_alive: Some("10m".into()),
            response_format: Some(json!({"type": "json_object"})),
        };
        let request = decode(&options.body(Input::Prompt("1+1=".into())));
        assert_eq!(
            request.input,
            flotilla_protocol::request::Input::Prompt("1+1=".into())
        );
        assert_eq!(request.max_tokens, Some(7));
        assert_eq!(request.sampling.temperature, Some(0.5));
        assert_eq!(request.sampling.top_p, Some(0.25));
        assert_eq!(request.sampling.top_k, Some(3));
        assert_eq!(request.sampling.min_p, Some(0.125));
        assert_eq!(request.sampling.repetition_penalty, Some(1.5));
        assert_eq!(request.sampling.presence_penalty, Some(-0.5));
        assert_eq!(request.sampling.frequency_penalty, Some(0.75));
        assert_eq!(request.sampling.seed, Some((-2_i64).cast_unsigned()));
        assert_eq!(request.stop, ["a", "b"]);
        assert_eq!(request.deadline_ms, Some(900));
        let ten_minutes = flotilla_protocol::request::KeepAlive::Ms(600_000);
        assert_eq!(request.keep_alive, Some(ten_minutes));
        assert_eq!(request.response_format, ResponseFormat::JsonObject);
    }

    #[test]
    fn schema_of_a_file_reaches_the_body_and_a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("schema.json");
        let shape = |content: &str| {
            std::fs::write(&path, content).unwrap();
            let shape = ShapeOptions {
                json_object: false,
                json_schema: Some(path.clone()),
            };
            shape.response_format()
        };
        let options = BodyOptions {
            response_format: shape(r#"{"type": "integer"}"#).unwrap(),
            ..BodyOptions::default()
        };
        let request = decode(&options.body(Input::Prompt("x".into())));
        let ResponseFormat::JsonSchema(described) = request.response_format else {
            panic!("a schema was given")
        };
        assert_eq!(Value::from(described.schema), json!({"type": "integer"}));
        let error = shape("{").unwrap_err().to_string();
        assert!(error.contains("schema.json is no JSON"), "{error}");
    }

    #[test]
    fn a_keep_alive_below_zero_means_until_evicted() {
        let options = BodyOptions {
            keep_alive: Some("-1".into()),
            ..BodyOptions::default()
        };
        let request = decode(&options.body(Input::Prompt("x".into())));
        let forever = flotilla_protocol::request::KeepAlive::UntilEvicted;
        assert_eq!(request.keep_alive, Some(forever));
    }

    #[test]
    fn a_conversation_travels_as_messages() {
        let turn = ChatMessage::text("user", "hi");
        let body = BodyOptions::default().body(Input::Chat(vec![turn.clone()]));
        assert_eq!(
            decode(&body).input,
            flotilla_protocol::request::Input::Chat(flotilla_protocol::request::Chat {
                messages: vec![turn],
                tools: Vec::new(),
            })
        );
    }
}
