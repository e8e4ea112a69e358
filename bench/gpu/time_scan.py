"""Times of the scan's and the convolution's kernels, beside mamba_ssm and causal_conv1d where they can be imported."""
import math
import sys

import torch

from ops import Conv, Scan

BF = torch.bfloat16


def median(fn, n=30, warm=3):
    """ms, by events around each call, the L2 cache overwritten in between."""
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    for _ in range(warm):
        fn()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
    for a, b in events:
        flush.zero_()
        torch.cuda._sleep(2000000)  # the launches are queued before the first one runs
        a.record()
        fn()
        b.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in events)[n // 2]


def show(op, case, ours, peer=None):
    ratio = f"  peer {peer:.4f}  ratio {peer / ours:.2f}" if peer else ""
    print(f"{op:16s} {case:40s} {ours:.4f} ms{ratio}", flush=True)


def scan_inputs(b, t, d, n):
    torch.manual_seed(0)
    rnd = lambda *s: torch.randn(*s, device="cuda")
    dt = torch.exp(torch.rand(d, device="cuda") * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3))
    return dict(u=rnd(b, t, d).to(BF), delta=(0.5 * rnd(b, t, d)).to(BF),
                a=-(torch.arange(1, n + 1, device="cuda") * (1 + 0.1 * torch.rand(d, n, device="cuda"))),
                b=rnd(b, t, n).to(BF), c=rnd(b, t, n).to(BF), d=torch.randn(d, device="cuda"), z=rnd(b, t, d).to(BF),
                bias=dt + torch.log(-torch.expm1(-dt)))


def peer_scan(x, dy):
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as e:
        print("no mamba_ssm:", e)
        return None, None
    first = {k: (v.transpose(1, 2).contiguous() if v.dim() == 3 else v).clone().requires_grad_() for k, v in x.items()}
    call = lambda: selective_scan_fn(first["u"], first["delta"], first["a"], first["b"], first["c"], first["d"], first["z"],
                                     first["bias"], delta_softplus=True)
    g = dy.transpose(1, 2).contiguous()
    return median(call), median(lambda: torch.autograd.grad(call(), list(first.values()), g))


def scan(b, t, d, n, lanes=None, segment=None, masks=False, peer=True, checkpoint=16, back=None):
    x = scan_inputs(b, t, d, n)
    dy = torch.randn(b, t, d, device="cuda").to(BF)
    start = torch.zeros(1, d, n, device="cuda")
    s = Scan(BF, n, lanes, checkpoint, masks=masks)
    if masks:
        x.update(resets=torch.rand(b, t, device="cuda") < 0.002, reset_state=start)
    fwd = median(lambda: s.forward(**x, start=start, segment=segment))
    inference = median(lambda: s.forward(**x, start=start, segment=segment, keep=False))
    kept = s.forward(**x, start=start, segment=segment)[2]
    bwd = median(lambda: s.backward(dy, None, kept, **x, start=start, segment=back or segment))
    del kept
    p_fwd, p_all = peer_scan({k: v for k, v in x.items() if k not in ("resets", "reset_state")}, dy) if peer else (None,) * 2
    case = f"{b}x{t}x{d}x{n}" + f" lanes={lanes}" * bool(lanes) + f" segment={segment}" * bool(segment) + " masks" * masks + f" back={back}" * bool(back)
    case += f" keep={checkpoint}" * (checkpoint != 16)
    show("scan forward", case, fwd, p_fwd)
    show("scan (no states)", case, inference)
    show("scan backward", case, bwd, p_all and p_all - p_fwd)
    show("scan both", case, fwd + bwd, p_all)
    if peer:
        parts = torch.randn(25, b, t, 2, n, device="cuda")
        db, dc = (torch.empty(b, t, n, device="cuda", dtype=BF) for _ in range(2))
        show("sum projections", case, median(lambda: s.small.launch(
            "selective_scan_sum_projections", (b * t * 2 * n // 4 // 256,), 256, 0, parts, db, dc, 25, b * t, n)))


def conv(b, t, d, w=4, chunks=(48, 53), peer=True):
    torch.manual_seed(0)
    x = torch.randn(b, t, d, device="cuda").to(BF)
    dy = torch.randn(b, t, d, device="cuda").to(BF)
    weight, bias = 0.3 * torch.randn(d, w, device="cuda"), torch.randn(d, device="cuda")
    tail = torch.zeros(1, w - 1, d, device="cuda")
    s = Conv(BF, w)
    fwd = median(lambda: s.forward(x, weight, tail, bias, chunk=chunks[0]))
    bwd = median(lambda: s.backward(dy, None, x, weight, tail, bias, chunk=chunks[1], tails=False))
    p_fwd = p_all = None
    if peer:
        try:
            from causal_conv1d import causal_conv1d_fn
            leaves = [v.clone().requires_grad_() for v in (x, weight.to(BF), bias.to(BF))]
            call = lambda: causal_conv1d_fn(leaves[0].transpose(1, 2), leaves[1], leaves[2], activation="silu").transpose(1, 2)
            p_fwd, p_all = median(call), median(lambda: torch.autograd.grad(call(), leaves, dy))
        except Exception as e:
            print("no causal_conv1d:", e)
    case = f"{b}x{t}x{d} w{w} chunks={chunks}"
    show("conv forward", case, fwd, p_fwd)
    show("conv backward", case, bwd, p_all and p_all - p_fwd)
    show("conv both", case, fwd + bwd, p_all)


if __name__ == "__main__":
    print(torch.cuda.get_device_name(), torch.__version__)
    x, y = (torch.empty(2**29, dtype=BF, device="cuda") for _ in range(2))
    print(f"copy {4 * x.numel() / median(lambda: y.copy_(x)) / 1e9:.2f} TB/s")
    del x, y
    if "--profile" in sys.argv:
        d = 33 * 128  # 264 blocks: two for each of 132 multiprocessors
        x = scan_inputs(8, 512, d, 16)
        dy = torch.randn(8, 512, d, device="cuda").to(BF)
        start = torch.zeros(1, d, 16, device="cuda")
        s = Scan(BF, 16)
        kept = s.forward(**x, start=start)[2]
        s.backward(dy, None, kept, **x, start=start)
        torch.cuda.synchronize()
        sys.exit()
    if "--last" in sys.argv:
        scan(8, 2048, 3200, 16, back=1664)
        scan(8, 2048, 3200, 16, peer=False)
        scan(8, 2048, 3200, 16, back=1664, masks=True, peer=False)
        conv(8, 2048, 3200)
        for chunks in ((32, 77), (40, 61), (96, 53)):
            conv(8, 2048, 3200, chunks=chunks, peer=False)
        scan(1, 16384, 1536, 16, segment=512, back=512)
        scan(2, 8192, 3200, 16, segment=1536, back=512)
        sys.exit()
    short = "--short" in sys.argv
    scan(8, 2048, 3200, 16)
    conv(8, 2048, 3200)
    for lanes, checkpoint, masks in ((2, 16, False), (1, 32, False), (1, 16, True)):
        scan(8, 2048, 3200, 16, lanes=lanes, checkpoint=checkpoint, masks=masks, peer=False)
    for chunks in ((32, 77), (96, 53)):
        conv(8, 2048, 3200, chunks=chunks, peer=False)
    if short:
        sys.exit()
    scan(2, 8192, 3200, 16)
    scan(2, 8192, 3200, 16, segment=2048, peer=False)
    scan(2, 8192, 3200, 16, segment=4096, peer=False)
    scan(1, 16384, 1536, 16)
    for segment in (256, 512, 1024, 2048):
        scan(1, 16384, 1536, 16, segment=segment, peer=False)
    scan(8, 2048, 2048, 16)
    scan(8, 2048, 2048, 16, segment=1024, peer=False)
    conv(2, 8192, 3200)
