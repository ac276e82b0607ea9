//! Model folders, made by code so that a test shows what its tokenizer is.

use std::path::{Path, PathBuf};

use flotilla_text::Tokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Id of `<|end|>` in [`byte_level`].
pub const BYTE_LEVEL_END: u32 = 256;

/// The demonstration model that adds numbers.
pub fn adder_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cli/demo-models/adder")
}

/// A folder with these files.
pub fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

/// Opens a tokenizer from the content of its `tokenizer.json`.
pub fn open(tokenizer_json: &Value) -> Tokenizer {
    Tokenizer::open(folder(&[("tokenizer.json", &tokenizer_json.to_string())]).path()).unwrap()
}

/// A byte-level tokenizer: ids 0 to 255 are the bytes, 256 is special, then some longer tokens, one of
/// them the first half of an emoji and one its second half with a letter.
pub fn byte_level() -> Value {
    let mut vocabulary: Vec<String> = (0..=255).map(|byte| byte_character(byte).to_string()).collect();
    vocabulary.push("<|end|>".to_owned());
    let longer: [&[u8]; 5] = [
        b" the",
        "界".as_bytes(),
        &[0xf0, 0x9f],
        &[0x98, 0x80, b'a'],
        b"STOP",
    ];
    vocabulary.extend(
        longer
            .iter()
            .map(|bytes| bytes.iter().map(|&byte| byte_character(byte)).collect()),
    );
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let mut file = with(vocabulary, byte_level.clone());
    file["pre_tokenizer"] = byte_level;
    file["added_tokens"] = json!([added(BYTE_LEVEL_END, "<|end|>")]);
    file
}

/// A tokenizer with these tokens, in the order of their ids, and this decoder.
pub fn with(vocabulary: Vec<String>, decoder: Value) -> Value {
    let vocabulary: serde_json::Map<String, Value> = vocabulary
        .into_iter()
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": decoder,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
}

fn added(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
}

/// The character that stands for a byte, after the rule of GPT-2's `bytes_to_unicode`.
fn byte_character(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|&earlier| !visible(earlier)).count();
    char::from_u32(0x100 + u32::try_from(earlier).unwrap()).unwrap()
}

/// Id of the token that ends an answer in [`byte_fallback`].
pub const BYTE_FALLBACK_END: u32 = 0;

/// A tokenizer of Llama 2's kind: the end, a token for each byte, then printable characters and some more.
pub fn byte_fallback() -> Value {
    let mut file = with(
        fallback_tokens(),
        json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}),
    );
    file["model"]["byte_fallback"] = json!(true);
    file["added_tokens"] = json!([added(BYTE_FALLBACK_END, "</s>")]);
    file
}

/// The id of a token of [`byte_fallback`].
pub fn fallback_id(token: &str) -> u32 {
    let place = fallback_tokens().iter().position(|other| other == token);
    u32::try_from(place.unwrap()).unwrap()
}

fn fallback_tokens() -> Vec<String> {
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    let printable = ('!'..='~').map(String::from);
    let longer = ["▁", "▁▁", "▁{", "▁\"", "\":", "▁a", "é", "界", "12", "true"];
    let all = ["</s>".to_owned()].into_iter().chain(bytes).chain(printable);
    all.chain(longer.map(str::to_owned)).collect()
}
