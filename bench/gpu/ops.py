"""The selective scan and the causal convolution on torch tensors through the project's CUDA kernels, and their
definitions in plain torch. Workspaces and launches are as the comments in the `.cu` files say."""
import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor

import torch

import nvrtc

NAMES = {torch.bfloat16: "bf16", torch.float32: "float"}


def ceil(a, b):
    return -(-a // b)


def strides(x):
    """Pointer and strides over batch and time."""
    assert x is None or x.stride(2) == 1
    return (None, 0, 0) if x is None else (x, x.stride(0), x.stride(1))


def batch_stride(x):
    return 0 if x is None or x.shape[0] == 1 else x.stride(0)


WANTED = None  # a list: what would be compiled is only noted there


def module(path, **defines):
    if WANTED is not None:
        return WANTED.append((path, defines))
    return load(path, **defines)


@functools.cache
def load(path, **defines):
    return nvrtc.Module(path, defines)


def compile_all(wanted):
    """Compiles on all cores, ahead of need."""
    major, minor = torch.cuda.get_device_capability()
    unique = {str(job): job for job in wanted}.values()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: nvrtc.compile(job[0], 10 * major + minor, job[1]), unique))


def empty(like, *shape, dtype=torch.float32):
    """Poisoned, so that what is not written shows."""
    return torch.full(shape, float("nan"), dtype=dtype, device=like.device) if POISON else torch.empty(
        shape, dtype=dtype, device=like.device)


POISON = False


class Scan:
    def __init__(self, dtype, states, lanes=None, checkpoint=None, gated=True, softplus=True, masks=False):
        checkpoint = checkpoint or (16 if dtype == torch.bfloat16 else 8)
        self.lanes = lanes or {8: 1, 16: 1, 32: 2, 64: 4}[states]
        self.states, self.checkpoint, self.dtype = states, checkpoint, dtype
        self.channels = 128 // self.lanes
        self.defines = dict(ELEMENT=NAMES[dtype], STATES=states, LANES=self.lanes, CHECKPOINT=checkpoint,
                            GATED=int(gated), SOFTPLUS=int(softplus), MASKS=int(masks))
        self.up = module("selective_scan/forward.cu", **self.defines)
        self.down = module("selective_scan/backward.cu", **self.defines)
        self.small = module("selective_scan/combine.cu", ELEMENT=NAMES[dtype])
        self.masks, self.gated = masks, gated

    def forward(self, u, delta, a, b, c, start, d=None, z=None, bias=None, reset_state=None, resets=None, valid=None,
                segment=None, keep=True):
        batch, time, d_inner = u.shape
        segment = segment or ceil(time, self.checkpoint) * self.checkpoint
        segments = ceil(time, segment)
        grid = (ceil(d_inner, self.channels), batch, segments)
        y = empty(u, batch, time, d_inner, dtype=self.dtype)
        last = empty(u, batch, d_inner, self.states)
        kept = empty(u, batch, ceil(time, self.checkpoint), self.states, d_inner) if keep else None
        states, by_batch, by_segment = start, batch_stride(start), 0
        if segments > 1:
            states = empty(u, batch, segments, d_inner, self.states)
            sums = empty(u, batch, segments, d_inner)
            self.up.launch("selective_scan_local", grid, 128, 0, *strides(u), *strides(delta), *strides(b), a, bias,
                           reset_state, batch_stride(reset_state), resets, valid, states, sums, time, d_inner, segment)
            self.small.launch("selective_scan_combine", (ceil(d_inner * self.states, 256), batch), 256, 0, states, sums, a,
                              start, batch_stride(start), states, segments, d_inner, self.states, ctypes.c_int(0))
            by_batch, by_segment = segments * d_inner * self.states, d_inner * self.states
        self.up.launch("selective_scan_forward", grid, 128, 0, *strides(u), *strides(delta), *strides(b), *strides(c),
                       *strides(z), a, bias, d, states, by_batch, by_segment, reset_state, batch_stride(reset_state),
                       resets, valid, y, last, kept, time, d_inner, segment)
        return y, last, kept

    def backward(self, dy, dlast, kept, u, delta, a, b, c, start, d=None, z=None, bias=None, reset_state=None, resets=None,
                 valid=None, segment=None):
        batch, time, d_inner = u.shape
        n = self.states
        segment = segment or ceil(time, self.checkpoint) * self.checkpoint
        segments = ceil(time, segment)
        blocks = ceil(d_inner, self.channels)
        grid = (blocks, batch, segments)
        carry, by_batch, by_segment = dlast, batch_stride(dlast) or d_inner * n, 0
        if segments > 1:
            carry = empty(u, batch, segments, d_inner, n)
            sums = empty(u, batch, segments, d_inner)
            self.down.launch("selective_scan_local_backward", grid, 128, 0, *strides(delta), *strides(c), *strides(z),
                             *strides(dy), a, bias, resets, valid, carry, sums, time, d_inner, segment)
            self.small.launch("selective_scan_combine", (ceil(d_inner * n, 256), batch), 256, 0, carry, sums, a, dlast,
                              d_inner * n, carry, segments, d_inner, n, ctypes.c_int(1))
            by_batch, by_segment = segments * d_inner * n, d_inner * n
        du, ddelta = (empty(u, batch, time, d_inner, dtype=self.dtype) for _ in range(2))
        dz = empty(u, batch, time, d_inner, dtype=self.dtype) if self.gated else None
        db, dc = (empty(u, batch, time, n, dtype=self.dtype) for _ in range(2))
        parts = empty(u, blocks, batch, time, 2, n)
        columns = d_inner * (n + 2)
        rows = empty(u, batch, segments, columns)
        sums = empty(u, columns)
        dstart = empty(u, batch, d_inner, n)
        dresets = empty(u, batch, segments, d_inner, n) if self.masks and resets is not None else None
        self.down.launch("selective_scan_backward", grid, 128, self.down.constant("selective_scan_backward_shared"),
                         *strides(u), *strides(delta), *strides(b), *strides(c), *strides(z), *strides(dy), a, bias, d,
                         reset_state, batch_stride(reset_state), resets, valid, kept, carry, by_batch, by_segment, du,
                         ddelta, dz, parts, rows, dstart, dresets, time, d_inner, segment)
        self.small.launch("selective_scan_sum_projections", (ceil(batch * time * 2 * n // 4, 256),), 256, 0, parts, db, dc,
                          blocks, batch * time, n)
        self.small.launch("sum_rows", (ceil(columns, 256), 1), 256, 0, rows, sums, batch * segments, columns)
        out = dict(u=du, delta=ddelta, b=db, c=dc, a=sums[:d_inner * n].view(d_inner, n), start=self.total(dstart, start))
        if z is not None:
            out["z"] = dz
        if d is not None:
            out["d"] = sums[d_inner * n:d_inner * (n + 1)]
        if bias is not None:
            out["bias"] = sums[d_inner * (n + 1):]
        if dresets is not None:
            out["reset_state"] = self.total(dresets.view(batch, segments, d_inner, n), reset_state)
        return out

    def total(self, gradient, like):
        """The sum over segments, and over the batch if the state was shared."""
        shared = like.shape[0] == 1
        rows = gradient.numel() // (gradient.shape[0] * like[0].numel()) * (gradient.shape[0] if shared else 1)
        if rows == 1:
            return gradient.view(like.shape)
        out = empty(like, *like.shape)
        columns = like[0].numel()
        self.small.launch("sum_rows", (ceil(columns, 256), like.shape[0]), 256, 0, gradient, out, rows, columns)
        return out


def scan_reference(u, delta, a, b, c, start, d=None, z=None, bias=None, reset_state=None, resets=None, valid=None,
                   softplus=True):
    """The definition, token by token, in the operands' dtype."""
    batch, time, d_inner = u.shape
    if bias is not None:
        delta = delta + bias
    if softplus:
        delta = torch.logaddexp(delta, torch.zeros_like(delta))
    h, ys = start.expand(batch, -1, -1), []
    for t in range(time):
        before = h
        if resets is not None:
            before = torch.where(resets[:, t, None, None], reset_state, before)
        step = delta[:, t, :, None]
        after = torch.exp(step * a) * before + step * u[:, t, :, None] * b[:, t, None]
        y = (after * c[:, t, None]).sum(-1)
        if d is not None:
            y = y + d * u[:, t]
        if z is not None:
            y = y * torch.nn.functional.silu(z[:, t])
        if valid is not None:
            y = torch.where(valid[:, t, None], y, torch.zeros_like(y))
            after = torch.where(valid[:, t, None, None], after, h)
        ys.append(y)
        h = after
    return torch.stack(ys, 1), h


class Conv:
    def __init__(self, dtype, width, silu=True, masks=False):
        self.dtype, self.width = dtype, width
        self.defines = dict(ELEMENT=NAMES[dtype], WIDTH=width, SILU=int(silu), MASKS=int(masks))
        self.small = module("selective_scan/combine.cu", ELEMENT=NAMES[dtype])
        if WANTED is not None:
            for direction in ("forward", "backward"):
                for whole in (0, 1):
                    module(f"causal_conv1d/{direction}.cu", **self.defines, WHOLE=whole)

    def module(self, direction, *operands):
        def aligned(x):
            return x.data_ptr() % (4 * x.element_size()) == 0 and all(s % 4 == 0 for s in (x.shape[2], *x.stride()[:2]))
        return module(f"causal_conv1d/{direction}.cu", **self.defines, WHOLE=int(all(map(aligned, operands))))

    def operands(self, x, weight, bias, tail, reset_tail, resets, lengths):
        return (*strides(x), weight, bias, tail, batch_stride(tail), reset_tail, batch_stride(reset_tail), resets, lengths)

    def forward(self, x, weight, tail, bias=None, reset_tail=None, resets=None, lengths=None, chunk=48):
        batch, time, d = x.shape
        y = empty(x, batch, time, d, dtype=self.dtype)
        new_tail = empty(x, batch, self.width - 1, d)
        groups = ceil(d, 4)
        self.module("forward", x).launch("causal_conv1d_forward", (ceil(groups * ceil(time, chunk), 128), batch), 128, 0,
                       *self.operands(x, weight, bias, tail, reset_tail, resets, lengths), y, new_tail, time, d, chunk)
        return y, new_tail

    def backward(self, dy, dnew_tail, x, weight, tail, bias=None, reset_tail=None, resets=None, lengths=None, chunk=53, tails=True):
        batch, time, d = x.shape
        dx = empty(x, batch, time, d, dtype=self.dtype)
        rows = ceil(ceil(time, chunk), 4)
        columns = d * (self.width + 1)
        parts, sums = empty(x, batch, rows, columns), empty(x, columns)
        operands = self.operands(x, weight, bias, tail, reset_tail, resets, lengths)
        self.module("backward", x, dy).launch("causal_conv1d_backward", (ceil(d, 128), rows, batch), 128, 0, *operands, *strides(dy), dnew_tail,
                         dx, parts, time, d, chunk)
        self.small.launch("sum_rows", (ceil(columns, 256), 1), 256, 0, parts, sums, batch * rows, columns)
        out = dict(x=dx, weight=sums[:d * self.width].view(d, self.width))
        if bias is not None:
            out["bias"] = sums[d * self.width:]
        if self.width > 1 and tails:
            dtail = empty(x, batch, self.width - 1, d)
            dreset = empty(x, batch, self.width - 1, d) if resets is not None else None
            self.module("backward", x, dy).launch("causal_conv1d_backward_tails", (ceil(d, 128), batch), 128, 0, *operands, *strides(dy),
                             dnew_tail, dtail, dreset, time, d)
            for name, gradient, like in (("tail", dtail, tail), ("reset_tail", dreset, reset_tail)):
                if gradient is not None:
                    out[name] = gradient if like.shape[0] == batch else gradient.sum(0, keepdim=True)
        return out


def conv_reference(x, weight, tail, bias=None, reset_tail=None, resets=None, lengths=None, silu=True):
    batch, time, d = x.shape
    history, ys = tail.expand(batch, -1, -1), []
    for t in range(time):
        before = history
        if resets is not None:
            before = torch.where(resets[:, t, None, None], reset_tail, before)
        window = torch.cat([before, x[:, t:t + 1]], 1)
        y = (window * weight.t()).sum(1)
        if bias is not None:
            y = y + bias
        if silu:
            y = torch.nn.functional.silu(y)
        after = window[:, 1:]
        if lengths is not None:
            counts = lengths > t
            y = torch.where(counts[:, None], y, torch.zeros_like(y))
            after = torch.where(counts[:, None, None], after, history)
        ys.append(y)
        history = after
    return torch.stack(ys, 1), history
