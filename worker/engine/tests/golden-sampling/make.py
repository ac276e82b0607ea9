"""Makes the golden draws: fixed logits and what the logits processors of Hugging Face transformers leave of them.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch transformers
    /tmp/golden/bin/python worker/engine/tests/golden-sampling/make.py

Writes `expected.json` beside this file, a list of cases:

  logits           f32 [vocab]
  seen             ids of tokens that were there before
  parameters       repetition_penalty, temperature, top_k, top_p, min_p; null where a processor is left out
  logprobs         f32 [vocab] after the repetition penalty, before everything else
  probabilities    f32 [vocab] after everything, 0 where a token is left out

The order is that of `GenerationMixin`: repetition penalty, temperature, top-k, top-p, min-p. Made with torch
2.15.0 and transformers 5.23.0; the seed fixes everything.
"""

import json
from pathlib import Path

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# (vocabulary, spread of the logits, repetition penalty, temperature, top_k, top_p, min_p)
CASES = [
    (40, 2.0, None, 1.0, None, None, None),
    (40, 2.0, None, 2.5, None, None, None),
    (40, 2.0, None, 0.4, None, None, None),
    (40, 3.0, 1.3, 1.0, None, None, None),
    (40, 3.0, 0.8, 1.0, None, None, None),
    (40, 2.0, None, 1.0, 7, None, None),
    (40, 2.0, None, 1.0, None, 0.8, None),
    (40, 2.0, None, 1.0, None, None, 0.1),
    (40, 2.0, None, 1.7, 12, 0.9, None),
    (40, 2.0, None, 1.7, 12, None, 0.4),
    (40, 2.0, None, 1.7, None, 0.9, 0.05),
    (40, 1.5, 1.2, 1.2, 20, 0.95, 0.2),
    (40, 3.0, 1.9, 1.4, 15, 0.7, 0.3),
    (500, 2.0, None, 1.0, None, 0.7, None),
    (500, 2.0, 1.5, 1.3, 400, 0.9, 0.01),
    (500, 3.0, 1.1, 0.7, None, 0.99, 0.001),
]

SEEN_TOKENS = 12


def numbers(tensor):
    """The shortest decimals that are read back as the same f32."""
    return [float(f"{number:.9g}") for number in tensor.tolist()]


def case(index, vocab, spread, repetition_penalty, temperature, top_k, top_p, min_p):
    torch.manual_seed(index)
    logits = torch.randn(1, vocab) * spread
    seen = torch.randint(vocab, (1, SEEN_TOKENS))
    penalty = LogitsProcessorList()
    if repetition_penalty is not None:
        penalty.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        warpers.append(MinPLogitsWarper(min_p))
    penalised = penalty(seen, logits.clone())
    warped = warpers(seen, penalised.clone())
    return dict(
        logits=numbers(logits[0]),
        seen=seen[0].tolist(),
        parameters=dict(
            repetition_penalty=repetition_penalty,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
        ),
        logprobs=numbers(penalised.log_softmax(-1)[0]),
        probabilities=numbers(warped.softmax(-1)[0]),
    )


def main():
    cases = [case(index, *parameters) for index, parameters in enumerate(CASES)]
    lines = ",\n".join(json.dumps(case) for case in cases)
    (Path(__file__).parent / "expected.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
