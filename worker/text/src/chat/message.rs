//! Messages as `transformers` hands them to a template.

use serde_json::{Map, Value};

/// Leaves out what is null, because templates ask for the presence of a key, and shows an assistant's
/// thoughts under every name that templates know.
pub(crate) fn prepared(message: &Value) -> Value {
    let Value::Object(fields) = message else {
        return message.clone();
    };
    let kept = fields.iter().filter(|(_, value)| !value.is_null());
    let thought = THOUGHT_KEYS
        .into_iter()
        .find_map(|key| fields.get(key).filter(|value| !value.is_null()));
    let Some(thought) = thought else {
        return kept.map(|(key, value)| (key.clone(), value.clone())).collect();
    };
    let mut prepared = Map::new();
    prepared.insert("thinking".to_owned(), thought.clone());
    prepared.extend(kept.map(|(key, value)| (key.clone(), value.clone())));
    prepared.insert("reasoning_content".to_owned(), thought.clone());
    Value::Object(prepared)
}

/// Names of an assistant's thoughts, the first that is there counts.
const THOUGHT_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nulls_are_left_out_and_thoughts_have_every_name() {
        let plain = json!({"role": "assistant", "content": null, "tool_calls": [null]});
        assert_eq!(
            prepared(&plain),
            json!({"role": "assistant", "tool_calls": [null]})
        );
        let thought = json!({"role": "assistant", "reasoning": "hm", "thinking": null});
        assert_eq!(
            prepared(&thought).to_string(),
            json!({"thinking": "hm", "role": "assistant", "reasoning": "hm", "reasoning_content": "hm"})
                .to_string()
        );
        assert_eq!(prepared(&json!("text")), json!("text"));
    }
}
