"""Makes the golden sentence encoders: small random BERT models with the vectors of transformers.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch transformers sentence-transformers
    /tmp/golden/bin/python worker/engine/tests/golden-encoders/make.py

Each folder beside this file gets a model as transformers writes it, the files that sentence-transformers puts
beside one (`modules.json`, `sentence_bert_config.json`, `1_Pooling/config.json` in the spelling of before or
since version 6), and `expected.safetensors`:

  tokens              i64 [tokens]            several sequences of different length, one after the other
  lengths             i64 [sequences]         how many tokens each has; together all of `tokens`
  last_hidden_state   f32 [tokens, hidden]    of each sequence alone, all token types 0
  mean, cls           f32 [sequences, hidden] what sentence-transformers' Pooling makes of it
  mean_normalized, cls_normalized             and its Normalize of that

There is no tokenizer: tests give token ids. The model has the weights of the files, rounded to their dtype, but
computes in f32. Those with bf16 weights have all tensors but the first two once more with `_bf16_inputs` behind
their names: there the inputs of every linear layer are rounded to bf16, and all else is f32.

Made with torch 2.15.0, transformers 5.23.0 and sentence-transformers 6.2.0; the seed fixes everything.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModel, BertConfig, BertModel

CONTEXT_TOKENS = 48
LENGTHS = [1, 2, 7, 16, 17, 33, CONTEXT_TOKENS]

BASE = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=CONTEXT_TOKENS,
    type_vocab_size=2,
    initializer_range=0.2,
)

OLDER_MEAN_POOLING = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}
NEWER_CLS_POOLING = {"embedding_dimension": 36, "pooling_mode": "cls", "include_prompt": True}

MODELS = {
    # name: (dtype, changes of BASE, pooling, whether vectors are normalised)
    "bert-mean-f32": (torch.float32, {}, OLDER_MEAN_POOLING, True),
    "bert-cls-bf16": (
        torch.bfloat16,
        dict(hidden_size=36, num_attention_heads=3, intermediate_size=70, layer_norm_eps=1e-6),
        NEWER_CLS_POOLING,
        False,
    ),
}


def main():
    folder = Path(__file__).parent
    for index, (name, (dtype, changes, pooling, normalizes)) in enumerate(MODELS.items()):
        torch.manual_seed(index)
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        model = BertModel(BertConfig(**(BASE | changes)))
        randomise_vectors(model)
        model.to(dtype).save_pretrained(target)
        write_modules(target, pooling, normalizes)
        reference = AutoModel.from_pretrained(target, dtype=torch.float32, attn_implementation="eager").eval()
        sequences = [torch.randint(0, BASE["vocab_size"], (1, length)) for length in LENGTHS]
        found = {"tokens": torch.cat(sequences, dim=1)[0], "lengths": torch.tensor(LENGTHS)}
        found |= vectors(reference, sequences)
        if dtype is torch.bfloat16:
            for module in reference.modules():
                if isinstance(module, torch.nn.Linear):
                    module.register_forward_pre_hook(lambda _module, inputs: (inputs[0].bfloat16().float(),))
            found |= {f"{key}_bf16_inputs": value for key, value in vectors(reference, sequences).items()}
        save_file(found, target / "expected.safetensors")
        files = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        print(json.dumps({"model": name, "bytes": files}))


@torch.no_grad()
def randomise_vectors(model):
    for name, parameter in model.named_parameters():
        # Fresh norms multiply by one and fresh biases are zero, which would hide that they are missing.
        if name.endswith("LayerNorm.weight"):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.uniform_(-0.5, 0.5)


def write_modules(target, pooling, normalizes):
    def write(path, value):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n")

    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalizes
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths))
    ]
    write(target / "modules.json", modules)
    # Less than the context: texts are cut to it, token ids are not.
    write(target / "sentence_bert_config.json", {"max_seq_length": CONTEXT_TOKENS - 8, "do_lower_case": False})
    write(target / "1_Pooling" / "config.json", pooling)


@torch.no_grad()
def vectors(model, sequences):
    states = [model(tokens).last_hidden_state for tokens in sequences]
    found = {"last_hidden_state": torch.cat(states, dim=1)[0].contiguous()}
    for mode in ["mean", "cls"]:
        pooling = Pooling(model.config.hidden_size, pooling_mode=mode)
        features = [
            pooling({"token_embeddings": state, "attention_mask": torch.ones(state.shape[:2], dtype=torch.long)})
            for state in states
        ]
        pooled = torch.cat([feature["sentence_embedding"] for feature in features])
        found[mode] = pooled
        found[f"{mode}_normalized"] = Normalize()({"sentence_embedding": pooled.clone()})["sentence_embedding"]
    return found


if __name__ == "__main__":
    main()
