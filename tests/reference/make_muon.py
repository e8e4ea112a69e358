"""Three steps of torch.optim.Muon on three small matrices, for training/tests/muon.rs.

    pip install torch==2.11.0
    python tests/reference/make_muon.py > training/tests/fixtures/muon.json
"""
import json

import torch

SHAPES = [[12, 8], [8, 12], [5, 5]]


def numbers(tensor):
    return [round(x, 9) for x in tensor.flatten().tolist()]


def run(adjust):
    generator = torch.Generator().manual_seed(1)
    initial = [torch.randn(shape, generator=generator) for shape in SHAPES]
    grads = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(3)]
    parameters = [x.clone().requires_grad_() for x in initial]
    optimizer = torch.optim.Muon(parameters, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn=adjust)
    for step in grads:
        for parameter, grad in zip(parameters, step):
            parameter.grad = grad.clone()
        optimizer.step()
    return {
        "initial": [numbers(x) for x in initial],
        "grads": [[numbers(x) for x in step] for step in grads],
        "final": [numbers(x.detach()) for x in parameters],
    }


print(json.dumps({"torch": torch.__version__.split("+")[0], "shapes": SHAPES, "original": run("original"), "match_rms_adamw": run("match_rms_adamw")}))
