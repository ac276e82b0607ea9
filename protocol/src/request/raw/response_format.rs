//! The checks of the shape that an answer must have.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::free::{Free, ValuesLeft};
use super::invalid;
use crate::event::RequestError;
use crate::request::{JsonSchema, ResponseFormat, SCHEMA_BYTES_MAX, SCHEMA_NAME_BYTES_MAX};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    json_schema: Option<RawJsonSchema>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJsonSchema {
    name: String,
    schema: Free,
    #[serde(default)]
    strict: Option<bool>,
    /// OpenAI shows it to the model; our prompts are the chat template's alone.
    #[serde(default, rename = "description")]
    _description: Option<IgnoredAny>,
}

impl RawResponseFormat {
    pub(super) fn check(self, values_left: &mut ValuesLeft) -> Result<ResponseFormat, RequestError> {
        match (self.kind.as_str(), self.json_schema) {
            ("text", None) => Ok(ResponseFormat::Text),
            ("json_object", None) => Ok(ResponseFormat::JsonObject),
            ("json_schema", Some(raw)) => raw.check(values_left).map(ResponseFormat::JsonSchema),
            ("json_schema", None) => Err(invalid("response_format.json_schema", "missing")),
            ("text" | "json_object", Some(_)) => Err(invalid(
                "response_format.json_schema",
                "is for the type \"json_schema\" only",
            )),
            (other, _) => Err(invalid(
                "response_format.type",
                format!("{other:?} is not supported; it is \"text\", \"json_object\" or \"json_schema\""),
            )),
        }
    }
}

impl RawJsonSchema {
    fn check(self, values_left: &mut ValuesLeft) -> Result<JsonSchema, RequestError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let is_name =
            (1..=SCHEMA_NAME_BYTES_MAX).contains(&self.name.len()) && self.name.bytes().all(is_plain);
        if !is_name {
            return Err(invalid(
                "response_format.json_schema.name",
                format!("must be 1 to {SCHEMA_NAME_BYTES_MAX} letters, digits, underscores and dashes"),
            ));
        }
        let bytes = self.schema.json_bytes();
        if bytes > SCHEMA_BYTES_MAX {
            return Err(invalid(
                SCHEMA,
                format!("has {bytes} bytes as JSON, at most {SCHEMA_BYTES_MAX} are allowed"),
            ));
        }
        let Value::Object(schema) = self.schema.into_value(SCHEMA, values_left)? else {
            return Err(invalid(SCHEMA, "must be an object"));
        };
        Ok(JsonSchema {
            name: self.name,
            schema,
            strict: self.strict.unwrap_or(false),
        })
    }
}

const SCHEMA: &str = "response_format.json_schema.schema";
