//! Random JSON schemas, and a validator of what is made of them.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A schema of the kinds that clients send.
#[derive(Clone, Debug)]
pub enum Schema {
    Null,
    Boolean,
    Integer {
        min: i64,
        max: i64,
    },
    Number {
        most: i64,
    },
    /// Up to so many characters.
    Text {
        chars_max: usize,
    },
    /// One letter of a set, so many times.
    Pattern {
        first: char,
        last: char,
        count: usize,
    },
    Enum(Vec<Value>),
    Array {
        items: Box<Schema>,
        min: usize,
        max: usize,
    },
    /// Name, schema, and whether it is required.
    Object(Vec<(String, Schema, bool)>),
    AnyOf(Vec<Schema>),
}

/// Up to three levels of schemas.
pub fn schema() -> impl Strategy<Value = Schema> {
    let scalar = prop_oneof![
        Just(Schema::Null),
        Just(Schema::Boolean),
        (-2000i64..2000, 0i64..5000).prop_map(|(min, more)| Schema::Integer { min, max: min + more }),
        (1i64..2000).prop_map(|most| Schema::Number { most }),
        (0usize..12).prop_map(|chars_max| Schema::Text { chars_max }),
        (0u8..13, 0u8..13, 1usize..5).prop_map(|(first, more, count)| Schema::Pattern {
            first: char::from(b'a' + first),
            last: char::from(b'a' + first + more),
            count,
        }),
        prop::collection::vec(literal(), 1..5).prop_map(Schema::Enum),
    ];
    scalar.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            (inner.clone(), 0usize..3, 0usize..3).prop_map(|(items, min, more)| Schema::Array {
                items: Box::new(items),
                min,
                max: min + more,
            }),
            prop::collection::btree_map("[a-zé\" ]{1,6}", (inner.clone(), any::<bool>()), 0..4).prop_map(
                |properties| {
                    let properties = properties.into_iter();
                    Schema::Object(
                        properties
                            .map(|(name, (schema, needed))| (name, schema, needed))
                            .collect(),
                    )
                }
            ),
            prop::collection::vec(inner, 1..3).prop_map(Schema::AnyOf),
        ]
    })
}

fn literal() -> impl Strategy<Value = Value> {
    prop_oneof![
        "\\PC{0,6}".prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ]
}

impl Schema {
    pub fn to_value(&self) -> Value {
        match self {
            Self::Null => json!({"type": "null"}),
            Self::Boolean => json!({"type": "boolean"}),
            Self::Integer { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
            Self::Number { most } => json!({"type": "number", "minimum": -most, "maximum": most}),
            Self::Text { chars_max } => json!({"type": "string", "maxLength": chars_max}),
            Self::Pattern { first, last, count } => {
                json!({"type": "string", "pattern": format!("^[{first}-{last}]{{{count}}}$")})
            }
            Self::Enum(values) => json!({"enum": values}),
            Self::Array { items, min, max } => {
                json!({"type": "array", "items": items.to_value(), "minItems": min, "maxItems": max})
            }
            Self::Object(properties) => {
                let described = properties
                    .iter()
                    .map(|(name, schema, _)| (name.clone(), schema.to_value()));
                let required = properties
                    .iter()
                    .filter(|(.., needed)| *needed)
                    .map(|(name, ..)| name);
                json!({
                    "type": "object",
                    "properties": described.collect::<Map<_, _>>(),
                    "required": required.collect::<Vec<_>>(),
                    "additionalProperties": false,
                })
            }
            Self::AnyOf(schemas) => {
                json!({"anyOf": schemas.iter().map(Self::to_value).collect::<Vec<_>>()})
            }
        }
    }

    /// Whether a value is of this schema.
    pub fn admits(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, value) => value.is_null(),
            (Self::Boolean, value) => value.is_boolean(),
            (Self::Integer { min, max }, value) => {
                // JSON has a zero with a minus sign, which serde_json reads as a fraction.
                let zero = (value.as_f64() == Some(0.0)).then_some(0);
                let value = value.as_i64().or(zero);
                value.is_some_and(|value| (min..=max).contains(&&value))
            }
            (Self::Number { most }, value) => {
                let number = value.as_f64().zip(i32::try_from(*most).ok());
                number.is_some_and(|(number, most)| number.abs() <= f64::from(most))
            }
            (Self::Text { chars_max }, Value::String(text)) => text.chars().count() <= *chars_max,
            (Self::Pattern { first, last, count }, Value::String(text)) => {
                text.chars().count() == *count && text.chars().all(|char| (first..=last).contains(&&char))
            }
            (Self::Enum(values), value) => values.contains(value),
            (Self::Array { items, min, max }, Value::Array(values)) => {
                (min..=max).contains(&&values.len()) && values.iter().all(|value| items.admits(value))
            }
            (Self::Object(properties), Value::Object(values)) => {
                let are_known = values.iter().all(|(key, value)| {
                    let property = properties.iter().find(|(name, ..)| name == key);
                    property.is_some_and(|(_, schema, _)| schema.admits(value))
                });
                let needed = properties.iter().filter(|(.., needed)| *needed);
                are_known && needed.into_iter().all(|(name, ..)| values.contains_key(name))
            }
            (Self::AnyOf(schemas), value) => schemas.iter().any(|schema| schema.admits(value)),
            (Self::Text { .. } | Self::Pattern { .. } | Self::Array { .. } | Self::Object(_), _) => false,
        }
    }
}
