"""Makes the golden models: small random Llama models with the logits and tokens of Hugging Face transformers.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch transformers
    /tmp/golden/bin/python worker/engine/tests/golden/make.py

Each folder beside this file gets a model as transformers writes it, and `expected.safetensors`:

  tokens      i64 [length]           the prompt
  logits      f32 [length, vocab]    of every position of the prompt
  generated   i64 [count]            greedy continuation of the prompt

The model that transformers evaluates has the weights of the files, rounded to their dtype, but computes in f32,
as the engine does. Made with torch 2.15.0 and transformers 5.23.0; the seed fixes everything.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT_TOKENS = 40
GENERATED_TOKENS = 24

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

MODELS = {
    # name: (dtype, changes of BASE, shard size)
    "gqa-f32": (torch.float32, dict(hidden_size=40, num_attention_heads=4, num_hidden_layers=2), None),
    "mha-bf16-tied": (torch.bfloat16, dict(num_key_value_heads=4, tie_word_embeddings=True), None),
    "gqa-f16": (torch.float16, dict(rms_norm_eps=1e-5), None),
    "wide-heads-bf16": (
        torch.bfloat16,
        dict(head_dim=20, num_key_value_heads=1, rope_theta=500000.0, eos_token_id=[2, 5]),
        None,
    ),
    "sharded-bf16": (torch.bfloat16, dict(hidden_size=50, num_attention_heads=5, num_key_value_heads=5), "50KB"),
}


def main():
    folder = Path(__file__).parent
    for index, (name, (dtype, changes, shard_size)) in enumerate(MODELS.items()):
        torch.manual_seed(index)
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        settings = BASE | changes
        theta = settings.pop("rope_theta", 10000.0)
        config = LlamaConfig(**settings, rope_parameters={"rope_type": "default", "rope_theta": theta})
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                # Fresh norms are all ones, which would hide a missing multiplication.
                if "norm" in parameter_name:
                    parameter.uniform_(0.5, 1.5)
        model = model.to(dtype)
        model.save_pretrained(target, **({"max_shard_size": shard_size} if shard_size else {}))
        # Read back, not cast back: `to(bfloat16)` rounds the rotary frequencies as well, which no file stores.
        reference = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        save_file(expected(reference, config), target / "expected.safetensors")
        files = sum(file.stat().st_size for file in target.iterdir())
        print(json.dumps({"model": name, "bytes": files}))


@torch.no_grad()
def expected(model, config):
    tokens = torch.randint(3, config.vocab_size, (1, PROMPT_TOKENS))
    logits = model(tokens).logits[0]
    generated = []
    so_far = tokens
    for _ in range(GENERATED_TOKENS):
        last = model(so_far).logits[0, -1]
        best, second = last.topk(2).values
        # A near-tie would test luck, not the engine.
        assert best - second > 1e-3, f"near-tie {best - second}: choose another seed"
        generated.append(int(last.argmax()))
        so_far = torch.cat([so_far, torch.tensor([[generated[-1]]])], dim=1)
    return {
        "tokens": tokens[0].contiguous(),
        "logits": logits.contiguous(),
        "generated": torch.tensor(generated),
    }


if __name__ == "__main__":
    main()
