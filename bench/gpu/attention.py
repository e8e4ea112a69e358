"""The attention kernels with torch tensors, and their definition as a mask: what checks and timings share."""
import ctypes
import math
import os

import torch

from nvrtc import Module as Loaded, compile

LOG2E = 1.4426950408889634
FAR = 2**30


def float32(x):
    return ctypes.c_float(x)


def strides(x):
    """Address and strides of batch, head and row; a batch of one is shared."""
    if x is None:
        return None, 0, 0, 0
    assert x.stride(3) == 1 and x.data_ptr() % 16 == 0
    return x, (x.stride(0) if x.shape[0] > 1 else 0), x.stride(1), x.stride(2)


class Attention:
    """Kernels for one pair of widths. q, k, v are [batch, heads, time, width], meta keys [batch or 1, ..]."""

    def __init__(self, dqk, dv, wgmma=None, ragged=0, forward=None, backward=None, keys=None, **more):
        if os.environ.get("COMPILE_ONLY"):
            Module = lambda path, defines, **more: compile(path, 90, defines, **more)
        else:
            Module = Loaded
        widths = dict(DQK=dqk, DV=dv, RAGGED=ragged)
        if wgmma is not None:
            widths["WGMMA"] = int(wgmma)
        self.dqk, self.dv = dqk, dv
        self.f = Module("attention/forward.cu", {**widths, **(forward or {})}, specific=True, **more)
        self.b = Module("attention/backward_queries.cu", {**widths, **(backward or {})}, specific=True, **more)
        self.c = Module("attention/backward_keys.cu", {**widths, **(keys or {})}, specific=True, **more)

    def common(self, q, meta_k, meta_v, k, v):
        return [*strides(q), *strides(meta_k), *strides(meta_v), *strides(k), *strides(v)]

    def forward(self, q, meta_k, meta_v, k, v, window=None, scale=None, queries=None, keys=None, holes=0, keep=True):
        b, h, t, d = q.shape
        g, n = k.shape[1:3]
        scale = scale or 1 / math.sqrt(d)
        y = torch.full((b, t, h, self.dv), math.nan, device="cuda", dtype=torch.bfloat16) if self.poison else torch.empty(b, t, h, self.dv, device="cuda", dtype=torch.bfloat16)
        lse = torch.empty(b, h, t, device="cuda") if keep else None
        rows = self.f.constant("attention_forward_rows")
        self.f.launch("attention_forward", (b * h * -(-t // rows),), self.f.constant("attention_forward_threads"), self.f.constant("attention_forward_shared"),
                      *self.common(q, meta_k, meta_v, k, v), y, lse, queries, keys, holes, t,
                      meta_k.shape[2] if meta_k is not None else 0, n - t, h, g, window or FAR, float32(scale * LOG2E))
        return y.transpose(1, 2), lse

    poison = False

    def backward(self, dy, y, lse, q, meta_k, meta_v, k, v, window=None, scale=None, queries=None, keys=None, holes=0, only=None):
        b, h, t, d = q.shape
        g, n = k.shape[1:3]
        scale = scale or 1 / math.sqrt(d)
        b_rows, c_rows = self.b.constant("attention_backward_queries_rows"), self.c.constant("attention_backward_keys_rows")
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        if self.poison:
            for x in (dq, dk, dv):
                x.fill_(math.nan)
        delta = torch.empty_like(lse)
        m = meta_k.shape[2] if meta_k is not None else 0
        meta_dk = torch.empty(b, h // g, g, m, self.dqk, device="cuda")
        meta_dv = torch.empty(b, h // g, g, m, self.dv, device="cuda")
        tail = [t, m, n - t, h, g, window or FAR, float32(scale), float32(scale * LOG2E)]
        y = y.transpose(1, 2)
        assert y.is_contiguous()
        if only != "keys":
            self.b.launch("attention_backward_queries", (b * h * -(-t // b_rows),), self.b.constant("attention_backward_queries_threads"),
                          self.b.constant("attention_backward_queries_shared"), *self.common(q, meta_k, meta_v, k, v), y, lse,
                          *strides(dy), *strides(dq), delta, queries, keys, holes, *tail)
        parts = [n - t, t] if queries is not None else [n]
        blocks = b * h * -(-m // c_rows) + b * g * sum(-(-x // c_rows) for x in parts)
        if only != "queries":
            self.c.launch("attention_backward_keys", (blocks,), self.c.constant("attention_backward_keys_threads"),
                          self.c.constant("attention_backward_keys_shared"),
                          *self.common(q, meta_k, meta_v, k, v), lse, delta, *strides(dy), *strides(dk), *strides(dv), meta_dk,
                          meta_dv, queries, keys, holes, b, *tail)
        if not m:
            return dq, None, None, dk, dv
        over = (0, 1) if meta_k.shape[0] == 1 else (1,)
        back = lambda x: x.sum(over).reshape(meta_k.shape[0], g, m, -1)
        return dq, back(meta_dk), back(meta_dv), dk, dv


def mask(t, meta, cached, window=None, ragged=None):
    """[batch or 1, 1, time, keys], as kernels/src/attention/mask.rs says it. `ragged`: positions [b, t], cached_positions
    [b, cached], valid [b, t] or None, document [b, t] or None."""
    window = window or FAR
    i = torch.arange(t)
    if ragged is None:
        distance = i[:, None] - torch.arange(-cached, t)[None]
        seen = ((distance >= 0) & (distance < window))[None]
    else:
        positions, cp, valid, document = ragged
        old_d = positions[:, :, None] - cp[:, None, :]
        old = (old_d >= 0) & (old_d < window) & (cp[:, None, :] >= 0)
        d = i[:, None] - i[None]
        new = ((d >= 0) & (d < window))[None].expand(positions.shape[0], t, t)
        if document is not None:
            old = old & (document == 0)[:, :, None]
            new = new & (document[:, :, None] == document[:, None, :])
        if valid is not None:
            new = (new & valid[:, None, :]) | (d == 0)
        seen = torch.cat([old, new], 2)
    return torch.cat([torch.ones(seen.shape[0], t, meta, dtype=torch.bool), seen], 2)[:, None]


def bounds(t, cached, window, ragged):
    """What the kernel gets instead of the mask: queries [b, t, 4], keys [b, cached + t], whether there are holes."""
    positions, cp, valid, document = ragged
    b, window = positions.shape[0], window or FAR
    i = torch.arange(t).expand(b, t)
    low = (i - window + 1).clamp(min=0)
    old_low = (positions - window + 1).clamp(min=0)
    if document is not None:
        fresh = torch.cat([torch.ones(b, 1, dtype=torch.bool), document[:, 1:] != document[:, :-1]], 1)
        low = torch.maximum(low, torch.where(fresh, i, 0).cummax(1).values)
        old_low = torch.where(document == 0, old_low, FAR)
    queries = torch.stack([old_low, positions, low, low], 2).int()
    new = i if valid is None else torch.where(valid, i, -1)
    keys = torch.cat([cp.expand(b, cached), new], 1).int()
    return queries.contiguous().cuda(), keys.contiguous().cuda(), int(valid is not None)


def definition(q, meta_k, meta_v, k, v, seen, scale=None, chunk=512):
    """In the inputs' own precision, differentiable."""
    b, h, t, d = q.shape
    g = k.shape[1]
    scale = scale or 1 / math.sqrt(d)
    if meta_k is not None:
        k, v = (torch.cat([m.expand(b, -1, -1, -1), x], 2) for m, x in ((meta_k, k), (meta_v, v)))
    k, v = (x.repeat_interleave(h // g, 1) for x in (k, v))
    s = (q @ k.transpose(2, 3)) * scale
    return s.masked_fill(~seen.to(q.device), -math.inf).softmax(3) @ v
