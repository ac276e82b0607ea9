"""Makes `instant`: the smallest model that walks the whole path, so that a benchmark measures the path and not the model.

One layer, eight numbers wide, random weights from a fixed seed; a letter of its alphabet is a token. Needs nothing but
Python: python make.py OUT_DIR
"""
import json, pathlib, random, struct, sys

ALPHABET = ["<s>", "</s>", "<unk>", *"0123456789+=", " "]
HIDDEN, INNER, HEADS, VOCABULARY = 8, 16, 2, 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "head_dim": HIDDEN // HEADS, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "vocab_size": VOCABULARY, "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1,
}
SHAPES = {
    "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
    **{f"model.layers.0.self_attn.{name}_proj.weight": [HIDDEN, HIDDEN] for name in "qkvo"},
    "model.layers.0.mlp.gate_proj.weight": [INNER, HIDDEN],
    "model.layers.0.mlp.up_proj.weight": [INNER, HIDDEN],
    "model.layers.0.mlp.down_proj.weight": [HIDDEN, INNER],
    "model.layers.0.input_layernorm.weight": [HIDDEN],
    "model.layers.0.post_attention_layernorm.weight": [HIDDEN],
    "model.norm.weight": [HIDDEN],
}


def tokenizer():
    special = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, token in enumerate(ALPHABET[:3])]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(ALPHABET)}, "unk_token": "<unk>"},
    }


def safetensors():
    draw, header, data = random.Random(1), {}, b""
    for name, shape in SHAPES.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0] * count if "norm" in name else [draw.uniform(-0.5, 0.5) for _ in range(count)]
        packed = struct.pack(f"<{count}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


folder = pathlib.Path(sys.argv[1]) / "instant"
folder.mkdir(parents=True, exist_ok=True)
for file, content in {"config.json": CONFIG, "generation_config.json": {"eos_token_id": 1}, "tokenizer.json": tokenizer(),
                      "tokenizer_config.json": {"eos_token": "</s>"}}.items():
    (folder / file).write_text(json.dumps(content, indent=1) + "\n")
(folder / "model.safetensors").write_bytes(safetensors())
