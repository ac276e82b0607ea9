//! The checks of a conversation: its messages, the tools that its model may call and the calls it made.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::free::{Free, ValuesLeft};
use super::invalid;
use super::shapes::RawContent;
use crate::event::RequestError;
use crate::request::{Chat, ChatMessage, MESSAGES_COUNT_MAX, TOOLS_COUNT_MAX};

/// At most so many messages: each takes more memory than the few bytes that it may be sent in.
#[derive(Debug)]
pub(super) struct RawMessages(pub(super) Vec<RawMessage>);

impl<'de> Deserialize<'de> for RawMessages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MessagesVisitor;
        impl<'de> Visitor<'de> for MessagesVisitor {
            type Value = RawMessages;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawMessages, A::Error> {
                let mut messages = Vec::new();
                while let Some(message) = items.next_element()? {
                    if messages.len() == MESSAGES_COUNT_MAX {
                        return Err(de::Error::custom(format_args!(
                            "has more than {MESSAGES_COUNT_MAX} messages"
                        )));
                    }
                    messages.push(message);
                }
                Ok(RawMessages(messages))
            }
        }
        deserializer.deserialize_seq(MessagesVisitor)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMessage {
    role: String,
    #[serde(default)]
    content: RawContent,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    tool_calls: Option<Free>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
}

/// What a body says about tools.
#[derive(Debug)]
pub(super) struct RawTools {
    pub(super) tools: Option<Free>,
    pub(super) choice: Option<Free>,
    pub(super) parallel: Option<bool>,
}

pub(super) fn check(
    messages: Vec<RawMessage>,
    tools: RawTools,
    values_left: &mut ValuesLeft,
) -> Result<Chat, RequestError> {
    if messages.is_empty() {
        return Err(invalid("messages", "has no message"));
    }
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| message.check(&format!("messages[{index}]"), values_left));
    let messages = messages.collect::<Result<_, _>>()?;
    let tools = tools.check(values_left)?;
    Ok(Chat { messages, tools })
}

impl RawTools {
    /// Refuses tools where there is no conversation to render them into.
    pub(super) fn refuse(&self) -> Result<(), RequestError> {
        let given = [
            ("tools", self.tools.is_some()),
            ("tool_choice", self.choice.is_some()),
            ("parallel_tool_calls", self.parallel.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(invalid(field, "is for messages, not for a prompt or input")),
            None => Ok(()),
        }
    }

    fn check(self, values_left: &mut ValuesLeft) -> Result<Vec<Value>, RequestError> {
        if self.parallel == Some(false) {
            let message = "the model's calls cannot be limited to one; leave it out";
            return Err(invalid("parallel_tool_calls", message));
        }
        let tools = list(self.tools, "tools", values_left)?;
        if tools.len() > TOOLS_COUNT_MAX {
            let message = format!("has {} tools, at most {TOOLS_COUNT_MAX} are allowed", tools.len());
            return Err(invalid("tools", message));
        }
        for (index, tool) in tools.iter().enumerate() {
            let tool = Place::new(format!("tools[{index}]"), tool).object()?;
            function_of(&tool)?;
        }
        let choice = self
            .choice
            .map(|choice| choice.into_value("tool_choice", values_left));
        match choice.transpose()?.as_ref().map(Value::as_str) {
            None => Ok(tools),
            Some(Some("auto")) if tools.is_empty() => Err(invalid("tool_choice", "needs tools")),
            Some(Some("auto")) => Ok(tools),
            // What the model does not know of it does not call.
            Some(Some("none")) => Ok(Vec::new()),
            Some(_) => Err(invalid(
                "tool_choice",
                "only \"auto\" and \"none\" are supported: a model cannot be forced to call a tool",
            )),
        }
    }
}

impl RawMessage {
    fn check(self, path: &str, values_left: &mut ValuesLeft) -> Result<ChatMessage, RequestError> {
        let mut tool_calls = list(self.tool_calls, &format!("{path}.tool_calls"), values_left)?;
        if !tool_calls.is_empty() && self.role != "assistant" {
            let message = "only an assistant message has tool calls";
            return Err(invalid(&format!("{path}.tool_calls"), message));
        }
        if self.tool_call_id.is_some() && self.role != "tool" {
            let message = "only a tool message has it";
            return Err(invalid(&format!("{path}.tool_call_id"), message));
        }
        if self.content.0.is_none() && tool_calls.is_empty() {
            let message = "missing; only an assistant message with tool_calls may leave it out";
            return Err(invalid(&format!("{path}.content"), message));
        }
        for (index, call) in tool_calls.iter_mut().enumerate() {
            check_call(format!("{path}.tool_calls[{index}]"), call, values_left)?;
        }
        Ok(ChatMessage {
            role: self.role,
            content: self.content.0,
            name: self.name,
            tool_calls,
            tool_call_id: self.tool_call_id,
            reasoning_content: self.reasoning_content,
        })
    }
}

/// The elements of a list, or none where nothing was sent.
fn list(sent: Option<Free>, field: &str, values_left: &mut ValuesLeft) -> Result<Vec<Value>, RequestError> {
    match sent.map(|sent| sent.into_value(field, values_left)).transpose()? {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(invalid(field, "must be a list")),
    }
}

/// Checks a call and replaces arguments that are JSON text by the object that they are, as vLLM does.
fn check_call(path: String, call: &mut Value, values_left: &mut ValuesLeft) -> Result<(), RequestError> {
    function_of(&Place::new(path.clone(), call).object()?)?;
    let path = format!("{path}.function.arguments");
    let arguments = match call["function"].get("arguments") {
        Some(Value::Object(_)) => return Ok(()),
        None | Some(Value::Null) => Map::new(),
        // Clients write no arguments so, too.
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(Value::String(text)) => {
            let read = serde_json::from_str::<Free>(text);
            let read = read.map_err(|error| invalid(&path, format!("is not a JSON object: {error}")))?;
            match read.into_value(&path, values_left)? {
                Value::Object(arguments) => arguments,
                _ => return Err(invalid(&path, "is not a JSON object")),
            }
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_)) => {
            return Err(invalid(&path, "must be an object, or one as JSON text"));
        }
    };
    call["function"]["arguments"] = Value::Object(arguments);
    Ok(())
}

/// Checks what tools and calls have in common: `{"type": "function", "function": {"name": ..}}`.
fn function_of(object: &Place<'_, Map<String, Value>>) -> Result<(), RequestError> {
    let kind = object.field("type");
    if kind.value.and_then(Value::as_str) != Some("function") {
        return Err(invalid(&kind.path, "must be \"function\""));
    }
    let function = object.field("function");
    let function = match function.value {
        Some(value) => Place::new(function.path, value).object()?,
        None => return Err(invalid(&function.path, "missing")),
    };
    let name = function.field("name");
    match name.value.and_then(Value::as_str) {
        Some(text) if !text.is_empty() => Ok(()),
        Some(_) | None => Err(invalid(&name.path, "must be a name")),
    }
}

/// A value and where it is in the body.
struct Place<'a, T: ?Sized> {
    path: String,
    value: &'a T,
}

/// A field that may be missing, and where it should be.
struct Field<'a> {
    path: String,
    value: Option<&'a Value>,
}

impl<'a> Place<'a, Value> {
    fn new(path: String, value: &'a Value) -> Self {
        Self { path, value }
    }

    fn object(self) -> Result<Place<'a, Map<String, Value>>, RequestError> {
        match self.value.as_object() {
            Some(value) => Ok(Place {
                path: self.path,
                value,
            }),
            None => Err(invalid(&self.path, "must be an object")),
        }
    }
}

impl<'a> Place<'a, Map<String, Value>> {
    fn field(&self, key: &str) -> Field<'a> {
        Field {
            path: format!("{}.{key}", self.path),
            value: self.value.get(key),
        }
    }
}
