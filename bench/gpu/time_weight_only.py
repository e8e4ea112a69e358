"""Products of a few rows with weights in eight and four bits: errors against fp64, then times beside libtorch's, in GB/s and
as a share of a copy. A JSON line a case."""
import json
import sys

import torch

import ops
from ops import ceil, module

BF = torch.bfloat16
DEVICE = "cuda"


def quantised(w, bits, group, free):
    """Codes as the kernels read them, scales, zeros, and the weight that they stand for."""
    out, width = w.shape
    if bits == 8:
        scale = w.abs().amax(1, keepdim=True) / 127.5
        q = (w / scale).round().clamp(-128, 127)
        return q.to(torch.int8), scale[:, 0].contiguous(), None, q.double() * scale.double()
    g = w.view(out, -1, group)
    low = g.amin(2, keepdim=True) if free else -8 * g.abs().amax(2, keepdim=True) / 7.5
    scale = (g.amax(2, keepdim=True) - low) / 15 if free else g.abs().amax(2, keepdim=True) / 7.5
    q = ((g - low) / scale).round().clamp(0, 15)
    zero = low + 8 * scale
    wide = (q.double() - 8) * scale.double() + (zero.double() if free else 0)
    codes = q.to(torch.uint8).view(out, -1, 2, 16)
    packed = (codes[:, :, 0] | (codes[:, :, 1] << 4)).reshape(out, width // 2).contiguous()
    return packed, scale[..., 0].contiguous(), zero[..., 0].contiguous() if free else None, wide.view(out, width)


class Rows:
    def __init__(self, bits, group, rows, out, width, split=None):
        self.tiles = ceil(rows, 8)
        if split is None:
            wanted, steps = 132 * 16 // ceil(out, 16), width * bits // 8 // 64
            split = next((s for s in (8, 4, 2) if s <= wanted and s <= steps), 1)
        self.module = module("weight_only_linear/rows.cu", BITS=bits, GROUP=group, TILES=self.tiles, SPLIT=split)
        self.outputs = 8 // split * 16
        self.shared = self.tiles * (4096 + (32 * (width // group) if bits == 4 else 0))
        self.split = split

    def __call__(self, x, codes, scale, zero, y=None):
        rows, width = x.shape
        out = codes.shape[0]
        y = ops.empty(x, rows, out, dtype=BF) if y is None else y
        self.module.launch("weight_only_rows", (ceil(out, self.outputs),), 256, self.shared, x, codes, scale, zero, y, rows, out,
                           width)
        return y


def check(bits, group, free, rows, out, width, split):
    kernel = Rows(bits, group, rows, out, width, split)
    if ops.WANTED is not None:
        return True
    g = torch.Generator(DEVICE).manual_seed(rows + out)
    w = torch.randn(out, width, generator=g, device=DEVICE)
    x = torch.randn(rows, width, generator=g, device=DEVICE).to(BF)
    codes, scale, zero, wide = quantised(w, bits, group, free)
    want = x.double() @ wide.T
    off = ((kernel(x, codes, scale, zero).double() - want).norm() / want.norm()).item()
    print(f"{'ok ' if off < 5e-3 else 'BAD'} {bits} bits, groups of {group}, zeros {free}, {rows} x {out} x {width}, split {split}: {off:.1e}", flush=True)
    return off < 5e-3


def checks():
    good = True
    for split in (1, 4):
        for rows, out, width in ((1, 40, 256), (3, 129, 640), (8, 16, 1024), (9, 70, 384), (16, 33, 128)):
            good &= check(8, 128, False, rows, out, width, split)
            for group in (32, 64, 128):
                good &= check(4, group, rows % 2 == 1, rows, out, width, split)
    good &= check(8, 128, False, 2, 20, 16 * 7, 2)
    good &= check(4, 32, True, 2, 20, 32 * 7, 8)
    good &= check(4, 64, True, 2, 20, 64 * 3, 2)
    return good


def times():
    from time_scan import median
    big = torch.empty(2**28, device="cuda")
    to = torch.empty_like(big)
    rate = 8 * big.numel() / median(lambda: to.copy_(big), n=10) * 1e3
    del big, to
    print(json.dumps(dict(copy_gb_s=round(rate / 1e9))))
    for out, width in ((1600, 1600), (6400, 1600), (4096, 4096), (11008, 4096), (32064, 4096)):
        w = torch.randn(out, width, device="cuda")
        wb = w.to(BF)
        for rows in (1, 16) if out in (4096, 32064) else (1,):
            x = torch.randn(rows, width, device="cuda").to(BF)
            plain = median(lambda: torch.nn.functional.linear(x, wb))
            for bits, group, free in ((8, 128, False), (4, 128, True), (4, 32, False)):
                if width % group and bits == 4:
                    continue
                codes, scale, zero, _ = quantised(w, bits, group, free)
                kernel = Rows(bits, group, rows, out, width)
                y = torch.empty(rows, out, device="cuda", dtype=BF)
                ms = median(lambda: kernel(x, codes, scale, zero, y))
                size = sum(t.numel() * t.element_size() for t in (codes, scale, zero) if t is not None)
                line = dict(op="weight_only_linear", device=torch.cuda.get_device_name(), split=kernel.split,
                            case=f"{rows}x{out}x{width} {bits} bits" + (f" g{group}" if bits == 4 else ""), ours_ms=round(ms, 4),
                            gb_s=round(size / ms / 1e6), floor_share=round(size / rate * 1e3 / ms, 3), bf16_ms=round(plain, 4))
                try:
                    if bits == 8:
                        sb = scale.to(BF)
                        line.update(against="torch _weight_int8pack_mm", against_ms=round(median(
                            lambda: torch._weight_int8pack_mm(x, codes, sb)), 4))
                    elif group in (32, 128):
                        packed = torch._convert_weight_to_int4pack(torch.randint(0, 255, (out, width // 2), device="cuda", dtype=torch.uint8), 8)
                        sz = torch.ones(width // group, out, 2, device="cuda", dtype=BF)
                        line.update(against="torch _weight_int4pack_mm", against_ms=round(median(
                            lambda: torch._weight_int4pack_mm(x, packed, group, sz)), 4))
                    line["ratio"] = round(line["against_ms"] / ms, 2)
                except Exception as e:
                    line["against"] = repr(e)[:80]
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    ops.POISON = True
    ops.WANTED = wanted = []
    checks()
    ops.WANTED = None
    ops.compile_all(wanted)
    good = checks()
    print("all good" if good else "SOMETHING IS WRONG")
    ops.POISON = False
    if "--no-times" not in sys.argv:
        times()
    sys.exit(not good)
