"""llama.cpp at the work of `flotilla bench engine`: converts a model folder once, then does what standard input says.

A line of JSON in, a line with the seconds out: {"work": "load"}, {"work": "prefill", "prompt": [..]} or
{"work": "decode", "prompts": [[..], ..], "steps": [[..], ..]}. Needs the packages llama-cpp-python and gguf:
python llama_cpp.py MODEL_DIR THREADS CHUNK_TOKENS
"""
import ctypes, json, mmap, os, pathlib, sys, time

import gguf
import llama_cpp as llama
import numpy as np

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
LOG_ERROR = 4


def gguf_name(name):
    name = name.removesuffix(".weight")
    if name in OUTER_NAMES:
        return OUTER_NAMES[name] + ".weight"
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.weight"


def tensors(path):
    """Names and bf16 values, as 16 bits each."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:start]).items():
        assert entry["dtype"] == "BF16", (name, entry)
        count = int(np.prod(entry["shape"]))
        values = np.frombuffer(data, "<u2", count, start + entry["data_offsets"][0])
        yield name, values.reshape(entry["shape"])


def rotated_rows(values, heads):
    """A head's two halves, which Hugging Face rotates against each other, become neighbours."""
    rows, columns = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def convert(folder, target):
    config = json.loads((folder / "config.json").read_text())
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_name(folder.name)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, values in tensors(folder / "model.safetensors"):
        name = gguf_name(name)
        if values.ndim == 1:
            writer.add_tensor(name, (values.astype(np.uint32) << 16).view(np.float32))
            continue
        kind = name.split(".")[-2]
        if kind in heads:
            values = rotated_rows(values, heads[kind])
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)


class Peer:
    def __init__(self, path, threads, chunk):
        self.path, self.threads, self.chunk = path, threads, chunk
        self.model, self.contexts, self.flash = None, {}, {}

    def load(self):
        self.unload()
        parameters = llama.llama_model_default_params()
        # Into memory of its own, as the engine does; a mapped file would be read later, at the first token.
        parameters.load_mode = llama.LLAMA_LOAD_MODE_NONE
        begun = time.perf_counter()
        self.model = llama.llama_model_load_from_file(str(self.path).encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {self.path}")
        return time.perf_counter() - begun

    def unload(self):
        for context in self.contexts.values():
            llama.llama_free(context)
        self.contexts = {}
        if self.model:
            llama.llama_model_free(self.model)
        self.model = None

    def context(self, sequences, positions, flash):
        key = (sequences, positions, flash)
        if key not in self.contexts:
            parameters = llama.llama_context_default_params()
            parameters.n_ctx = sequences * -(-positions // 256) * 256
            parameters.n_batch = max(positions, self.chunk)
            parameters.n_ubatch = self.chunk
            parameters.n_seq_max = sequences
            parameters.n_threads = parameters.n_threads_batch = self.threads
            parameters.flash_attn_type = flash
            parameters.kv_unified = False
            parameters.no_perf = True
            context = llama.llama_init_from_model(self.model, parameters)
            if not context:
                raise RuntimeError("llama.cpp cannot make a context")
            self.contexts[key] = context
        return self.contexts[key]

    def step(self, context, batch, parts):
        """One call for (sequence, position, tokens) of each part; wants the logits after each part."""
        batch.n_tokens = 0
        for sequence, position, tokens in parts:
            for offset, token in enumerate(tokens):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, position + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = offset + 1 == len(tokens)
                batch.n_tokens += 1
        begun = time.perf_counter()
        if (code := llama.llama_decode(context, batch)) != 0:
            raise RuntimeError(f"llama_decode answers {code}")
        llama.llama_synchronize(context)
        return time.perf_counter() - begun

    def timed(self, prompts, steps, flash):
        """Seconds of reading the prompts, and of all steps after them. What fills a batch is not counted."""
        longest = max(map(len, prompts)) + len(steps)
        context = self.context(len(prompts), longest, flash)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch = llama.llama_batch_init(max(longest, len(prompts)), 0, 1)
        read = sum(self.step(context, batch, [(at, 0, prompt)]) for at, prompt in enumerate(prompts))
        gone_on = sum(
            self.step(context, batch, [(at, len(prompts[at]) + index, [token]) for at, token in enumerate(tokens)])
            for index, tokens in enumerate(steps)
        )
        llama.llama_batch_free(batch)
        return gone_on if steps else read

    def run(self, prompts, steps):
        """With flash attention or without: the first time tells which is faster for work of this size."""
        size = (len(prompts), len(prompts[0]), len(steps))
        if size not in self.flash:
            kinds = [llama.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama.LLAMA_FLASH_ATTN_TYPE_ENABLED]
            tried = [(self.timed(prompts, steps, kind), kind) for kind in kinds * 2]
            self.flash[size] = min(tried)[1]
        return self.timed(prompts, steps, self.flash[size])

    def work(self, request):
        match request["work"]:
            case "load":
                return self.load()
            case "prefill":
                return self.run([request["prompt"]], [])
            case "decode":
                return self.run(request["prompts"], request["steps"])


@llama.llama_log_callback
def log(level, text, _):
    if level == LOG_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def main():
    folder, threads, chunk = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # Standard output belongs to the answers, whatever a library prints.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = lambda value: print(json.dumps(value), file=answers, flush=True)
    llama.llama_log_set(log, ctypes.c_void_p(0))
    llama.llama_backend_init()
    target = folder / "bf16.gguf"
    if not target.exists():
        convert(folder, target)
    peer = Peer(target, threads, chunk)
    system = llama.llama_print_system_info().decode().removeprefix("CPU : ")
    features = [name for name, _, value in (part.strip().partition(" = ") for part in system.split("|")) if value == "1"]
    answer({"version": f"llama-cpp-python {llama.__version__} ({' '.join(features)})"})
    for line in sys.stdin:
        answer({"seconds": peer.work(json.loads(line))})
    peer.unload()


main()
