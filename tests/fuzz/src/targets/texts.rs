//! A model's text files: tokenizers, and the templates that chats are rendered by.

use std::path::Path;
use std::time::SystemTime;

use flotilla_text::{
    AnswerText, ChatOptions, ChatTemplate, GenerationPrompt, SpecialTokens, StopStrings, Tokenizer,
};
use serde_json::{Value, json};

use crate::corpus::{Corpus, file, files, repository};
use crate::probe::{Probe, Verdict, write};
use crate::target::{Format, Target};

pub(super) fn targets() -> Vec<Target> {
    vec![tokenizer(), tokenizer_config(), template(), messages()]
}

/// `tokenizer.json`, and what comes of a text with it.
fn tokenizer() -> Target {
    let models =
        ["adder", "reverser", "sorter"].map(|model| file(&format!("cli/demo-models/{model}/tokenizer.json")));
    let corpus = Corpus::new(Format::Json, models).and(tokenizers());
    Target::new("tokenizer", corpus, |probe, input| {
        let folder = probe.folder(|_| ()).to_owned();
        write(&folder.join("tokenizer.json"), input);
        let opened = probe.measure(|| Tokenizer::open(&folder));
        if let Ok(tokenizer) = &opened {
            probe.measure(|| use_it(tokenizer));
        }
        Verdict::from(&opened)
    })
    .weighing(4)
}

/// What a worker does with a tokenizer; whatever it says is no matter here.
fn use_it(tokenizer: &Tokenizer) {
    for special in [SpecialTokens::Add, SpecialTokens::Skip] {
        let _ = tokenizer.encode("12+34=46, ä\u{1f600} the", special);
    }
    let _ = (
        tokenizer.bos_id(),
        tokenizer.eos_id(),
        tokenizer.spells_alike_anywhere(),
    );
    let _ = tokenizer.decode_all(&[0, 1, 5, 255, u32::MAX]);
    let stop = StopStrings::new(&["46".to_owned()]).expect("it is a stop string");
    let mut text = AnswerText::new(tokenizer.clone(), stop);
    for token in [0, 3, 9, 70_000] {
        if text.push(token).is_err() {
            break;
        }
    }
}

/// Of other kinds than the demonstration models' are.
fn tokenizers() -> Vec<String> {
    let bpe = json!({"version": "1.0", "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
        "added_tokens": [{"id": 9, "content": "<s>", "single_word": false, "lstrip": true, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [9], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": true, "vocab": {"1": 0, "2": 1, "12": 2, "+": 3, "t": 4, "h": 5, "th": 6, "e": 7, "the": 8}, "merges": ["1 2", "t h", "th e"]}});
    let word_piece = json!({"version": "1.0", "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 2]}, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"[UNK]": 0, "[SEP]": 1, "[CLS]": 2, "the": 3, "1": 4, "##2": 5}}});
    let unigram = json!({"version": "1.0", "pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [["<unk>", 0.0], ["1", -1.5], ["_the", -2.0]]}});
    let words = json!({"version": "1.0", "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\d+|\\s"}, "behavior": "Isolated", "invert": false},
        "decoder": {"type": "CTC", "pad_token": "1", "word_delimiter_token": "|", "cleanup": true},
        "model": {"type": "WordLevel", "vocab": {"1": 0, "the": 1, "?": 2}, "unk_token": "?"}});
    [bpe, word_piece, unigram, words]
        .map(|value| value.to_string())
        .to_vec()
}

fn tokenizer_config() -> Target {
    let sample = file("cli/demo-models/adder/tokenizer_config.json");
    let other = json!({"bos_token": {"content": "<s>", "special": true}, "eos_token": null, "chat_template": [
        {"name": "default", "template": "{% for m in messages %}{{ m.content }}{% endfor %}"}, {"name": "tool_use", "template": "x"}]});
    let corpus = Corpus::new(Format::Json, [sample]).and([other.to_string()]);
    Target::new("tokenizer-config", corpus, |probe, input| {
        let folder = probe.folder(|_| ()).to_owned();
        write(&folder.join("tokenizer_config.json"), input);
        open_and_render(probe, &folder, &chat())
    })
    .weighing(4)
}

fn template() -> Target {
    let folder = repository().join("worker/text/tests/templates");
    let samples = files(&folder)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "jinja"));
    let samples = samples.map(|path| std::fs::read(path).expect("a template can be read"));
    Target::new(
        "chat-template",
        Corpus::new(Format::Text, samples),
        |probe, input| {
            let folder = probe.folder(|_| ()).to_owned();
            write(&folder.join("chat_template.jinja"), input);
            open_and_render(probe, &folder, &chat())
        },
    )
    .weighing(4)
}

/// Messages of all forms with a real model's template.
fn messages() -> Target {
    Target::new(
        "chat-messages",
        Corpus::of_values(Format::Json, [chat()]),
        |probe, input| {
            let folder = probe
                .folder(|folder| {
                    write(
                        &folder.join("chat_template.jinja"),
                        &file("worker/text/tests/templates/qwen3.jinja"),
                    )
                })
                .to_owned();
            match serde_json::from_slice(input) {
                Ok(chat) => open_and_render(probe, &folder, &chat),
                Err(_) => Verdict::Refused,
            }
        },
    )
    .weighing(4)
}

fn open_and_render(probe: &mut Probe, folder: &Path, chat: &Value) -> Verdict {
    let Ok(Some(template)) = probe.measure(|| ChatTemplate::open(folder)) else {
        return Verdict::Refused;
    };
    let (messages, tools) = (chat["messages"].as_array(), chat.get("tools"));
    let options = ChatOptions {
        generation_prompt: GenerationPrompt::Add,
        tools,
        now: SystemTime::UNIX_EPOCH,
    };
    let messages = messages.map(Vec::as_slice).unwrap_or_default();
    Verdict::from(&probe.measure(|| template.render(messages, options)))
}

fn chat() -> Value {
    json!({"messages": [
            {"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "<think>\nhm</think>2", "reasoning_content": "hm",
             "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1.5}}}]},
            {"role": "tool", "content": "3", "name": "f"}, {"role": "user", "content": "ä\u{1f600}"}],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]})
}
