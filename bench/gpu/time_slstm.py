"""Times of the sLSTM's kernels, beside flashrnn where it can be imported. A JSON line a case; the floor is the bytes that
must be moved over the rate of a copy in the same run."""
import importlib
import json
import sys
import types

import torch

import ops
from slstm_ops import Fused, Plain, Step
from time_scan import median

BF = torch.bfloat16


def show(direction, case, ours, peer=None, floor=None, **more):
    line = dict(op="slstm", device=torch.cuda.get_device_name(), case=f"{direction} {case}", ours_ms=round(ours, 4))
    if peer:
        line.update(against="flashrnn 1.0.8 triton_fused", against_ms=round(peer, 4), ratio=round(peer / ours, 2))
    if floor:
        line["floor_share"] = round(floor / ours, 3)
    print(json.dumps({**line, **more}), flush=True)


def copy_rate():
    x = torch.empty(2**28, dtype=torch.float32, device="cuda")
    y = torch.empty_like(x)
    return 8 * x.numel() / median(lambda: y.copy_(x), n=10) * 1e3


def flashrnn(x, r, b, dout):
    try:
        fr = importlib.import_module("flashrnn.flashrnn.flashrnn")
        ci = importlib.import_module("flashrnn.flashrnn.cuda_init")
        ci.time = types.SimpleNamespace(sleep=lambda s: None)  # it waits before every load
        p = torch.cuda.get_device_properties(0)
        fr.get_gpu_info = lambda device_id=0: dict(
            maxThreadsPerBlock=1024, regsPerMultiprocessor=p.regs_per_multiprocessor, multiProcessorCount=p.multi_processor_count,
            sharedMemPerBlockOptin=p.shared_memory_per_block_optin)
        leaves = [z.clone().requires_grad_() for z in (x, r, b)]
        call = lambda: fr.flashrnn(*leaves, function="slstm", backend="triton_fused", dtype="bfloat16")[0][0]
        both = lambda: torch.autograd.grad(call(), leaves, dout)
        return median(call), median(both)
    except Exception as e:
        print("no flashrnn:", repr(e)[:300])
        return None, None


def fused(batch, time, heads, d, cells, masks=False, peer=None, rate=None, splits=None):
    torch.manual_seed(0)
    rnd = lambda *s: torch.randn(*s, device="cuda")
    gates, r, b = rnd(batch, time, 4, heads, d).to(BF), rnd(4, heads, d, d) / d**0.5, rnd(4, heads, d)
    dy, start = rnd(batch, time, heads, d).to(BF), torch.zeros(4, 1, heads, d, device="cuda")
    given = dict(resets=torch.rand(batch, time, device="cuda") < 0.002, reset=start) if masks else {}
    s = Fused(d, cells, masks, torch.float32)
    args = dict(gates=gates, recurrent=r, start=start, bias=b, **given)
    forward = median(lambda: s.forward(**args))
    inference = median(lambda: s.forward(**args, keep=False))
    y, last, kept = s.forward(**args)
    backward = median(lambda: s.backward(dy, None, kept, last, **args, splits=splits))
    parts = s.backward(dy, None, kept, last, **args)
    case = f"{batch}x{time}x{heads}x{d}" + " resets" * masks + f" cells={cells}" + f" splits={splits}" * bool(splits)
    e = batch * time * heads * d
    floors = [10 * e / rate * 1e3, 30 * e / rate * 1e3] if rate else [None] * 2
    step = lambda ms: dict(us_per_token=round(ms / time * 1e3, 3))
    show("forward", case, forward, peer and peer[0], floors[0], **step(forward))
    show("forward without gradients", case, inference, **step(inference))
    show("backward", case, backward, peer and peer[1] - peer[0], **step(backward))
    show("forward+backward", case, forward + backward, peer and peer[1], floors[1])
    del parts


def plain(batch, time, heads, d):
    rnd = lambda *s: torch.randn(*s, device="cuda")
    gates, r, b = rnd(batch, time, 4, heads, d), rnd(4, heads, d, d) / d**0.5, rnd(4, heads, d)
    dy, start = rnd(batch, time, heads, d), torch.zeros(4, 1, heads, d, device="cuda")
    s = Plain(False)
    args = dict(gates=gates, recurrent=r, start=start, bias=b)
    forward = median(lambda: s.forward(**args), n=5)
    y, last, kept = s.forward(**args)
    backward = median(lambda: s.backward(dy, None, kept, last, **args), n=5)
    show("forward f32", f"{batch}x{time}x{heads}x{d}", forward, us_per_token=round(forward / time * 1e3, 3))
    show("backward f32", f"{batch}x{time}x{heads}x{d}", backward, us_per_token=round(backward / time * 1e3, 3))


def step(batch, heads, d):
    rnd = lambda *s: torch.randn(*s, device="cuda")
    gates, r, b = rnd(batch, 1, 4, heads, d).to(BF), (rnd(4, heads, d, d) / d**0.5).to(BF), rnd(4, heads, d)
    start = torch.zeros(4, batch, heads, d, device="cuda")
    s = Step(BF, BF)
    show("step", f"{batch}x{heads}x{d}", median(lambda: s(gates, r, start, b)))


if __name__ == "__main__":
    peers = "--no-peers" not in sys.argv
    rate = copy_rate()
    print(json.dumps(dict(copy_gb_s=round(rate / 1e9))))
    b, t, h, d = 16, 1024, 12, 64
    g = torch.Generator("cuda").manual_seed(1)
    rnd = lambda *s: torch.randn(*s, generator=g, device="cuda").to(BF)
    peer = flashrnn(rnd(b, t, 4, h, d), rnd(4, h, d, d) * d**-0.5, rnd(4, h, d), rnd(b, t, h, d)) if peers else None
    for cells in (1, 2):
        fused(b, t, h, d, cells, peer=peer, rate=rate)
    fused(b, t, h, d, 1, masks=True)
    if "--short" not in sys.argv:
        for cells in (1, 2):
            fused(64, t, h, d, cells)
            fused(b, t, 6, 128, cells)
        fused(b, t, h, d, 1, splits=22)
        plain(b, t, h, d)
        step(1, h, d)
        step(64, h, d)
