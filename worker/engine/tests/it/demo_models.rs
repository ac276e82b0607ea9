//! The demo models do what they were trained for. Their vocabularies are single characters.

use std::collections::HashMap;
use std::fs;

use flotilla_worker_engine::{Precision, Sampling};
use serde_json::Value;

use crate::fixture::{Options, Sequence, blocks_of, demo_folder, generate, load_with};

/// The whole answer to a prompt, greedily, up to the token that ends it.
fn answer(name: &str, prompt: &str) -> String {
    answer_with(Options::default(), name, prompt)
}

fn answer_with(options: Options, name: &str, prompt: &str) -> String {
    let folder = demo_folder(name);
    let tokenizer: Value = serde_json::from_slice(&fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    let ids: HashMap<String, u32> = serde_json::from_value(tokenizer["model"]["vocab"].clone()).unwrap();
    let mut model = load_with(&folder, options);
    let config = model.plan().config().clone();
    let characters = prompt.chars().map(|character| ids[&character.to_string()]);
    let tokens: Vec<u32> = config.bos_token_id.into_iter().chain(characters).collect();
    let mut sequence = Sequence::new(&tokens, blocks_of(0));
    let mut answer = String::new();
    loop {
        let token = generate(&mut model, &mut sequence, 1, Sampling::GREEDY)[0];
        if config.eos_token_ids.contains(&token) {
            return answer;
        }
        let (character, _) = ids.iter().find(|(_, id)| **id == token).unwrap();
        answer.push_str(character);
    }
}

#[test]
fn adder_adds() {
    for (prompt, sum) in [
        ("123+456=", "579"),
        ("2+2=", "4"),
        ("999+1=", "1000"),
        ("70+805=", "875"),
    ] {
        assert_eq!(answer("adder", prompt), sum, "{prompt}");
    }
}

#[test]
fn sorter_sorts() {
    for (prompt, sorted) in [
        ("sort 52914=", "12459"),
        ("sort 10=", "01"),
        ("sort 77070=", "00777"),
    ] {
        assert_eq!(answer("sorter", prompt), sorted, "{prompt}");
    }
}

#[test]
fn reverser_reverses() {
    for (prompt, reversed) in [("reverse hello=", "olleh"), ("reverse flotilla=", "allitolf")] {
        assert_eq!(answer("reverser", prompt), reversed, "{prompt}");
    }
}

#[test]
fn quantised_models_still_answer_right() {
    for precision in [Precision::Int8, Precision::Int4] {
        let options = Options {
            precision,
            ..Options::default()
        };
        for (name, prompt, expected) in [
            ("adder", "123+456=", "579"),
            ("sorter", "sort 52914=", "12459"),
            ("reverser", "reverse flotilla=", "allitolf"),
        ] {
            assert_eq!(
                answer_with(options, name, prompt),
                expected,
                "{precision:?}: {prompt}"
            );
        }
    }
}
