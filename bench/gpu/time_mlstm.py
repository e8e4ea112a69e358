"""Times of the mLSTM's kernels, forward and backward, beside mlstm_kernels' xl_chunk with the exponential gate where it can be
imported: 65,536 tokens, 16 heads of 128 / 256, bf16 (its gates in fp32, which it needs here). JSON lines; memory is torch's peak
over the inputs."""
import json
import sys

import torch

import ops
from mlstm_ops import Mlstm
from time_scan import median

BF = torch.bfloat16


def inputs(b, t, h, d_qk, d_v):
    torch.manual_seed(0)
    rnd = lambda *s: torch.randn(*s, device="cuda")
    return [rnd(b, t, h, d_qk).to(BF), rnd(b, t, h, d_qk).to(BF), rnd(b, t, h, d_v).to(BF), rnd(b, t, h), rnd(b, t, h) + 4.0], rnd(b, t, h, d_v).to(BF)


def peak(fn):
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fn()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def ours(x, dh, parts=False, **more):
    b, t, h, d_qk = x[0].shape
    d_v = x[2].shape[3]
    op = Mlstm(d_qk, d_v, b * h, **more)
    state = [torch.zeros(1, h, d_qk, d_v, device="cuda"), torch.zeros(1, h, d_qk, device="cuda"), torch.zeros(1, h, device="cuda")]
    forward = lambda: op.forward(*x, *state)
    h_, last, saved = forward()

    def both():
        h_, last, saved = forward()
        return op.backward(dh, None, None, None, saved, last, *x, *state)
    result = dict(ms_fwd=median(forward, 15), ms_all=median(both, 15), mib=peak(both))
    if parts:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
            both()
        result["parts"] = {e.name: round(e.device_time_total / 1e3, 3) for e in p.events() if e.name.startswith("mlstm")}
        names = [e.name for e in p.events() if e.name == "mlstm_states"]
        times = [round(e.device_time_total / 1e3, 3) for e in p.events() if e.name == "mlstm_states"]
        result["states"] = dict(zip(range(len(names)), times))
    return result


def peer(x, dh, chunk):
    from mlstm_kernels.torch import get_mlstm_kernel
    kernel = get_mlstm_kernel("chunkwise--triton_xl_chunk")
    leaves = [y.transpose(1, 2).contiguous().requires_grad_() for y in x]
    g = dh.transpose(1, 2).contiguous()
    call = lambda: kernel(*leaves, autocast_kernel_dtype=BF, chunk_size=chunk)
    both = lambda: torch.autograd.grad(call(), leaves, g)
    return dict(ms_fwd=median(call, 15), ms_all=median(both, 15), mib=peak(both))


def floor(b, t, h, d_qk, d_v, copy):
    tokens = b * t * h
    return [1e3 * n * 2 * tokens / copy for n in (2 * d_qk + 2 * d_v, 6 * d_qk + 5 * d_v)]


def run(b, t, h, d_qk, d_v, copy, with_peer=True, **more):
    x, dh = inputs(b, t, h, d_qk, d_v)
    mine = ours(x, dh, **more)
    theirs = None
    if with_peer:
        try:
            theirs = min((peer(x, dh, chunk) for chunk in (128,)), key=lambda r: r["ms_all"])
        except Exception as error:
            print("no peer:", type(error).__name__, str(error)[:300], flush=True)
    case = f"{b}x{t}x{h}x{d_qk}x{d_v}" + "".join(f" {k}={v}" for k, v in more.items() if k != "parts")
    for part, key, least in zip(("forward", "forward+backward"), ("ms_fwd", "ms_all"), floor(b, t, h, d_qk, d_v, copy)):
        line = dict(op="mlstm", device=torch.cuda.get_device_name(), case=f"{part} {case}", ours_ms=round(mine[key], 3), floor_share=round(least / mine[key], 3))
        if theirs:
            line.update(against="mlstm_kernels xl_chunk", against_ms=round(theirs[key], 3), ratio=round(theirs[key] / mine[key], 3))
        if key == "ms_all":
            line.update(mib=round(mine["mib"]), against_mib=theirs and round(theirs["mib"]), every_state_mib=round(b * t * h * d_qk * (d_v + 1) * 4 / 2**20))
        print(json.dumps(line), flush=True)
    if "parts" in mine:
        print("  ", mine["parts"], "states", mine["states"], flush=True)


if __name__ == "__main__":
    a, b = (torch.empty(2**29, dtype=BF, device="cuda") for _ in range(2))
    copy = 3e12 if "--profile" in sys.argv else 4 * a.numel() / (median(lambda: b.copy_(a)) * 1e-3)
    print(torch.cuda.get_device_name(), torch.__version__, f"copy {copy / 1e12:.2f} TB/s", flush=True)
    del a, b
    if "--profile" in sys.argv:
        x, dh = inputs(8, 8192, 16, 128, 256)
        op, state = Mlstm(128, 256, 128), [torch.zeros(1, 16, *n, device="cuda") for n in ((128, 256), (128,), ())]
        h_, last, saved = op.forward(*x, *state)
        op.backward(dh, None, None, None, saved, last, *x, *state)
        torch.cuda.synchronize()
        sys.exit()
    run(8, 8192, 16, 128, 256, copy, parts=True)
    if "--short" not in sys.argv:
        run(32, 2048, 16, 128, 256, copy)
        run(8, 8192, 16, 128, 256, copy, with_peer=False, parts=True, chunk=64)
        run(8, 8192, 16, 128, 256, copy, with_peer=False, parts=True, masks=True)
        run(8, 8192, 8, 256, 512, copy)
        run(1, 16384, 4, 128, 256, copy)
