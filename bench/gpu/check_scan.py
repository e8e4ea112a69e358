"""Every output, state and gradient of the scan's and the convolution's kernels against fp64, by relative RMS error."""
import sys

import torch

import ops
from ops import Conv, Scan, conv_reference, scan_reference

BF, F32 = torch.bfloat16, torch.float32
LIMIT = {BF: 5e-3, F32: 1e-5}


def error(x, y):
    x, y = x.double(), y.double()
    if not torch.isfinite(x).all():
        return float("nan")
    return ((x - y).norm() / y.norm().clamp_min(1e-30)).item() if y.norm() > 0 else x.norm().item()


def report(name, dtype, errors):
    bad = {k: v for k, v in errors.items() if not v <= LIMIT[dtype]}
    worst = max(errors, key=lambda k: errors[k] if errors[k] == errors[k] else 1e9)
    print(f"{'ok ' if not bad else 'BAD'} {name:58s} worst {worst} {errors[worst]:.1e}"
          + ("" if not bad else "  " + " ".join(f"{k}={v:.1e}" for k, v in errors.items())), flush=True)
    return not bad


def gradients(reference, tensors, given, upstream):
    wide = {k: v.double().requires_grad_() for k, v in tensors.items()}
    outputs = reference(**wide, **given)
    loss = sum((o * g.double()).sum() for o, g in zip(outputs, upstream))
    grads = torch.autograd.grad(loss, list(wide.values()), allow_unused=True, materialize_grads=True)
    return [o.detach() for o in outputs], dict(zip(wide, grads))


def scan(dtype, batch, time, d_inner, states, gated=True, skip=True, bias=True, softplus=True, resets=False, valid=False,
         shared=True, views=False, segment=None, lanes=None, checkpoint=None, seed=0):
    s = Scan(dtype, states, lanes, checkpoint, gated, softplus, resets or valid)
    if ops.WANTED is not None:
        return True
    g = torch.Generator("cuda").manual_seed(seed)
    rnd = lambda *s: torch.randn(*s, generator=g, device="cuda")
    uni = lambda *s: torch.rand(*s, generator=g, device="cuda")

    def act(width, x=None):
        x = rnd(batch, time, width) if x is None else x
        if views:
            wide = torch.zeros(batch, time, width + 37, device="cuda", dtype=dtype)
            wide[..., 5:5 + width] = x.to(dtype)
            return wide[..., 5:5 + width]
        return x.to(dtype)

    delta = act(d_inner) if softplus else act(d_inner, 0.3 * uni(batch, time, d_inner) + 0.01)
    t = dict(u=act(d_inner), delta=delta, a=-(torch.arange(1, states + 1, device="cuda") * (0.3 + uni(d_inner, states))),
             b=act(states), c=act(states), start=rnd(1 if shared else batch, d_inner, states))
    if skip:
        t["d"] = rnd(d_inner)
    if gated:
        t["z"] = act(d_inner)
    if bias:
        t["bias"] = -3 + rnd(d_inner)
    given = {}
    if resets:
        given["resets"] = uni(batch, time) < 0.06
        given["resets"][0, 0] = True
        t["reset_state"] = rnd(batch if shared else 1, d_inner, states)
    if valid:
        given["valid"] = uni(batch, time) < 0.9
    dy, dlast = rnd(batch, time, d_inner).to(dtype), rnd(batch, d_inner, states)
    (y, last), want = gradients(lambda **k: scan_reference(**k, softplus=softplus), t, given, (dy, dlast))
    got_y, got_last, kept = s.forward(**t, **given, segment=segment)
    got = s.backward(dy, dlast, kept, **t, **given, segment=segment)
    again = s.backward(dy, dlast, kept, **t, **given, segment=segment)
    errors = dict(y=error(got_y, y), last=error(got_last, last), **{"d" + k: error(got[k], want[k]) for k in want})
    errors["again"] = max(0.0 if torch.equal(got[k], again[k]) else 1.0 for k in got)
    name = f"scan {NAMES[dtype]} {batch}x{time}x{d_inner}x{states}" + "".join(
        f" {k}" for k, v in dict(ungated=not gated, noskip=not skip, nobias=not bias, plain=not softplus, resets=resets,
                                 valid=valid, perrow=not shared, views=views).items() if v)
    name += f" segment={segment}" * bool(segment) + f" lanes={lanes}" * bool(lanes) + f" keep={checkpoint}" * bool(checkpoint)
    return report(name, dtype, errors)


def steps(dtype, batch, d_inner, states, width, seed=0):
    """The decoding kernels against the definition on one token."""
    scan_step = ops.module("selective_scan/step.cu", ELEMENT=ops.NAMES[dtype], STATES=states, GATED=1, SOFTPLUS=1)
    conv_step = ops.module("causal_conv1d/step.cu", ELEMENT=ops.NAMES[dtype], WIDTH=width, SILU=1)
    if ops.WANTED is not None:
        return True
    g = torch.Generator("cuda").manual_seed(seed)
    rnd = lambda *s: torch.randn(*s, generator=g, device="cuda")
    small = [rnd(batch, 1, k).to(dtype) for k in (d_inner, d_inner, states, states, d_inner)]
    u, delta, b, c, z = small
    a, d, bias, start = -rnd(d_inner, states).abs(), rnd(d_inner), rnd(d_inner), rnd(1, d_inner, states)
    y, after = ops.empty(u, batch, d_inner, dtype=dtype), ops.empty(u, batch, d_inner, states)
    scan_step.launch("selective_scan_step", (ops.ceil(d_inner * states // 4, 128), batch), 128, 0, u, d_inner, delta, d_inner, b,
                  states, c, states, z, d_inner, a, bias, d, start, 0, y, after, d_inner)
    want, last = scan_reference(*[x.double() for x in (u, delta, a, b, c, start, d, z, bias)])
    errors = dict(y=error(y, want[:, 0]), last=error(after, last))
    x, weight, tail = rnd(batch, 1, d_inner).to(dtype), rnd(d_inner, width), rnd(batch, width - 1, d_inner)
    y, new = ops.empty(u, batch, d_inner, dtype=dtype), ops.empty(u, batch, width - 1, d_inner)
    conv_step.launch("causal_conv1d_step", (ops.ceil(d_inner, 128), batch), 128, 0, x, d_inner, weight, bias, tail,
                  (width - 1) * d_inner, y, new, d_inner)
    want, last = conv_reference(*[x.double() for x in (x, weight, tail, bias)])
    errors.update(conv=error(y, want[:, 0]), tail=error(new, last))
    return report(f"steps {NAMES[dtype]} {batch}x{d_inner}x{states} w{width}", dtype, errors)


def conv(dtype, batch, time, d, width, bias=True, silu=True, resets=False, lengths=False, shared=True, views=False, seed=0):
    s = Conv(dtype, width, silu, resets or lengths)
    if ops.WANTED is not None:
        return True
    g = torch.Generator("cuda").manual_seed(seed)
    rnd = lambda *s: torch.randn(*s, generator=g, device="cuda")
    x = rnd(batch, time, d + 11 * views).to(dtype)[..., 3 * views:3 * views + d]
    t = dict(x=x, weight=0.5 * rnd(d, width), tail=rnd(1 if shared else batch, width - 1, d))
    if bias:
        t["bias"] = rnd(d)
    given = {}
    if resets:
        given["resets"] = torch.rand(batch, time, generator=g, device="cuda") < 0.2
        t["reset_tail"] = rnd(batch if shared else 1, width - 1, d)
    if lengths:
        given["lengths"] = torch.randint(0, time + 1, (batch,), generator=g, device="cuda")
        given["lengths"][0] = 0
    dy, dnew = rnd(batch, time, d).to(dtype), rnd(batch, width - 1, d)
    (y, new), want = gradients(lambda **k: conv_reference(**k, silu=silu), t, given, (dy, dnew))
    got_y, got_new = s.forward(**t, **given)
    got = s.backward(dy, dnew, **t, **given)
    errors = dict(y=error(got_y, y), new_tail=error(got_new, new), **{"d" + k: error(got[k], want[k]) for k in got})
    name = f"conv {NAMES[dtype]} {batch}x{time}x{d} w{width}" + "".join(
        f" {k}" for k, v in dict(nobias=not bias, nosilu=not silu, resets=resets, lengths=lengths, perrow=not shared,
                                 views=views).items() if v)
    return report(name, dtype, errors)


NAMES = {BF: "bf16", F32: "fp32"}

def run(quick):
    good = True
    for dtype in (F32, BF):
        good &= scan(dtype, 2, 131, 200, 16)
        good &= scan(dtype, 2, 131, 200, 16, segment=96)
        good &= steps(dtype, 3, 130, 16, 4)
        good &= scan(dtype, 3, 1, 130, 16, shared=False)
        good &= scan(dtype, 3, 77, 129, 16, resets=True, valid=True)
        if quick:
            good &= conv(dtype, 3, 75, 130, 4, resets=True, lengths=True)
            continue
        good &= scan(dtype, 2, 100, 136, 16, resets=True, shared=False, segment=32)
        good &= scan(dtype, 2, 97, 128, 16, valid=True, views=True)
        good &= scan(dtype, 1, 64, 64, 16, gated=False, skip=False, bias=False, softplus=False)
        good &= scan(dtype, 2, 200, 136, 16, segment=64)
        good &= scan(dtype, 2, 200, 70, 16, segment=96, lanes=2, resets=True)
        good &= scan(dtype, 2, 90, 136, 16, checkpoint=32 if dtype == BF else 16)
        good &= scan(dtype, 2, 90, 136, 8)
        good &= scan(dtype, 2, 90, 100, 32, resets=True)
        good &= scan(dtype, 2, 90, 50, 64)
        good &= steps(dtype, 3, 130, 64, 2)
        for width in (4, 3, 1, 8):
            good &= conv(dtype, 2, 131, 200, width)
        good &= conv(dtype, 3, 1, 130, 4, shared=False)
        good &= conv(dtype, 3, 2, 132, 4, resets=True, lengths=True)
        good &= conv(dtype, 4, 150, 136, 4, resets=True, lengths=True, shared=False)
        good &= conv(dtype, 4, 150, 136, 4, resets=True, views=True)
        good &= conv(dtype, 4, 70, 136, 4, lengths=True, bias=False, silu=False)
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
