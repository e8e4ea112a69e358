"""Times of the attention kernels at Hymba-1.5B's shape, beside compiled FlexAttention; a JSON line each."""
import json
import os
import sys

import torch

from attention import LOG2E, Attention, float32, strides
from nvrtc import Module, compile
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
    for halves in (False, True)[:2 if "--halves" in sys.argv else 1]:
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


def decode(b, h, g, dqk, dv, meta, cached, bits=0):
    """One token, beside libtorch's product with a mask over a cache with the meta keys in front."""
    import math
    import torch.nn.functional as F
    group = min(h // g, 8)
    defines = dict(DQK=dqk, DV=dv, GROUP=group, BITS=bits, RAGGED=0)
    if "COMPILE_ONLY" in os.environ:
        return compile("attention/decode.cu", 90, defines, specific=True)
    module = Module("attention/decode.cu", defines, specific=True)
    rnd = lambda *s: torch.randn(*s, device="cuda").to(BF)
    size = 32
    coded = (cached - 128) // size * size if bits else 0
    q, mk, mv = rnd(b, h, dqk), rnd(1, g, meta, dqk), rnd(1, g, meta, dv)
    k, v = rnd(b, g, cached - coded + 1, dqk), rnd(b, g, cached - coded + 1, dv)
    codes = [None, 0, 0] * 6
    if bits:
        byte = lambda *s: torch.randint(0, 256, s, device="cuda", dtype=torch.uint8)
        parts = [byte(b, g, coded // size, size, dqk * bits // 8), rnd(b, g, coded // size, dqk), rnd(b, g, coded // size, dqk),
                 byte(b, g, coded // size, size, dv * bits // 8), rnd(b, g, coded // size, size), rnd(b, g, coded // size, size)]
        codes = [y for x in parts for y in (x, x.stride(0), x.stride(1))]
    keys = meta + cached + 1
    wanted = max(1, min(132 * 4 // (b * g * -(-(h // g) // 8)), -(-keys // 64)))
    per = min(-(-keys // wanted), 512)
    splits = -(-keys // per)
    y = torch.empty(b, h, dv, device="cuda", dtype=BF)
    sums, scales = torch.empty(b, h, splits, dv, device="cuda"), torch.empty(b, h, splits, 2, device="cuda")

    def call():
        module.launch("attention_decode", (splits, g * -(-(h // g) // 8), b), 128, 0, q, q.stride(0), q.stride(1), *strides(mk),
                      *strides(mv), *strides(k), *strides(v), *codes, None, None, y, sums, scales, meta, coded, size, cached, h,
                      g, 2**30, per, float32(LOG2E / math.sqrt(dqk)))
        if splits > 1:
            module.launch("attention_decode_join", (b * h,), 128, 0, sums, scales, y, splits)

    qq = q.view(b, g, h // g, dqk)
    join = lambda m, x: torch.cat([m.expand(b, -1, -1, -1), x], 2)
    kk, vv = join(mk, rnd(b, g, cached + 1, dqk)), join(mv, rnd(b, g, cached + 1, dv))
    peer = lambda: F.scaled_dot_product_attention(qq, kk, vv)
    ms, other = median(call), median(peer)
    read = b * g * ((coded * bits / 8 + (cached + 1 - coded) * 2) * (dqk + dv))
    print(json.dumps(dict(op="attention decode", device=torch.cuda.get_device_name(), case=f"{b}x{h}/{g} {dqk}/{dv} M{meta} cached {cached} bits {bits}",
                          ours_ms=round(ms, 4), against="libtorch, joined keys in bf16", against_ms=round(other, 4), ratio=round(other / ms, 2),
                          floor_share=round(read / 3.0e9 / ms, 3))), flush=True)


VARIANTS = [
    dict(),
    dict(forward=dict(APART=0), backward=dict(APART=0), keys=dict(APART=0)),
    dict(forward=dict(WARPS=8), backward=dict(WARPS=8), keys=dict(APART=0, WARPS=4, BLOCKS=2)),
    dict(forward=dict(STAGES=3), backward=dict(STAGES=4), keys=dict(STAGES=2)),
]
HYMBA = (8, 2048, 25, 5, 64, 128, 128, 1024)

if __name__ == "__main__":
    if "COMPILE_ONLY" not in os.environ:
        print(torch.cuda.get_device_name(), torch.__version__)
    if "--variants" in sys.argv:
        for variant in VARIANTS:
            try:
                ours(*HYMBA, label=str(variant), **variant)
            except Exception as e:
                print("failed", variant, str(e)[:200])
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
    if "--decode" in sys.argv:
        for b in (1, 64):
            for bits in (0, 8, 4):
                decode(b, 25, 5, 64, 128, 128, 1024, bits)
    if "--causal" in sys.argv:
        causal(8, 2048, 25, 25, 64)
        causal(8, 2048, 32, 32, 128)
        causal(8, 2048, 32, 8, 128)
    if "--one" in sys.argv:
        ours(*HYMBA, peer=peer)
