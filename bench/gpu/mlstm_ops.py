"""The mLSTM on torch tensors through the project's CUDA kernels, and its definition in plain torch. Workspaces and launches
are as the comments in `kernels/src/mlstm/*.cu` say."""
import ctypes

import torch
import torch.nn.functional as F

from ops import batch_stride, ceil, empty, module

M_FLOOR = -80.0


def view(x):
    """Pointer and strides over batch, time and heads."""
    assert x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(s % 8 == 0 for s in x.stride()[:3])
    return x, x.stride(0), x.stride(1), x.stride(2)


def f32(x):
    return ctypes.c_float(x)


class Mlstm:
    def __init__(self, d_qk, d_v, heads_in_all=1 << 30, masks=False, chunk=None, stages=3, tile=None, state_tile=None):
        self.width = ceil(d_qk, 32) * 32
        self.chunk = chunk or (128 if self.width <= 128 else 64)
        self.tile = tile or min(ceil(d_v, 64) * 64, 256 if self.width <= 128 else 128)
        self.state_tile = state_tile or (128 if self.tile >= 128 and self.width <= 128 and heads_in_all * ceil(d_v, 128) >= 128 else 64)
        self.stages, self.masks = stages, masks
        self.multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else 3
        both = dict(CHUNK=self.chunk)
        more = dict(CHUNK=self.chunk, WIDTH=self.width, MASKS=int(masks))
        self.gates = module("mlstm/gates.cu", **both)
        self.gates_backward = module("mlstm/gates_backward.cu", **both)
        self.states = [module("mlstm/states.cu", **more, TILE=self.state_tile, BACKWARD=b) for b in (0, 1)]
        self.outputs = module("mlstm/forward.cu", **more, TILE=self.tile)
        self.queries = module("mlstm/queries.cu", **more, STAGES=stages)
        self.keys = module("mlstm/keys.cu", **more, STAGES=stages)

    def blocks(self, items):
        return min(items, self.multiprocessors)

    def shared(self):
        panels, chunk, width, tile, st = ceil(self.width, 64), self.chunk, self.width, self.tile, self.state_tile
        rows = panels * chunk * 128
        both = 2 * rows + self.stages * (2 * chunk * 128 + width * 128)
        step = panels * 8192 + st * 128 + 768
        return dict(states=3 * step, states_backward=2 * step + ceil(width, 64) * (st // 16) * 2048,
                    outputs=2 * rows + tile // 64 * (chunk + width) * 128 + chunk * 28 + width * 4,
                    queries=both + chunk * 8 + width * 8, keys=both + chunk * 20 + width * 4)

    def forward(self, q, k, v, i, f, c, n, m, fresh=None, resets=None, valid=None, eps=1e-6):
        b, t, h, d_qk = q.shape
        d_v = v.shape[3]
        chunks = ceil(t, self.chunk)
        padded, bh, s = chunks * self.chunk, b * h, self.shared()
        e = lambda *shape, dtype=torch.float32: empty(q, *shape, dtype=dtype)
        row, column = e(bh, padded, 2), e(bh, padded, 2)
        before, bound, written = e(bh, padded), e(bh, padded), e(bh, padded)
        first = torch.empty(bh, padded, dtype=torch.int32, device=q.device)
        source = torch.empty(bh, padded, dtype=torch.uint8, device=q.device)
        kept, last_m = e(bh, chunks, 2), e(b, h)
        fc, fn, fm = fresh or (None,) * 3
        gate = lambda x: (x, *x.stride())
        self.gates.launch("mlstm_gates", (bh,), 1024, 0, *gate(i), *gate(f), resets, valid, m, batch_stride(m), fm,
                          batch_stride(fm), row, column, before, bound, written, first, source, kept, last_m, t, h, chunks,
                          f32(M_FLOOR))
        c_out, n_out = e(bh, chunks, d_qk, d_v, dtype=torch.bfloat16), e(bh, chunks, d_qk)
        last_c, last_n = e(b, h, d_qk, d_v), e(b, h, d_qk)
        tiles = ceil(d_v, self.state_tile)
        self.states[0].launch("mlstm_states", (bh * tiles,), 256, s["states"], *view(k), *view(v), valid, written, written,
                              first, kept, c, batch_stride(c), n, batch_stride(n), fc, batch_stride(fc), fn, batch_stride(fn),
                              None, None, 0, c_out, n_out, None, last_c, last_n, t, h, chunks, d_qk, d_v)
        out, q_n = e(b, t, h, d_v, dtype=torch.bfloat16), e(bh, padded)
        fcb = None if fc is None else fc.bfloat16()
        tiles = ceil(d_v, self.tile)
        self.outputs.launch("mlstm_forward", (self.blocks(bh * chunks * tiles),), 2 * self.chunk, s["outputs"], *view(q), *view(k), *view(v),
                            valid, row, column, before, bound, first, c_out, n_out, fcb, batch_stride(fcb), fn,
                            batch_stride(fn), out, q_n, t, h, chunks, bh * chunks * tiles, d_qk, d_v, f32(d_qk**-0.5), f32(eps))
        saved = (row, column, before, bound, written, first, source, kept, c_out, n_out, q_n, fcb)
        return out, (last_c, last_n, last_m), saved

    def backward(self, dh, dc, dn, dm, saved, last, q, k, v, i, f, c, n, m, fresh=None, resets=None, valid=None, eps=1e-6):
        """Gradients of q, k, v, i, f, c, n, m and the three of the reset state, states by rows."""
        row, column, before, bound, written, first, source, kept, c_out, n_out, q_n, fcb = saved
        b, t, h, d_qk = q.shape
        d_v = v.shape[3]
        chunks = ceil(t, self.chunk)
        padded, bh, s = chunks * self.chunk, b * h, self.shared()
        e = lambda *shape, dtype=torch.float32: empty(q, *shape, dtype=dtype)
        bf = torch.bfloat16
        fc, fn, fm = fresh or (None,) * 3
        scale = f32(d_qk**-0.5)
        query, weight_c, weight_n, dq = e(bh, padded, 4), e(bh, padded), e(bh, padded), e(b, t, h, d_qk, dtype=bf)
        self.queries.launch("mlstm_queries", (self.blocks(bh * chunks),), 2 * self.chunk, s["queries"], *view(q), *view(k), *view(v), *view(dh),
                            valid, row, column, before, bound, first, c_out, n_out, fcb, batch_stride(fcb), fn,
                            batch_stride(fn), q_n, dq, query, weight_c, weight_n, t, h, chunks, bh * chunks, d_qk, d_v, scale, f32(eps))
        tiles = ceil(d_v, self.state_tile)
        dc_out, dn_out, along = e(bh, chunks, d_qk, d_v, dtype=bf), e(bh, chunks, d_qk), e(bh, chunks, tiles * 8)
        dc0, dn0 = e(b, h, d_qk, d_v), e(b, h, d_qk)
        rc = rn = None
        if fc is not None:
            rc, rn = torch.zeros(b, h, d_qk, d_v, device=q.device), torch.zeros(b, h, d_qk, device=q.device)
        self.states[1].launch("mlstm_states", (bh * tiles,), 256, s["states_backward"], *view(q), *view(dh), valid, weight_c, weight_n,
                              first, kept, dc, batch_stride(dc), dn, batch_stride(dn), rc, batch_stride(rc), rn, batch_stride(rn), c_out, fcb,
                              batch_stride(fcb), dc_out, dn_out, along, dc0, dn0, t, h, chunks, d_qk, d_v)
        dk, dv, key = e(b, t, h, d_qk, dtype=bf), e(b, t, h, d_v, dtype=bf), e(bh, padded, 2)
        self.keys.launch("mlstm_keys", (self.blocks(bh * chunks),), 2 * self.chunk, s["keys"], *view(q), *view(k), *view(v), *view(dh), valid,
                         row, column, written, first, query, dc_out, dn_out, dk, dv, key, t, h, chunks, bh * chunks, d_qk, d_v, scale)
        di, df, dm0, dm_reset = e(b, t, h), e(b, t, h), e(b, h), e(b, h)
        scale_of_last = None if dc is None else (dc * last[0]).sum((2, 3)) + (dn * last[1]).sum(2)
        self.gates_backward.launch("mlstm_gates_backward", (bh,), 1024, 0, f, *f.stride(), resets, valid, query, key, first,
                                   source, kept, along, dn_out, n_out, fn, batch_stride(fn), dm, scale_of_last, di, df, dm0, dm_reset, t, h,
                                   chunks, tiles * 8, d_qk)
        dm0 = dm0 + (dc0 * c).sum((2, 3)) + (dn0 * n).sum(2)
        if fc is not None:
            dm_reset = dm_reset + (rc * fc).sum((2, 3)) + (rn * fn).sum(2)
        return dq, dk, dv, di, df, dc0, dn0, dm0, rc, rn, dm_reset if fc is not None else None


def definition(q, k, v, i, f, c, n, m, fresh=None, resets=None, valid=None, eps=1e-6):
    """Token by token, as in `reference.rs`."""
    out = []
    rows = lambda x: x.expand(q.shape[0], *x.shape[1:])
    state = [rows(x) for x in (c, n, m)]
    at = lambda mask, x: mask.view(-1, *[1] * (x.dim() - 1))
    for t in range(q.shape[1]):
        was = state
        if resets is not None:
            state = [torch.where(at(resets[:, t], y), rows(x), y) for x, y in zip(fresh, state)]
        c, n, m = state
        log_f = F.logsigmoid(f[:, t])
        now = torch.maximum(log_f + m, i[:, t]).clamp_min(M_FLOOR)
        keep, write = (log_f + m - now).exp()[..., None], (i[:, t] - now).exp()[..., None]
        k_t = write * k[:, t]
        c = keep[..., None] * c + k_t[..., None] * v[:, t, :, None]
        n = keep * n + k_t
        q_t = q[:, t] * q.shape[3]**-0.5
        den = torch.maximum((q_t * n).sum(-1).abs(), (-now).exp()) + eps
        h = (q_t[..., None, :] @ c)[..., 0, :] / den[..., None]
        after = [c, n, now]
        if valid is not None:
            h = torch.where(at(valid[:, t], h), h, torch.zeros_like(h))
            after = [torch.where(at(valid[:, t], x), x, y) for x, y in zip(after, was)]
        state = after
        out.append(h)
    return torch.stack(out, 1), state
