"""The attention kernels against their definition in fp64: relative RMS of the output and of every gradient, and whether two
runs are equal."""
import os
import sys

import torch

from attention import Attention, bounds, definition, mask

NAMES = ["y", "dq", "dmeta_k", "dmeta_v", "dk", "dv"]
KERNELS = {}


def kernels(*key, **more):
    name = str((key, sorted(more.items())))
    if name not in KERNELS:
        KERNELS[name] = Attention(*key, **more)
        KERNELS[name].poison = True
    return KERNELS[name]


def case(b, t, h, g, dqk, dv, meta=0, cached=0, window=None, shared=True, ragged=None, seed=0, **more):
    ops = kernels(dqk, dv, ragged=int(bool(ragged)), **more)
    if "COMPILE_ONLY" in os.environ:
        return False
    torch.manual_seed(seed)
    rnd = lambda *s: torch.randn(*s, device="cuda").to(torch.bfloat16)
    # Strides as a projection has them.
    q, dy = (rnd(b, t, h, d).transpose(1, 2) for d in (dqk, dv))
    k, v = (rnd(b, g, cached + t, d) for d in (dqk, dv))
    mk = mv = None
    if meta:
        mk, mv = (rnd(1 if shared else b, g, meta, d) for d in (dqk, dv))
    given = None
    if ragged:
        n = torch.randint(0, cached + 1, (b,))
        cp = torch.arange(cached)[None] - (cached - n)[:, None]
        cp = torch.where(cp >= 0, cp, -1)
        positions = n[:, None] + torch.arange(t)[None]
        valid = document = None
        if "document" in ragged:
            starts = torch.rand(b, t) < ragged["document"]
            document = starts.long().cumsum(1)
        if "valid" in ragged:
            valid = torch.arange(t)[None] < torch.randint(1, t + 1, (b,))[:, None]
        if "old" not in ragged:
            cp, positions = torch.arange(cached)[None].expand(b, -1), (cached + torch.arange(t))[None].expand(b, -1)
        given = (positions, cp, valid, document)
    seen = mask(t, meta, cached, window, given)
    extra = dict(zip(("queries", "keys", "holes"), bounds(t, cached, window, given))) if ragged else {}
    inputs = [x for x in (q, mk, mv, k, v)]

    def ours():
        y, lse = ops.forward(*inputs, window=window, **extra)
        return [y, *ops.backward(dy, y, lse, *inputs, window=window, **extra)]

    first, second = ours(), ours()
    wide = [None if x is None else x.double().requires_grad_() for x in inputs]
    y = definition(*wide, seen)
    grads = iter(torch.autograd.grad(y, [x for x in wide if x is not None], dy.double()))
    truth = [y] + [None if x is None else next(grads) for x in wide]
    out, bad = [], False
    for name, a, again, x in zip(NAMES, first, second, truth):
        if x is None:
            continue
        off = float((a.double() - x).norm() / x.norm())
        same = torch.equal(a, again)
        bad |= not off < 5e-3 or not same
        out.append(f"{name} {off:.1e}" + "" * same + " DIFFERS" * (not same))
    what = f"{b}x{t} {h}/{g} {dqk}/{dv} meta {meta}{'' if shared else ' own'} cached {cached} window {window} {ragged or ''} {more or ''}"
    print("BAD " if bad else "ok  ", what, ", ".join(out) if bad or "-v" in sys.argv else "", flush=True)
    return bad


def main():
    bad = 0
    if "--tiny" in sys.argv:
        for more in (dict(wgmma=0), {}):
            bad += case(1, 70, 2, 1, 64, 128, meta=5, window=40, **more)
        print("BAD" if bad else "fine")
        return
    small = "--small" in sys.argv
    together = {name: dict(APART=0) for name in ("forward", "backward", "keys")}
    for more in (dict(wgmma=0), {}, together):
        bad += case(1, 64, 1, 1, 64, 64, **more)
        bad += case(1, 128, 1, 1, 64, 128, **more)
        bad += case(2, 200, 4, 2, 64, 128, meta=37, window=70, **more)
        if small or more is together:
            bad += case(2, 150, 5, 1, 64, 128, meta=20, cached=33, window=70, ragged=dict(old=1, document=0.05, valid=1), **more)
            continue
        for dqk, dv in ((64, 64), (64, 128), (128, 128), (128, 64)):
            bad += case(2, 333, 5, 1, dqk, dv, meta=128, window=100, shared=False, **more)
            bad += case(32, 1, 3, 1, dqk, dv, meta=5, window=1, **more)
            bad += case(2, 130, 4, 4, dqk, dv, cached=77, window=90, **more)
        bad += case(3, 515, 10, 2, 64, 128, meta=128, window=129, **more)
        bad += case(2, 700, 5, 1, 64, 128, meta=16, **more)
        for ragged in (dict(document=0.02), dict(valid=1), dict(old=1), dict(old=1, document=0.02, valid=1)):
            bad += case(3, 400, 5, 1, 64, 128, meta=33, cached=100, window=150, ragged=ragged, **more)
            bad += case(3, 65, 2, 2, 64, 64, cached=10, ragged=ragged, **more)
        bad += case(2, 1500, 5, 1, 64, 128, window=300, ragged=dict(document=0.005), **more)
    for dqk, dv in ((16, 16), (32, 32), (48, 80), (96, 96), (112, 16)) if not small else ():
        bad += case(2, 200, 4, 2, dqk, dv, meta=37, window=70, wgmma=0)
    bad += case(2, 2048, 25, 5, 64, 128, meta=128, window=1024)
    bad += case(8, 2048, 25, 5, 64, 128, meta=128, window=1024) if not small else 0
    print("BAD" if bad else "all within 5e-3, equal twice", bad)


if __name__ == "__main__":
    main()
