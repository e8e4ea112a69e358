"""Every output, state and gradient of the sLSTM's kernels against fp64, by relative RMS error."""
import sys

import torch

import ops
from check_scan import BF, F32, NAMES, error, report
from slstm_ops import Fused, Plain, Step, reference

DEVICE = "cuda"


def operands(dtype, batch, time, heads, d, bias, resets, valid, shared, views, recurrent, scale, seed, empty_start=False):
    g = torch.Generator(DEVICE).manual_seed(seed)
    rnd = lambda *s: torch.randn(*s, generator=g, device=DEVICE)
    uni = lambda *s: torch.rand(*s, generator=g, device=DEVICE)

    def state():
        x = rnd(4, 1 if shared else batch, heads, d)
        x[2] = x[2].abs() + 1
        return x * (0 if empty_start else 1)

    gates = 1.5 * rnd(batch, time, 4, heads, d + 16 * views)
    t = dict(gates=gates.to(dtype)[..., 8 * views:8 * views + d], recurrent=(scale * rnd(4, heads, d, d) / d**0.5).to(recurrent),
             start=state())
    if bias:
        t["bias"] = rnd(4, heads, d)
    given = {}
    if resets:
        given["resets"] = uni(batch, time) < 0.06
        given["resets"][0, 0] = True
        t["reset"] = state()
    if valid:
        given["valid"] = uni(batch, time) < 0.85
        given["valid"][-1] = False
    return t, given, rnd


def case(dtype, batch, time, heads, d, cells=1, bias=True, resets=False, valid=False, shared=False, views=False, dlast=True,
         recurrent=None, scale=1.0, plain=False, limit=None, empty_start=False, seed=0):
    recurrent = recurrent or dtype
    kernel = Plain(resets or valid) if plain else Fused(d, cells, resets or valid, recurrent)
    if ops.WANTED is not None:
        return True
    t, given, rnd = operands(dtype, batch, time, heads, d, bias, resets, valid, shared, views, recurrent, scale, seed, empty_start)
    wide = {k: v.double().requires_grad_() for k, v in t.items()}
    y, last = reference(**wide, **given)
    dy = rnd(batch, time, heads, d).to(dtype)
    dl = rnd(4, batch, heads, d) if dlast else None
    if dlast and dtype == BF:
        # Whose the maximum is jumps where two are equal but for their rounding: of a gradient that does not see it.
        _, c, n, _ = last.detach()
        dl[1:] = torch.stack([dl[1] / n, (dl[3] - dl[1] * c / n) / n, dl[3]])
    loss = (y * dy.double()).sum() + ((last * dl.double()).sum() if dlast else 0)
    want = dict(zip(wide, torch.autograd.grad(loss, list(wide.values()), allow_unused=True, materialize_grads=True)))
    if valid:  # padding may hold anything
        t["gates"] = torch.where(given["valid"][:, :, None, None, None], t["gates"], float("nan"))
    got_y, got_last, kept = kernel.forward(**t, **given)
    got = kernel.backward(dy, dl, kept, got_last, **t, **given)
    again = kernel.backward(dy, dl, kept, got_last, **t, **given)
    errors = dict(y=error(got_y, y), **{f"last {n}": error(got_last[i], last[i]) for i, n in enumerate("hcnm")})
    for k in want:
        x = got[k]
        if k in ("start", "reset"):
            x = x.sum(1, keepdim=True) if shared else x
            for i, n in enumerate("hcnm"):
                if not empty_start or n == "h":
                    errors[f"d{k} {n}"] = error(x[i], want[k][i])
        else:
            errors["d" + k] = error(x, want[k])
    errors["again"] = max(0.0 if torch.equal(got[k], again[k]) else 1.0 for k in got if got[k] is not None)
    name = f"{NAMES[dtype]} {batch}x{time}x{heads}x{d}" + "".join(f" {k}" for k, v in dict(
        plain=plain, resets=resets, valid=valid, shared=shared, views=views, nobias=not bias, nolast=not dlast,
        wide=recurrent != dtype, empty=empty_start).items() if v) + f" cells={cells}"
    return report(name, dtype, errors)


def step(dtype, batch, heads, d, recurrent, seed=0):
    kernel = Step(dtype, recurrent)
    if ops.WANTED is not None:
        return True
    t, _, _ = operands(dtype, batch, 1, heads, d, True, False, False, True, False, recurrent, 1.0, seed)
    y, last = kernel(**t)
    want, state = reference(**{k: v.double() for k, v in t.items()})
    return report(f"step {NAMES[dtype]} {batch}x{heads}x{d}", dtype, dict(y=error(y, want), last=error(last, state)))


def run(quick):
    good = True
    for cells in (1, 2):
        good &= case(BF, 5, 37, 2, 64, cells)
        good &= case(BF, 9, 41, 2, 32, cells, resets=True, valid=True, recurrent=F32)
    good &= case(F32, 3, 37, 2, 20, plain=True)
    good &= case(F32, 3, 37, 2, 64, plain=True, resets=True, valid=True)
    good &= step(BF, 5, 2, 64, F32)
    if quick:
        return good
    for cells in (1, 2):
        for d in (16, 48, 128):
            good &= case(BF, 4, 35, 2, d, cells, shared=True, bias=False)
        good &= case(BF, 3, 1, 2, 64, cells)
        good &= case(BF, 3, 2, 1, 64, cells, resets=True)
        good &= case(BF, 9, 70, 2, 64, cells, resets=True, shared=True)
        good &= case(BF, 9, 70, 2, 128, cells, valid=True, views=True)
        good &= case(BF, 9, 66, 2, 64, cells, dlast=False, resets=True, empty_start=True)
    good &= case(F32, 3, 1, 2, 7, plain=True)
    good &= case(F32, 5, 70, 2, 130, plain=True, resets=True, shared=True, views=True)
    good &= case(F32, 5, 40, 1, 300, plain=True, valid=True, bias=False)
    good &= case(F32, 5, 40, 1, 33, plain=True, empty_start=True, dlast=False, resets=True)
    good &= step(F32, 3, 3, 20, F32)
    good &= step(BF, 9, 1, 300, BF)
    return good


if __name__ == "__main__":
    ops.POISON = True
    quick = "--quick" in sys.argv
    ops.WANTED = wanted = []
    run(quick)
    ops.WANTED = None
    ops.compile_all(wanted)
    good = run(quick)
    print("all good" if good else "SOMETHING IS WRONG")
    sys.exit(not good)
