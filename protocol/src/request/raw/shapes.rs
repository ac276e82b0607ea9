//! Fields that clients write in more than one shape.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::request::{EMBED_INPUT_COUNT_MAX, KeepAlive, LOGIT_BIAS_COUNT_MAX};

/// A text, or token ids; several texts in one request are refused, since a request has one answer.
#[derive(Debug)]
pub(super) enum RawPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for RawPrompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptVisitor;
        impl<'de> Visitor<'de> for PromptVisitor {
            type Value = RawPrompt;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of token ids (one prompt a request)")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawPrompt, E> {
                Ok(RawPrompt::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawPrompt, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = items.next_element()? {
                    tokens.push(token);
                }
                Ok(RawPrompt::Tokens(tokens))
            }
        }
        deserializer.deserialize_any(PromptVisitor)
    }
}

/// A text or a list of texts.
#[derive(Debug)]
pub(super) struct OneOrMany(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor;
        impl<'de> Visitor<'de> for OneOrManyVisitor {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    // Each takes more memory than the few bytes that it may be sent in.
                    if texts.len() == EMBED_INPUT_COUNT_MAX {
                        return Err(de::Error::custom(format_args!(
                            "has more than {EMBED_INPUT_COUNT_MAX} texts"
                        )));
                    }
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

/// `"10m"`, seconds, 0, or a negative number for "until evicted".
#[derive(Debug)]
pub(super) struct RawKeepAlive(pub(super) KeepAlive);

impl<'de> Deserialize<'de> for RawKeepAlive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeepAliveVisitor;
        impl Visitor<'_> for KeepAliveVisitor {
            type Value = RawKeepAlive;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10m\", a number of seconds, or a negative number for \"until evicted\"")
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<RawKeepAlive, E> {
                Ok(RawKeepAlive(match u64::try_from(seconds) {
                    Ok(seconds) => KeepAlive::Ms(seconds.saturating_mul(1000)),
                    Err(_) => KeepAlive::UntilEvicted,
                }))
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<RawKeepAlive, E> {
                Ok(RawKeepAlive(KeepAlive::Ms(seconds.saturating_mul(1000))))
            }
            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<RawKeepAlive, E> {
                if seconds.is_nan() {
                    return Err(E::invalid_value(de::Unexpected::Float(seconds), &self));
                }
                if seconds < 0.0 {
                    return Ok(RawKeepAlive(KeepAlive::UntilEvicted));
                }
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a float cast saturates, and the sign was checked"
                )]
                let ms = (seconds * 1000.0) as u64;
                Ok(RawKeepAlive(KeepAlive::Ms(ms)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawKeepAlive, E> {
                text.parse()
                    .map(RawKeepAlive)
                    .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(KeepAliveVisitor)
    }
}

/// A text, a list of text parts that are joined, or nothing.
#[derive(Debug, Default)]
pub(super) struct RawContent(pub(super) Option<String>);

#[derive(Deserialize)]
struct RawPart {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

impl<'de> Deserialize<'de> for RawContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = RawContent;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of text parts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawContent, E> {
                Ok(RawContent(Some(text.to_owned())))
            }
            fn visit_unit<E: de::Error>(self) -> Result<RawContent, E> {
                Ok(RawContent::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawContent, A::Error> {
                let mut joined = String::new();
                while let Some(part) = items.next_element::<RawPart>()? {
                    if part.kind != "text" {
                        return Err(de::Error::custom(format_args!(
                            "a part of type {:?} is not supported, only \"text\"",
                            part.kind
                        )));
                    }
                    joined.push_str(&part.text);
                }
                Ok(RawContent(Some(joined)))
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// `false` and `true` (chat) or a number (completion).
#[derive(Debug, Clone, Copy)]
pub(super) enum RawLogprobs {
    Switch(bool),
    Count(i64),
}

impl<'de> Deserialize<'de> for RawLogprobs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LogprobsVisitor;
        impl Visitor<'_> for LogprobsVisitor {
            type Value = RawLogprobs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a number")
            }
            fn visit_bool<E: de::Error>(self, wanted: bool) -> Result<RawLogprobs, E> {
                Ok(RawLogprobs::Switch(wanted))
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<RawLogprobs, E> {
                Ok(RawLogprobs::Count(count))
            }
            fn visit_u64<E: de::Error>(self, count: u64) -> Result<RawLogprobs, E> {
                Ok(RawLogprobs::Count(i64::try_from(count).unwrap_or(i64::MAX)))
            }
        }
        deserializer.deserialize_any(LogprobsVisitor)
    }
}

/// Token ids, written as JSON's keys are, to numbers.
#[derive(Debug)]
pub(super) struct RawLogitBias(pub(super) BTreeMap<u32, f32>);

impl<'de> Deserialize<'de> for RawLogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BiasVisitor;
        impl<'de> Visitor<'de> for BiasVisitor {
            type Value = RawLogitBias;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token ids and numbers between -100 and 100")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawLogitBias, A::Error> {
                let mut biases = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let token: u32 = key.parse().map_err(|_| {
                        de::Error::custom(format_args!(
                            "{key:?} is not a token id: write its number as text"
                        ))
                    })?;
                    let bias: f32 = map.next_value()?;
                    if !(-100.0..=100.0).contains(&bias) {
                        return Err(de::Error::custom("must be between -100 and 100"));
                    }
                    if biases.insert(token, bias).is_some() {
                        return Err(de::Error::custom(format_args!("token {token} has two biases")));
                    }
                    if biases.len() > LOGIT_BIAS_COUNT_MAX {
                        return Err(de::Error::custom(format_args!(
                            "has more than {LOGIT_BIAS_COUNT_MAX} tokens"
                        )));
                    }
                }
                Ok(RawLogitBias(biases))
            }
        }
        deserializer.deserialize_map(BiasVisitor)
    }
}
