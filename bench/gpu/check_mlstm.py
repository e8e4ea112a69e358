"""The mLSTM's kernels against the definition in fp64: outputs, states and all gradients, relative RMS."""
import sys

import torch

import ops
from mlstm_ops import Mlstm, definition

BF = torch.bfloat16
NAMES = "q k v i f c n m reset_c reset_n reset_m".split()


def case(b, t, h, d_qk, d_v, resets=None, valid=None, shared=False, gates=1.0, positive=False, device="cuda", run=True, final=True, seed=0):
    torch.manual_seed(seed)
    rnd = lambda *s: torch.rand(*s, dtype=torch.float64) * 3.4 - 1.7
    rows = 1 if shared else b
    x = [rnd(b, t, h, d_qk), rnd(b, t, h, d_qk), rnd(b, t, h, d_v), gates * (rnd(b, t, h) * 2 - 1), gates * (rnd(b, t, h) * 2 + 1),
         rnd(rows, h, d_qk, d_v), rnd(rows, h, d_qk), rnd(rows, h) * 2]
    if positive:
        x[:2] = [y.abs() for y in x[:2]]
    if resets is not None:
        x += [rnd(rows, h, d_qk, d_v), rnd(rows, h, d_qk), rnd(rows, h) * 2]
    x = [y.to(BF if j < 3 else torch.float32).to(device) for j, y in enumerate(x)]
    mask = lambda p: None if p is None else (torch.rand(b, t) < p).to(device)
    resets, valid = mask(resets), mask(valid)
    dh = rnd(b, t, h, d_v).to(BF).to(device)
    dlast = [rnd(b, h, d_qk, d_v), rnd(b, h, d_qk), rnd(b, h)]
    dlast = [y.float().to(device) for y in dlast] if final else [None] * 3
    ours = Mlstm(d_qk, d_v, b * h, masks=resets is not None or valid is not None)
    if not run:
        return
    masks = dict(resets=resets, valid=valid)
    if run == "alone":  # for compute-sanitizer
        h_, last, saved = ours.forward(*x[:8], fresh=x[8:] or None, **masks)
        ours.backward(dh, *dlast, saved, last, *x[:8], fresh=x[8:] or None, **masks)
        return torch.cuda.synchronize()
    leaves = [y.double().requires_grad_() for y in x]
    y, state = definition(*leaves[:8], fresh=leaves[8:] or None, **masks)
    outputs, wanted = [y], [dh.double()]
    if final:
        outputs += state
        wanted += [d.double() for d in dlast]
    grads = torch.autograd.grad(outputs, leaves, wanted, allow_unused=True)
    dirty = [y.clone() for y in x]
    if valid is not None:
        for y_ in dirty[:5]:
            y_[~valid] = float("nan")
        dh = dh.clone()
        dh[~valid] = float("nan")
    results = []
    for _ in range(2):
        h_, last, saved = ours.forward(*dirty[:8], fresh=dirty[8:] or None, **masks)
        g = ours.backward(dh, *dlast, saved, last, *dirty[:8], fresh=dirty[8:] or None, **masks)
        results.append([h_, *last, *[y for y in g if y is not None]])
    g = [y if y is None or not shared or j < 5 else y.sum(0, keepdim=True) for j, y in enumerate(g)]
    torch.cuda.synchronize()
    off = lambda a, r: ((a.double() - r).norm() / r.norm()).item() if r.norm() > 0 else a.double().norm().item()
    errors = {"h": off(h_, y)}
    errors.update({"last_" + n: off(a, r) for n, a, r in zip("cnm", last, state)})
    for name, a, r in zip(NAMES, g, grads):
        if a is not None:
            errors["d" + name] = off(a, torch.zeros_like(a, dtype=torch.float64) if r is None else r)
    same = all(torch.equal(a, c) for a, c in zip(*results))
    # Gradients of m are sums of the terms of C and n that may all but cancel: measured beside those.
    for names in (("dc", "dn", "dm"), ("dreset_c", "dreset_n", "dreset_m")):
        if names[0] in errors:
            at = 5 if names[0] == "dc" else 8
            whole = lambda parts: torch.cat([part.double().flatten() for part in parts])
            errors[names[0]] = off(whole(g[at:at + 3]), whole([torch.zeros_like(a) if r is None else r for a, r in zip(g[at:at + 3], grads[at:at + 3])]))
            del errors[names[1]], errors[names[2]]
    bad = not same or any(not e <= 5e-3 for e in errors.values())
    label = f"{b}x{t}x{h} {d_qk}/{d_v}" + " resets" * (resets is not None) + " valid" * (valid is not None) + " shared" * shared
    print("BAD " if bad else "ok  ", label, f"gates {gates} pos {positive} final {final}", "" if same else "NOT THE SAME TWICE",
          " ".join(f"{n}={e:.1e}" for n, e in errors.items()), flush=True)


CASES = [
    ((2, 300, 3, 128, 256), {}),
    ((1, 1, 2, 64, 64), {}),
    ((2, 129, 2, 24, 40), {}),
    ((2, 257, 2, 128, 128), dict(final=False)),
    ((2, 300, 2, 128, 256), dict(resets=0.02)),
    ((2, 200, 2, 64, 128), dict(resets=0.3, valid=0.7, shared=True)),
    ((2, 260, 2, 96, 192), dict(valid=0.5)),
    ((1, 150, 2, 256, 512), {}),
    ((1, 150, 2, 256, 512), dict(resets=0.03, valid=0.9)),
    ((1, 400, 2, 128, 256), dict(gates=10.0, positive=True)),
    ((1, 400, 2, 128, 256), dict(gates=10.0, positive=True, final=False)),
    ((1, 70, 1, 64, 64), dict(resets=0.1)),
    ((1, 400, 2, 64, 64), dict(gates=10.0, resets=0.01)),
    ((64, 131, 2, 128, 256), {}),
]

if __name__ == "__main__":
    small = "--small" in sys.argv
    ops.POISON = not small
    cases = [((1, 150, 2, 24, 72), {}), ((2, 300, 1, 64, 128), dict(resets=0.02, valid=0.8, shared=True))] if small else CASES
    if not small:
        ops.WANTED = []
        for sizes, more in cases:
            case(*sizes, **more, run=False, device="cpu")
        ops.WANTED, wanted = None, ops.WANTED
        ops.compile_all(wanted)
    for sizes, more in cases:
        try:
            case(*sizes, **more, run="alone" if small else True)
        except RuntimeError as error:
            print("FAILED", sizes, more, error, flush=True)
