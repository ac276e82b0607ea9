"""Makes the golden models: small random decoders of every family, with logits and tokens of transformers.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch transformers
    /tmp/golden/bin/python worker/engine/tests/golden/make.py

Each folder beside this file gets a model as transformers writes it, and `expected.safetensors`:

  tokens      i64 [length]           the prompt
  logits      f32 [length, vocab]    of every position of the prompt
  generated   i64 [count]            greedy continuation of the prompt

The model that transformers evaluates has the weights of the files, rounded to their dtype, but computes in f32.
Models with bf16 weights have two more, of the same model with the inputs of every linear layer rounded to bf16,
as hardware that multiplies bf16 needs them; all else is f32:

  logits_bf16_inputs, generated_bf16_inputs

`rope.json` has the inverse frequencies and attention factors that transformers computes for some configurations.

Made with torch 2.15.0 and transformers 5.23.0; the seed fixes everything.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

PROMPT_TOKENS = 40
GENERATED_TOKENS = 24
# A near-tie would test luck, not the engine. The margin of rounded inputs is a part of the largest logit.
MARGIN = 1e-3
MARGIN_BF16_INPUTS = 1e-2

BASE = dict(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
    initializer_range=0.2,
)
# Keeps f32 files small.
SMALL = dict(hidden_size=32, intermediate_size=64)

MODELS = {
    # name: (configuration, dtype, changes of BASE, shard size)
    "gqa-f32": (LlamaConfig, torch.float32, dict(hidden_size=40, num_hidden_layers=2), None),
    "mha-bf16-tied": (LlamaConfig, torch.bfloat16, dict(num_key_value_heads=4, tie_word_embeddings=True), None),
    "gqa-f16": (LlamaConfig, torch.float16, dict(rms_norm_eps=1e-5), None),
    "wide-heads-bf16": (
        LlamaConfig,
        torch.bfloat16,
        dict(head_dim=20, num_key_value_heads=1, rope_theta=500000.0, eos_token_id=[2, 5]),
        None,
    ),
    "sharded-bf16": (
        LlamaConfig,
        torch.bfloat16,
        dict(hidden_size=50, num_attention_heads=5, num_key_value_heads=5),
        "50KB",
    ),
    "llama3-rope-f32": (
        LlamaConfig,
        torch.float32,
        SMALL
        | dict(
            head_dim=16,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=500000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        None,
    ),
    "yarn-bf16": (
        LlamaConfig,
        torch.bfloat16,
        dict(
            head_dim=16,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32
            ),
        ),
        None,
    ),
    "linear-rope-f16": (
        LlamaConfig,
        torch.float16,
        dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
        None,
    ),
    "biases-f16": (LlamaConfig, torch.float16, dict(attention_bias=True, mlp_bias=True), None),
    "mistral-f32": (MistralConfig, torch.float32, SMALL | dict(head_dim=12, sliding_window=18), None),
    "mistral-bf16": (MistralConfig, torch.bfloat16, dict(head_dim=16, sliding_window=16), None),
    "qwen2-bf16": (
        Qwen2Config,
        torch.bfloat16,
        dict(use_sliding_window=True, max_window_layers=1, sliding_window=11, tie_word_embeddings=True),
        None,
    ),
    "qwen3-f16": (Qwen3Config, torch.float16, dict(head_dim=16), None),
    "qwen3-bf16": (Qwen3Config, torch.bfloat16, dict(head_dim=16, attention_bias=True), None),
    "smollm3-f32": (
        SmolLM3Config,
        torch.float32,
        SMALL | dict(no_rope_layer_interval=2, pad_token_id=0, tie_word_embeddings=True),
        None,
    ),
    "gemma3-f32": (
        Gemma3TextConfig,
        torch.float32,
        SMALL
        | dict(
            head_dim=12,
            query_pre_attn_scalar=10,
            sliding_window=9,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            tie_word_embeddings=True,
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
            ),
        ),
        None,
    ),
    "gemma3-bf16": (
        Gemma3TextConfig,
        torch.bfloat16,
        dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=16, tie_word_embeddings=True),
        None,
    ),
}

YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, original_max_position_embeddings=4096)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
ROPES = [
    dict(rope_type="default", rope_theta=1000000.0),
    dict(rope_type="linear", rope_theta=10000.0, factor=2.5),
    LLAMA3,
    LLAMA3 | dict(factor=8.0, low_freq_factor=0.5, high_freq_factor=2.0),
    YARN,
    YARN | dict(truncate=False),
    YARN | dict(mscale=0.707, mscale_all_dim=1.0),
    YARN | dict(mscale=0.707),
    YARN | dict(attention_factor=1.25, beta_fast=16.0, beta_slow=2.0),
    YARN | dict(factor=1.0),
    YARN | dict(rope_theta=150000.0, factor=32.0, truncate=False),
]


def main():
    folder = Path(__file__).parent
    for index, (name, (kind, dtype, changes, shard_size)) in enumerate(MODELS.items()):
        torch.manual_seed(index)
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        config = configuration(kind, BASE | changes)
        model = AutoModelForCausalLM.from_config(config)
        randomise_vectors(model, centre=0.0 if kind is Gemma3TextConfig else 1.0)
        model = model.to(dtype)
        model.save_pretrained(target, **({"max_shard_size": shard_size} if shard_size else {}))
        # Read back, not cast back: `to(bfloat16)` rounds the rotary frequencies as well, which no file stores.
        reference = AutoModelForCausalLM.from_pretrained(
            target, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        if kind is Gemma3TextConfig:
            # Gemma multiplies its embeddings by a number of their own dtype, whatever else is f32.
            scale = reference.model.embed_tokens.embed_scale
            reference.model.embed_tokens.embed_scale = scale.to(dtype).float()
        save_file(expected(reference, config, dtype), target / "expected.safetensors")
        files = sum(file.stat().st_size for file in target.iterdir())
        print(json.dumps({"model": name, "bytes": files}))
    (folder / "rope.json").write_text(json.dumps([rope(case) for case in ROPES], indent=1) + "\n")


def configuration(kind, settings):
    theta = settings.pop("rope_theta", 10000.0)
    if kind is not Gemma3TextConfig:
        settings.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": theta})
    return kind(**settings)


@torch.no_grad()
def randomise_vectors(model, centre):
    for name, parameter in model.named_parameters():
        # Fresh norms multiply by one and fresh biases are zero, which would hide that they are missing.
        if "norm" in name:
            parameter.uniform_(centre - 0.5, centre + 0.5)
        elif name.endswith("bias"):
            parameter.uniform_(-0.5, 0.5)


def expected(model, config, dtype):
    while True:
        tokens = torch.randint(3, config.vocab_size, (1, PROMPT_TOKENS))
        found = {"tokens": tokens[0].contiguous()}
        logits, generated, margin = evaluate(model, tokens)
        found |= {"logits": logits, "generated": generated}
        good = margin > MARGIN
        if good and dtype is torch.bfloat16:
            linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
            hooks = [module.register_forward_pre_hook(round_inputs) for module in linear]
            logits, generated, margin = evaluate(model, tokens)
            for hook in hooks:
                hook.remove()
            found |= {"logits_bf16_inputs": logits, "generated_bf16_inputs": generated}
            good = margin > MARGIN_BF16_INPUTS * logits.abs().max()
        if good:
            return found


def round_inputs(_module, inputs):
    return (inputs[0].bfloat16().float(),)


@torch.no_grad()
def evaluate(model, tokens):
    """The logits of the tokens, their greedy continuation, and its narrowest lead over the second choice."""
    logits = model(tokens).logits[0].contiguous()
    generated = []
    margin = float("inf")
    for _ in range(GENERATED_TOKENS):
        last = model(tokens, use_cache=False).logits[0, -1]
        best, second = last.topk(2).values
        margin = min(margin, float(best - second))
        generated.append(int(last.argmax()))
        tokens = torch.cat([tokens, torch.tensor([[generated[-1]]])], dim=1)
    return logits, torch.tensor(generated), margin


def rope(parameters):
    config = LlamaConfig(**(BASE | dict(head_dim=64, max_position_embeddings=131072, rope_parameters=parameters)))
    if parameters["rope_type"] == "default":
        frequencies = 1.0 / (parameters["rope_theta"] ** (torch.arange(0, 64, 2).float() / 64))
        factor = 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    return {"parameters": parameters, "inverse_frequencies": frequencies.tolist(), "attention_factor": factor}


if __name__ == "__main__":
    main()
