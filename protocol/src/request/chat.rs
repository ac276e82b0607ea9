//! Conversations: what a chat template is rendered with.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A conversation and the tools that its model may call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chat {
    /// The turns, oldest first; at least one.
    pub messages: Vec<ChatMessage>,
    /// The tools as the client sent them, at most [`TOOLS_COUNT_MAX`]: objects with `type` `"function"` and a
    /// `function` that has a `name`. Empty when there are none, or when `tool_choice` is `"none"`.
    pub tools: Vec<Value>,
}

impl Chat {
    /// Bytes of text that a template is given, about: tools and calls are counted as JSON.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let messages = self.messages.iter().map(ChatMessage::text_bytes);
        messages.sum::<usize>() + self.tools.iter().map(json_bytes).sum::<usize>()
    }
}

/// One turn of a conversation, in the shape in which clients send it and templates get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool` or what else the model's template knows.
    pub role: String,
    /// The text; parts of a multi-part content are joined. `None` (`null`) only beside tool calls.
    pub content: Option<String>,
    /// Who of several speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What an assistant called, as the client sent it: objects with `type` `"function"` and a `function` with
    /// `name` and `arguments`. The arguments are an object; a client's JSON text is parsed, since templates
    /// write them by `tojson`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// Which call a `tool` message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// What the assistant thought before its answer; some templates show it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

impl ChatMessage {
    /// A turn that is text alone.
    #[must_use]
    pub fn text(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(content.into()),
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            reasoning_content: None,
        }
    }

    /// The message as a chat template takes it.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("a message is plain data")
    }

    fn text_bytes(&self) -> usize {
        let texts = [
            &self.content,
            &self.name,
            &self.tool_call_id,
            &self.reasoning_content,
        ];
        let texts = texts.into_iter().flatten().map(String::len).sum::<usize>();
        texts + self.role.len() + self.tool_calls.iter().map(json_bytes).sum::<usize>()
    }
}

/// Bytes of a value as JSON, without what escapes add.
fn json_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(number) => number.to_string().len(),
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| json_bytes(item) + 2).sum::<usize>() + 2,
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| key.len() + 6 + json_bytes(value));
            fields.sum::<usize>() + 2
        }
    }
}

/// Most tools of one request, as with OpenAI's API.
pub const TOOLS_COUNT_MAX: usize = 128;
/// Most messages of one chat: more than fit the longest context.
pub const MESSAGES_COUNT_MAX: usize = 16_384;
/// Most values (texts, numbers, lists, objects and so on) that tools, calls of tools and a schema are made of together.
/// They take some ten MiB, however few bytes they were sent in.
pub const FREE_VALUES_MAX: usize = 65_536;
