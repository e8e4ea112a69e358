"""Times of the attention kernels at Hymba-1.5B's shape, beside compiled FlexAttention; a JSON line each."""
import json
import os
import sys

import torch

from attention import Attention
from time_scan import median

BF = torch.bfloat16
PEAK = 989.4e12


def flops(b, t, h, dqk, dv, meta, window):
    keys = sum(min(i + 1, window) + meta for i in range(t))
    return 2 * b * h * keys * (dqk + dv)


def report(case, ours, fl, against=None, against_ms=None):
    line = dict(op="attention", device=torch.cuda.get_device_name(), case=case, ours_ms=round(ours, 4))
    if against:
        line.update(against=against, against_ms=round(against_ms, 4), ratio=round(against_ms / ours, 3))
    line.update(floor_share=round(fl / PEAK * 1e3 / ours, 3))
    print(json.dumps(line), flush=True)


def flex(b, t, h, g, dqk, dv, meta, window):
    """Forward, and both. The meta keys are queries too there, as the official model has them."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    n = t + meta
    see = lambda _b, _h, q, k: (q >= k) & ((q - k < window) | (k < meta))
    block = create_block_mask(see, None, None, n, n, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    rnd = lambda *s: torch.randn(*s, device="cuda").to(BF).transpose(1, 2)
    q, k, v, dy = (x.requires_grad_() for x in (rnd(b, n, h, dqk), rnd(b, n, g, dqk), rnd(b, n, g, dv), rnd(b, n, h, dv)))
    best = None
    for halves in (False, True):
        def call():
            if not halves:
                return compiled(q, k, v, block_mask=block, enable_gqa=True)
            kk, vv = (x[:, :, None].expand(b, g, h // g, n, x.shape[-1]).reshape(b, h, n, x.shape[-1]) for x in (k, v))
            return torch.cat([compiled(q, kk, x, block_mask=block) for x in vv.split(dqk, -1)], -1)
        try:
            times = median(call), median(lambda: torch.autograd.grad(call(), (q, k, v), dy))
            print("flex", "halves" if halves else "grouped", times, flush=True)
            best = times if best is None or times[1] < best[1] else best
        except Exception as e:
            print("flex:", str(e)[:300])
        if dv == dqk:
            break
    return best


def ours(b, t, h, g, dqk, dv, meta, window, peer=None, label="", **more):
    ops = Attention(dqk, dv, **more)
    if "COMPILE_ONLY" in os.environ:
        return
    rnd = lambda *s: torch.randn(*s, device="cuda").to(BF)
    q, dy = rnd(b, t, h, dqk).transpose(1, 2), rnd(b, t, h, dv).transpose(1, 2)
    k, v = rnd(b, t, g, dqk).transpose(1, 2), rnd(b, t, g, dv).transpose(1, 2)
    mk, mv = (rnd(1, g, meta, d) if meta else None for d in (dqk, dv))
    x = (q, mk, mv, k, v)
    y, lse = ops.forward(*x, window=window)
    fwd = median(lambda: ops.forward(*x, window=window))
    queries = median(lambda: ops.backward(dy, y, lse, *x, window=window, only="queries"))
    keys = median(lambda: ops.backward(dy, y, lse, *x, window=window, only="keys"))
    bwd = median(lambda: ops.backward(dy, y, lse, *x, window=window))
    fl = flops(b, t, h, dqk, dv, meta, window or 2**30)
    case = f"{b}x{t} {h}/{g} {dqk}/{dv} W{window} M{meta} {label}".strip()
    tf = lambda f, ms: f"{fl * f / ms / 1e9:.0f}"
    ratio = (2 * dqk + dv + dqk) / (dqk + dv)
    print(f"{case}: fwd {fwd:.4f} ({tf(1, fwd)} TF/s) dq {queries:.4f} dkv {keys:.4f} bwd {bwd:.4f} both {fwd + bwd:.4f}", flush=True)
    if "--json" in sys.argv:
        report("forward " + case, fwd, fl, *(("FlexAttention", peer[0]) if peer else ()))
        report("forward+backward " + case, fwd + bwd, fl * 3.333, *(("FlexAttention", peer[1]) if peer else ()))


def causal(b, t, h, g, d, **more):
    if "COMPILE_ONLY" in os.environ:
        return ours(b, t, h, g, d, d, 0, None, **more)
    """Plain causal attention beside libtorch's choice."""
    import torch.nn.functional as F
    rnd = lambda n: torch.randn(b, t, n, d, device="cuda").to(BF).transpose(1, 2).requires_grad_()
    q, k, v, dy = rnd(h), rnd(g), rnd(g), torch.randn(b, t, h, d, device="cuda").to(BF).transpose(1, 2)
    call = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=h != g)
    print("libtorch", b, t, h, g, d, median(call), median(lambda: torch.autograd.grad(call(), (q, k, v), dy)), flush=True)
    del q, k, v
    ours(b, t, h, g, d, d, 0, None, **more)


VARIANTS = [
    ({}, {}),
    ({}, dict(STAGES=3, BLOCKS=1)),
    ({}, dict(WARPS=4, BLOCKS=4, KEY_BLOCKS=2)),
]
HYMBA = (8, 2048, 25, 5, 64, 128, 128, 1024)

if __name__ == "__main__":
    if "COMPILE_ONLY" not in os.environ:
        print(torch.cuda.get_device_name(), torch.__version__)
    if "--variants" in sys.argv:
        for f, g in VARIANTS:
            try:
                ours(*HYMBA, label=f"f {f} b {g}", forward=f, backward=g)
            except Exception as e:
                print("failed", f, g, str(e)[:200])
    if "--flex" in sys.argv:
        peer = flex(*HYMBA)
    else:
        peer = None
    if "--profile" in sys.argv:
        b, t, h, g, dqk, dv, meta, window = HYMBA
        rnd = lambda *s: torch.randn(*s, device="cuda").to(BF)
        ops = Attention(dqk, dv)
        q, dy, k, v = (rnd(b, t, n, d).transpose(1, 2) for n, d in ((h, dqk), (h, dv), (g, dqk), (g, dv)))
        mk, mv = (rnd(1, g, meta, d) for d in (dqk, dv))
        for _ in range(2):
            y, lse = ops.forward(q, mk, mv, k, v, window=window)
            ops.backward(dy, y, lse, q, mk, mv, k, v, window=window)
        torch.cuda.synchronize()
        sys.exit()
    if "--causal" in sys.argv:
        causal(8, 2048, 25, 25, 64)
        causal(8, 2048, 32, 32, 128)
        causal(8, 2048, 32, 8, 128)
    if "--one" in sys.argv:
        ours(*HYMBA, peer=peer)
