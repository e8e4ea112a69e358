"""Tiny DeepSeek models of transformers and what they compute, for the test of multi-head latent attention.

    pip install -r requirements.txt
    python make_mla.py [FOLDER]        # ../fixtures/mla unless given

A safetensors file for each model: its weights under their own names, `input_ids [2, 40]`, `logits_full` of one
forward, and `logits_decode` of the last 16 positions (a prefill of 24, then a token a call with the cache). All of it in
64 bits on one thread of a CPU.
"""

import pathlib
import sys
import zlib

import torch
import transformers
from safetensors.torch import save_file

BATCH, TIME, STEPS = 2, 40, 16

# Every channel mixer dense: `first_k_dense_replace` is as large as the number of layers.
COMMON = dict(
    vocab_size=48,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    first_k_dense_replace=2,
    num_attention_heads=3,
    num_key_value_heads=3,
    kv_lora_rank=10,
    qk_nope_head_dim=6,
    qk_rope_head_dim=8,
    v_head_dim=5,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    rms_norm_eps=1e-6,
)

MODELS = {
    # V3: a latent of the queries, and YaRN with mscale = mscale_all_dim: the whole score is scaled.
    "deepseek_v3": transformers.DeepseekV3Config(
        **COMMON,
        q_lora_rank=12,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=100.0,
            factor=8.0,
            original_max_position_embeddings=32,
            beta_fast=4.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
        ),
    ),
    # V2 Lite: queries straight from the layer, plain rotary embedding, interleaved as complex numbers.
    "deepseek_v2": transformers.DeepseekV2Config(
        **COMMON, q_lora_rank=None, rope_parameters=dict(rope_type="default", rope_theta=10_000.0)
    ),
}


def draw(model, path, shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{model} {path}".encode())))
    if "norm" in path:
        return 1 + 0.3 * noise
    return (0.5 if "embed_tokens" in path else 0.25) * noise


def decoded(model, ids):
    """Logits of the last STEPS positions: a prefill of the others, then a token a call."""
    logits, cache, split = [], None, TIME - STEPS
    for start, end in [(0, split)] + [(t, t + 1) for t in range(split, TIME)]:
        output = model(ids[:, start:end], use_cache=True, past_key_values=cache)
        logits.append(output.logits)
        cache = output.past_key_values
    return torch.cat(logits[1:], 1)


def main():
    torch.set_num_threads(1)
    here = pathlib.Path(__file__).resolve().parent
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "../fixtures/mla"
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in MODELS.items():
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                parameter.copy_(draw(name, path, tuple(parameter.shape)))
            generator = torch.Generator().manual_seed(7)
            ids = torch.randint(0, config.vocab_size, (BATCH, TIME), generator=generator)
            weights = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}
            model.double()
            full, steps = model(ids).logits, decoded(model, ids)
        difference = (full[:, -STEPS:] - steps).abs().max().item()
        print(f"{name}: full and decoding differ by {difference:.1e}, largest logit {full.abs().max().item():.2f}")
        assert difference < 1e-5
        # The rotary tables of the library are in 32 bits, so its logits are not better than that.
        outputs = dict(input_ids=ids, logits_full=full.float(), logits_decode=steps.float())
        save_file({**weights, **outputs}, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
