"""Tiny random models of transformers and what they compute, for the tests of the importers.

    pip install -r requirements.txt
    python make_transformers.py [FOLDER]        # ../fixtures/transformers unless given

A folder for each model: the checkpoint as `save_pretrained` writes it, and `io.safetensors` (README.md has its
contents). Everything runs on one thread of a CPU in 32 bits.
"""

import json
import pathlib
import shutil
import sys
import zlib

import torch
import transformers
from safetensors.torch import save_file
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

BATCH, TIME, STEPS, VOCABULARY = 2, 40, 16, 64
TOLERANCE = 1e-4

SMALL = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64)

MODELS = {
    # Grouped queries, a head of its own.
    "llama": transformers.LlamaConfig(**SMALL, **HEADS, tie_word_embeddings=False, rms_norm_eps=1e-5),
    # With theta 100 and heads of 8 channels the wavelengths are 6, 20, 63 and 199: one that is kept, one that is
    # blended, two that are divided.
    "llama3_tied": transformers.LlamaConfig(
        **SMALL,
        **HEADS,
        tie_word_embeddings=True,
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=100.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    # Heads wider than hidden_size / num_attention_heads, and a window shorter than the prefill.
    "mistral": transformers.MistralConfig(**SMALL, **HEADS, head_dim=12, sliding_window=8),
    "mamba": transformers.MambaConfig(**SMALL, state_size=8, time_step_rank=3, conv_kernel=3),
    # Chunks of 16: the full forward crosses two of their borders and ends inside a third.
    "mamba2": transformers.Mamba2Config(**SMALL, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=16),
    # Mamba, attention, Mamba; every channel mixer dense.
    "jamba": transformers.JambaConfig(
        **SMALL | dict(num_hidden_layers=3),
        **HEADS | dict(intermediate_size=24),
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=1,
        num_experts_per_tok=1,
        mamba_d_state=8,
    ),
    # The cache of transformers rounds the widths of q, k and v up to multiples of 64, the layer does not, so
    # they have to be such multiples. `autocast_kernel_dtype` is bfloat16 by default.
    "xlstm": transformers.xLSTMConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_heads=4,
        qk_dim_factor=4.0,
        v_dim_factor=8.0,
        ffn_proj_factor=2.667,
        ffn_round_up_to_multiple_of=8,
        chunk_size=16,
        gate_soft_cap=6.0,
        output_logit_soft_cap=10.0,
        autocast_kernel_dtype="float32",
    ),
    "mixtral": transformers.MixtralConfig(
        **SMALL, **HEADS | dict(intermediate_size=16), num_local_experts=4, num_experts_per_tok=2
    ),
}


def generator(name):
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def draw(model, parameter):
    """Values for a parameter: large enough that every path of the model shows in its logits."""
    path, shape = parameter
    noise = torch.randn(shape, generator=generator(f"{model} {path}"))
    name = path.removesuffix(".weight").rsplit(".", 1)[-1]
    if name == "A_log":
        states = torch.arange(1, shape[-1] + 1).float().log()
        return states.expand(shape) + 0.3 * noise
    if name == "D" or "norm" in name:
        return 1 + 0.3 * noise
    if path.endswith("dt_proj.bias") or name == "dt_bias":
        return noise - 2  # steps between about 0.02 and 0.7
    if path.endswith("fgate_preact.bias"):
        return 3 + noise
    if path.endswith("conv1d.weight"):
        return 0.5 * noise
    if name in ("igate_preact", "fgate_preact") or (model == "xlstm" and name == "lm_head"):
        return 0.5 * noise  # up to where the soft caps bend, and no further: 32 bits have to suffice
    if name in ("embed_tokens", "embeddings"):
        return noise if model == "xlstm" else 0.5 * noise
    return 0.2 * noise


def build(name, config):
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.copy_(draw(name, (path, tuple(parameter.shape))))
    return model


CACHES = ("past_key_values", "cache_params")


def cached(model, ids):
    """Logits of the last STEPS positions: a prefill of the others, then a token a call."""
    logits, cache = [], {}
    split = TIME - STEPS
    for start, end in [(0, split)] + [(t, t + 1) for t in range(split, TIME)]:
        output = model(ids[:, start:end], use_cache=True, **cache)
        cache = {key: output[key] for key in CACHES if output.get(key) is not None}
        assert cache, "the model returned no cache"
        logits.append(output.logits)
    return torch.cat(logits[1:], 1)


def routing(model, ids):
    """What Mixtral's router costs: balance losses, their gradients, and a whole training loss."""
    gates = [layer.mlp.gate.weight for layer in model.model.layers]
    output = model(ids, labels=ids, output_router_logits=True)
    config = model.config
    io = {"aux_loss": output.aux_loss, "loss": output.loss}
    for layer, logits in enumerate(output.router_logits):
        ranked = logits.sort(-1, descending=True).values
        chosen = config.num_experts_per_tok
        gap = (ranked[:, chosen - 1] - ranked[:, chosen]).min()
        assert gap > 100 * 1e-6, f"layer {layer}: a choice of experts hangs on {gap:.1e}"
        io[f"router_logits.{layer}"] = logits
        io[f"aux_loss.{layer}"] = load_balancing_loss_func((logits,), config.num_local_experts, chosen)
    for what in ("aux_loss", "loss"):
        gradients = torch.autograd.grad(io[what], gates, retain_graph=True)
        io |= {f"{what}_gradient.{layer}": gradient for layer, gradient in enumerate(gradients)}
    return io


def write(folder, name, config):
    model = build(name, config)
    ids = torch.randint(VOCABULARY, (BATCH, TIME), generator=generator(f"{name} ids"))
    with torch.no_grad():
        full, decoded = model(ids, use_cache=False).logits, cached(model, ids)
    io = {"input_ids": ids, "logits_full": full, "logits_decode": decoded}
    if name == "mixtral":
        io |= routing(model, ids)
    difference = (full[:, -STEPS:] - decoded).abs().max().item()
    shutil.rmtree(folder / name, ignore_errors=True)
    model.save_pretrained(folder / name)
    (folder / name / "generation_config.json").unlink(missing_ok=True)
    save_file({key: value.detach().contiguous() for key, value in io.items()}, folder / name / "io.safetensors")
    size = sum(file.stat().st_size for file in (folder / name).iterdir()) / 1024
    print(f"{name:12} {size:4.0f} KiB, |logits| up to {full.abs().max():5.2f}, decoding differs by {difference:.1e}")
    assert difference <= TOLERANCE, f"{name}: decoding differs from the full forward by {difference:.1e}"


HEAD_DIM, ORIGINAL = 16, 2048
ROPE = {
    "default": dict(rope_type="default", rope_theta=1e4),
    "linear": dict(rope_type="linear", rope_theta=5e5, factor=2.5),
    "dynamic": dict(rope_type="dynamic", rope_theta=1e4, factor=2.0),
    "yarn": dict(rope_type="yarn", rope_theta=1e4, factor=4.0),
    "yarn_betas": dict(rope_type="yarn", rope_theta=1e6, factor=16.0, beta_fast=20.0, beta_slow=2.0),
    "yarn_attention_factor": dict(rope_type="yarn", rope_theta=1e4, factor=4.0, attention_factor=0.8),
    "llama3": dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    "llama3_factors": dict(rope_type="llama3", rope_theta=1e4, factor=32.0, low_freq_factor=2.0, high_freq_factor=8.0),
}
# Positions of two sequences: the trained length is passed by both, by different amounts, and by none.
POSITIONS = {"far": [[0, 1, 2047, 5000], [3, 700, 2048, 8191]], "near": [[0, 1, 30, 1000], [3, 700, 41, 2047]]}


def values(tensor):
    """Nine digits say which 32-bit number it is."""
    return {"shape": list(tensor.shape), "data": [float(f"{x:.9g}") for x in tensor.flatten().tolist()]}


def rope(name, positions):
    parameters = dict(ROPE[name])
    if parameters["rope_type"] in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = ORIGINAL
    config = transformers.LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=ORIGINAL,
        rope_parameters=parameters,
    )
    embedding = LlamaRotaryEmbedding(config)
    where = torch.tensor(positions)
    x = torch.randn((len(where), 1, where.shape[1], HEAD_DIM), generator=generator("rope"))
    cos, sin = embedding(x, where)
    turned, _ = apply_rotary_pos_emb(x, x, cos, sin)
    return {
        "in": {"parameters": parameters, "original": ORIGINAL, "positions": where.tolist(), "x": values(x)},
        "out": {
            "inv_freq": values(embedding.inv_freq),
            "attention_factor": embedding.attention_scaling,
            "turned": values(turned),
        },
    }


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    default = pathlib.Path(__file__).parent.parent / "fixtures" / "transformers"
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in MODELS.items():
        write(folder, name, config)
    cases = {f"{name}/{where}": rope(name, positions) for name in ROPE for where, positions in POSITIONS.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
    (folder / "rope.json").write_text("{\n" + lines + "\n}\n")


main()
