//! Values of any form: tools, calls of them, schemas.
//!
//! A value takes up to a hundred times the memory that it was sent in. So it is read as JSON text, which takes about as
//! much, and becomes a value when it is known of how many it is made, all of a body together.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::invalid;
use crate::event::RequestError;
use crate::request::FREE_VALUES_MAX;

/// A value of any form, as JSON text.
#[derive(Debug)]
pub(super) struct Free {
    json: Vec<u8>,
    /// How many values it is made of, itself included.
    values: usize,
}

/// How many values a body may still be made of.
#[derive(Debug)]
pub(super) struct ValuesLeft(usize);

impl ValuesLeft {
    /// For one body.
    pub(super) const fn of_a_body() -> Self {
        Self(FREE_VALUES_MAX)
    }
}

impl Free {
    /// The value, unless the body has too many.
    pub(super) fn into_value(self, field: &str, left: &mut ValuesLeft) -> Result<Value, RequestError> {
        match left.0.checked_sub(self.values) {
            Some(rest) => left.0 = rest,
            None => return Err(invalid(field, too_many())),
        }
        Ok(serde_json::from_slice(&self.json).expect("what was written as JSON is JSON"))
    }

    /// Its length as JSON.
    pub(super) fn json_bytes(&self) -> usize {
        self.json.len()
    }

    fn write(&mut self, value: &(impl Serialize + ?Sized)) {
        serde_json::to_writer(&mut self.json, value).expect("a text, number or word can be written");
    }
}

impl<'de> Deserialize<'de> for Free {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut free = Self {
            json: Vec::new(),
            values: 0,
        };
        Into(&mut free).deserialize(deserializer)?;
        Ok(free)
    }
}

/// Appends what is read.
struct Into<'a>(&'a mut Free);

impl<'de> DeserializeSeed<'de> for Into<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.0.values += 1;
        if self.0.values > FREE_VALUES_MAX {
            return Err(de::Error::custom(too_many()));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Into<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value that JSON has")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.0.write(&value);
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.0.write(&value);
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.0.write(&value);
        Ok(())
    }

    /// What is no number is written as `null`.
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.0.write(&value);
        Ok(())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.0.write(value);
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.0.write(&());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let free = self.0;
        free.json.push(b'[');
        let mut count = 0_usize;
        while items.next_element_seed(Item(free, count))?.is_some() {
            count += 1;
        }
        free.json.push(b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let free = self.0;
        free.json.push(b'{');
        let mut count = 0_usize;
        while let Some(name) = fields.next_key::<String>()? {
            if count > 0 {
                free.json.push(b',');
            }
            free.write(&name);
            free.json.push(b':');
            fields.next_value_seed(Into(free))?;
            count += 1;
        }
        free.json.push(b'}');
        Ok(())
    }
}

/// An element, with how many came before.
struct Item<'a>(&'a mut Free, usize);

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.1 > 0 {
            self.0.json.push(b',');
        }
        Into(self.0).deserialize(deserializer)
    }
}

fn too_many() -> String {
    format!("tools, calls and schema together are made of more than {FREE_VALUES_MAX} values")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Encoding;

    #[test]
    fn value_is_the_same_in_both_encodings_and_its_keys_keep_their_order() {
        let value = json!({"z": [1, -1, 1.5, u64::MAX, i64::MIN, 1e300], "a": {"": null, "ä\u{0}\"": "\u{1f600}"}, "b": [[], {}, true]});
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let body = encoding.encode(&value).unwrap();
            let free: Free = encoding.decode(&body, 1 << 10).unwrap();
            assert_eq!(free.values, 15);
            let read = free.into_value("f", &mut ValuesLeft::of_a_body()).unwrap();
            assert_eq!(read.to_string(), value.to_string(), "{encoding}");
        }
    }

    #[test]
    fn body_of_too_many_values_is_refused_before_they_take_memory() {
        let many = |count: usize| format!("[{}]", vec!["0"; count].join(","));
        let read = |text: &str| Encoding::Json.decode::<Free>(text.as_bytes(), 1 << 20);
        let mut left = ValuesLeft::of_a_body();
        let most = read(&many(FREE_VALUES_MAX - 1)).unwrap();
        assert!(most.json.capacity() < 4 * FREE_VALUES_MAX);
        most.into_value("tools", &mut left).unwrap();
        let error = read("0").unwrap().into_value("tools", &mut left).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tools"));
        assert!(read(&many(FREE_VALUES_MAX)).is_err());
    }
}
