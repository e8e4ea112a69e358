"""What the logits processors of transformers make of random scores, for tests/sampling_reference.rs.

    pip install -r requirements.txt
    python make_sampling.py [FILE]        # ../fixtures/generation/sampling.json unless given

The processors are those that `generate` puts together from a configuration, in its order. A score of minus infinity is
written as null.
"""

import json
import math
import pathlib
import sys

import torch
import transformers

VOCABULARY = 23
STOP = [4, 11]

# Rows of different repetition; a row of one token only, too.
PROMPTS = [
    [1, 3, 3, 7, 2, 1, 3],
    [2, 2, 5, 9, 2, 2, 2],
    [0, 1, 2, 3, 4, 5, 6],
    [8, 8, 8, 8, 8, 8, 8],
]
NEW = 3  # of them are new tokens

CASES = {
    "repetition_penalty": dict(repetition_penalty=1.3),
    "repetition_penalty_below_1": dict(repetition_penalty=0.7),
    "no_repeat_ngram_1": dict(no_repeat_ngram_size=1),
    "no_repeat_ngram_2": dict(no_repeat_ngram_size=2),
    "no_repeat_ngram_3": dict(no_repeat_ngram_size=3),
    "no_repeat_ngram_too_long": dict(no_repeat_ngram_size=8),
    "min_new_tokens_before": dict(min_new_tokens=NEW + 1),
    "min_new_tokens_after": dict(min_new_tokens=NEW),
    "temperature": dict(do_sample=True, temperature=0.6, top_k=0),
    "top_k": dict(do_sample=True, top_k=4),
    "top_k_of_equals": dict(do_sample=True, top_k=2),
    "top_k_all": dict(do_sample=True, top_k=100),
    "top_p": dict(do_sample=True, top_k=0, top_p=0.8),
    "top_p_small": dict(do_sample=True, top_k=0, top_p=0.01),
    "min_p": dict(do_sample=True, top_k=0, min_p=0.1),
    "temperature_top_k_top_p_min_p": dict(do_sample=True, temperature=1.7, top_k=12, top_p=0.9, min_p=0.15),
    "all": dict(
        do_sample=True,
        temperature=0.8,
        top_k=9,
        top_p=0.95,
        min_p=0.02,
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
        min_new_tokens=NEW + 2,
    ),
    "greedy_ignores_filters": dict(do_sample=False, repetition_penalty=1.5),
}


def processors(settings):
    """The list that `generate` would use, from a model of no consequence."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    generation = transformers.GenerationConfig(eos_token_id=STOP, pad_token_id=0, **settings)
    model._prepare_special_tokens(generation, kwargs_has_attention_mask=True, device="cpu")
    return model._get_logits_processor(
        generation_config=generation,
        input_ids_seq_length=len(PROMPTS[0]) - NEW,
        encoder_input_ids=None,
        prefix_allowed_tokens_fn=None,
        logits_processor=transformers.LogitsProcessorList(),
        device="cpu",
        model_kwargs={},
    )


def main():
    here = pathlib.Path(__file__).resolve().parent
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "../fixtures/generation/sampling.json"
    generator = torch.Generator().manual_seed(7)
    scores = 2.5 * torch.randn(len(PROMPTS), VOCABULARY, generator=generator)
    # Quarters, so that some are equal.
    equals = (2 * scores).round() / 2
    ids = torch.tensor(PROMPTS)
    cases = {}
    for name, settings in CASES.items():
        given = equals if "equals" in name else scores
        out = processors(settings)(ids, given.clone())
        rows = [[None if math.isinf(value) else value for value in row] for row in out.tolist()]
        cases[name] = {"settings": settings, "scores": given.tolist(), "out": rows}
    fixture = {
        "transformers": transformers.__version__,
        "prompts": [row[:-NEW] for row in PROMPTS],
        "new_tokens": [row[-NEW:] for row in PROMPTS],
        "stop_tokens": STOP,
        "cases": cases,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fixture) + "\n")


if __name__ == "__main__":
    main()
