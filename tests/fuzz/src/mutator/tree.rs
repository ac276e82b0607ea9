//! Changes of a value that leave its form whole: what is wrong then is wrong for the decoder's own checks.

use serde_json::{Map, Number, Value, json};

use super::bytes::NUMBERS;
use crate::corpus::Corpus;
use crate::random::Random;

/// Changes a value somewhere.
pub(super) fn change(value: &mut Value, corpus: &Corpus, random: &mut Random, bytes_max: usize) {
    let nodes = count(value);
    let mut at = random.below(nodes);
    if let Some(place) = find(value, &mut at) {
        change_here(place, corpus, random, bytes_max);
    }
}

fn change_here(place: &mut Value, corpus: &Corpus, random: &mut Random, bytes_max: usize) {
    match random.below(10) {
        0 => *place = other(corpus, random),
        1 => *place = number(random),
        2 => *place = Value::String(text(corpus, random, bytes_max)),
        3 => nest(place, random),
        4 => *place = many(place, random, bytes_max),
        5 | 6 => change_inside(place, corpus, random),
        7 => *place = Value::Null,
        8 => *place = leaf(random),
        _ => {
            // A part of this or of another sample.
            let mut from = random.pick(&corpus.values).cloned().unwrap_or_default();
            let mut at = random.below(count(&from));
            if let Some(part) = find(&mut from, &mut at) {
                *place = part.take();
            }
        }
    }
}

/// Takes away, renames or adds an element.
fn change_inside(place: &mut Value, corpus: &Corpus, random: &mut Random) {
    match place {
        Value::Object(fields) => {
            let name = fields.keys().nth(random.below(fields.len())).cloned();
            let taken = name.as_ref().and_then(|name| fields.shift_remove(name));
            match random.below(3) {
                0 => {}
                1 => {
                    fields.insert(word(corpus, random), taken.unwrap_or_default());
                }
                _ => {
                    fields.extend(name.zip(taken));
                    fields.insert(word(corpus, random), other(corpus, random));
                }
            }
        }
        Value::Array(items) if random.once_in(2) => {
            let at = random.below(items.len());
            items.drain(at..items.len().min(at + 1));
        }
        Value::Array(items) => items.insert(random.below(items.len() + 1), other(corpus, random)),
        Value::Number(number) => *number = near(number, random),
        Value::String(text) if random.once_in(2) => {
            let kept = text
                .chars()
                .take(random.below(text.chars().count() + 1))
                .collect();
            *text = kept;
        }
        Value::String(text) => text.push_str(&word(corpus, random)),
        Value::Null | Value::Bool(_) => *place = leaf(random),
    }
}

fn near(number: &Number, random: &mut Random) -> Number {
    let step = [1, -1, 2, -2, 256, -256][random.below(6)];
    let near = number.as_i64().and_then(|number| number.checked_add(step));
    near.map_or_else(|| Number::from(step), Number::from)
}

/// Into lists or objects, as deep as readers go and deeper.
fn nest(place: &mut Value, random: &mut Random) {
    let depth = [1, 2, 60, 63, 64, 65, 120, 126, 127, 128, 129, 200][random.below(12)];
    let is_list = random.once_in(2);
    for _ in 0..depth {
        let inner = place.take();
        *place = match is_list {
            true => Value::Array(vec![inner]),
            false => Value::Object(Map::from_iter([("a".to_owned(), inner)])),
        };
    }
}

/// Many of it, up to about the greatest length.
fn many(place: &Value, random: &mut Random, bytes_max: usize) -> Value {
    let bytes = place.to_string().len() + 1;
    let times = match random.once_in(4) {
        true => bytes_max / bytes,
        false => random.below((bytes_max / bytes).min(40)),
    };
    match random.once_in(4) {
        true => {
            let fields =
                (0..times.min(bytes_max / (bytes + 4))).map(|index| (index.to_string(), place.clone()));
            Value::Object(fields.collect())
        }
        false => Value::Array(vec![place.clone(); times]),
    }
}

fn other(corpus: &Corpus, random: &mut Random) -> Value {
    match random.below(4) {
        0 => Value::String(word(corpus, random)),
        1 => number(random),
        2 => random.pick(&corpus.values).cloned().unwrap_or_default(),
        _ => leaf(random),
    }
}

fn leaf(random: &mut Random) -> Value {
    let leaves = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(""),
        json!([]),
        json!({}),
        json!([[]]),
    ];
    random.pick(&leaves).cloned().unwrap_or_default()
}

/// One that this library can write; the others come as bytes.
fn number(random: &mut Random) -> Value {
    let number = random
        .pick(&NUMBERS)
        .and_then(|number| serde_json::from_str(number).ok());
    number.unwrap_or(json!(random.next()))
}

fn word(corpus: &Corpus, random: &mut Random) -> String {
    let word = random.pick(&corpus.words);
    word.map(|word| String::from_utf8_lossy(word).into_owned())
        .unwrap_or_default()
}

fn text(corpus: &Corpus, random: &mut Random, bytes_max: usize) -> String {
    let texts = [
        "",
        "a",
        "\0",
        "\u{1f600}",
        "../../x",
        "\"",
        "\\",
        "{{ x }}",
        "=41",
        "a.b",
        "\u{7f}",
        "\u{202e}",
    ];
    let word = match random.once_in(2) {
        true => word(corpus, random),
        false => random
            .pick(&texts)
            .map(|text| (*text).to_owned())
            .unwrap_or_default(),
    };
    let times = match random.below(8) {
        0 => bytes_max / word.len().max(1),
        1 => random.below(300),
        _ => 1,
    };
    word.repeat(times.min(bytes_max))
}

/// How many values a value is made of, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// The value of this number, counted in order from 0.
fn find<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| find(item, at)),
        Value::Object(fields) => fields.values_mut().find_map(|item| find(item, at)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}
