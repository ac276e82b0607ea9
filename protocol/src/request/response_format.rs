//! The shape that an answer must have.

use serde_json::{Map, Value};

/// The shape that an answer must have, as OpenAI's `response_format`. It bounds which tokens may be drawn and
/// changes nothing about the prompt.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum ResponseFormat {
    /// Any text.
    #[default]
    Text,
    /// One JSON object.
    JsonObject,
    /// One JSON value that a schema describes.
    JsonSchema(JsonSchema),
}

/// A JSON schema. Whether it can be obeyed is found out where grammars are made.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonSchema {
    /// What the client calls it; without effect.
    pub name: String,
    /// The schema, at most [`SCHEMA_BYTES_MAX`] bytes when it is written as JSON.
    pub schema: Map<String, Value>,
    /// Whether `oneOf` must be obeyed to the letter. Else it is taken for `anyOf` where no check of the branches
    /// shows that no value matches two of them.
    pub strict: bool,
}

/// Largest schema in bytes. Those of OpenAI's examples have a few hundred; the time to compile one grows with
/// its size, up to about half a second for the worst of this size.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Longest name of a schema, as with OpenAI's API.
pub const SCHEMA_NAME_BYTES_MAX: usize = 64;
