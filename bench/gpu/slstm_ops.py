"""The sLSTM on torch tensors through the project's CUDA kernels, and its definition in plain torch. Launches are as the
comments in the `.cu` files say."""
import torch

import ops
from ops import NAMES, batch_stride, ceil, empty, module

BF, F32 = torch.bfloat16, torch.float32


def states(parts):
    """Each with its stride over the batch; nothing for a state that is not there."""
    return [y for x in ([None] * 4 if parts is None else parts) for y in (x, batch_stride(x))]


class Fused:
    """On the matrix unit, in bf16."""

    def __init__(self, head_dim, cells, masks, recurrent):
        defines = dict(HEAD_DIM=head_dim, CELLS=cells, MASKS=int(masks), RECURRENT=NAMES[recurrent])
        self.up = module("slstm/forward.cu", **defines)
        self.down = module("slstm/backward.cu", **defines)
        self.product = module("slstm/recurrent.cu", HEAD_DIM=head_dim)
        self.sums = module("cuda/sum_rows.cu")
        self.cells, self.masks = cells, masks

    def forward(self, gates, recurrent, start, bias=None, reset=None, resets=None, valid=None, keep=True):
        batch, time, _, heads, d = gates.shape
        tiles = ceil(batch, 4 * self.cells)
        y = empty(gates, batch, time, heads, d, dtype=BF)
        last = empty(gates, 4, batch, heads, d)
        records = empty(gates, tiles, time, heads, d // 8, self.cells, 32, 4) if keep else None
        before = empty(gates, batch, time, heads, d, dtype=BF) if keep else None
        self.up.launch("slstm_forward", (heads, tiles), 4 * d, self.up.constant("slstm_forward_shared"), gates,
                       *gates.stride()[:4], bias, recurrent, *states(start), *states(reset), resets, valid, y, last, records,
                       before, batch, time, heads)
        return y, last, (records, before)

    def backward(self, dy, dlast, kept, last, gates, recurrent, start, bias=None, reset=None, resets=None, valid=None,
                 splits=None):
        batch, time, _, heads, d = gates.shape
        records, before = kept
        dgates = empty(gates, batch, time, 4, heads, d, dtype=BF)
        dstart, dreset = empty(gates, 4, batch, heads, d), empty(gates, 4, batch, heads, d) if reset is not None else None
        self.down.launch("slstm_backward", (heads, ceil(batch, 4 * self.cells)), 2 * d,
                         self.down.constant("slstm_backward_shared"), dy, *dy.stride()[:3], dlast, recurrent, last, records,
                         *states(start)[2:6], *states(reset)[2:6], resets, valid, dgates, dstart, dreset, batch, time, heads)
        tokens = batch * time
        splits = splits or max(1, min(ceil(528, 4 * heads), ceil(tokens, 128)))
        split = ceil(ceil(tokens, splits), 32) * 32
        splits = ceil(tokens, split)
        matrices, biases = empty(gates, splits, 4, heads, d, d), empty(gates, splits, 4, heads, d)
        self.product.launch("slstm_recurrent", (4 * heads, splits), 2 * d, self.product.constant("slstm_recurrent_shared"),
                            dgates, before, matrices, biases, tokens, heads, split)
        result = dict(gates=dgates, recurrent=self.add(matrices), start=dstart, reset=dreset)
        if bias is not None:
            result["bias"] = self.add(biases)
        return result

    def add(self, parts):
        if parts.shape[0] == 1:
            return parts[0]
        total = empty(parts, *parts.shape[1:])
        columns = total.numel()
        self.sums.launch("sum_rows", (ceil(columns, 256), 1), 256, 0, parts, total, parts.shape[0], columns)
        return total


class Plain:
    """In f32, for heads of any size."""

    def __init__(self, masks):
        self.both = module("slstm/plain.cu", MASKS=int(masks))

    def forward(self, gates, recurrent, start, bias=None, reset=None, resets=None, valid=None, keep=True):
        batch, time, _, heads, d = gates.shape
        y, last = empty(gates, batch, time, heads, d), empty(gates, 4, batch, heads, d)
        records = empty(gates, batch, time, heads, 6, d) if keep else None
        before = empty(gates, batch, time, heads, d) if keep else None
        self.both.launch("slstm_plain_forward", (heads, ceil(batch, 2)), ceil(d, 32) * 32, 16 * d, gates, *gates.stride()[:4],
                         bias, recurrent.permute(1, 3, 2, 0).contiguous(), *states(start), *states(reset), resets, valid, y,
                         last, records, before, batch, time, heads, d)
        return y, last, (records, before)

    def backward(self, dy, dlast, kept, last, gates, recurrent, start, bias=None, reset=None, resets=None, valid=None):
        batch, time, _, heads, d = gates.shape
        records, before = kept
        dgates = empty(gates, batch, time, 4, heads, d)
        dstart, dreset = empty(gates, 4, batch, heads, d), empty(gates, 4, batch, heads, d) if reset is not None else None
        self.both.launch("slstm_plain_backward", (heads, ceil(batch, 2)), ceil(d, 32) * 32, 64 * d, dy, *dy.stride()[:3], dlast,
                         recurrent.permute(1, 2, 3, 0).contiguous(), last, records, *states(start)[2:6], *states(reset)[2:6],
                         resets, valid, dgates, dstart, dreset, batch, time, heads, d)
        result = dict(gates=dgates, recurrent=torch.einsum("btghj,bthk->ghjk", dgates, before), start=dstart, reset=dreset)
        if bias is not None:
            result["bias"] = dgates.sum((0, 1))
        return result


class Step:
    def __init__(self, dtype, recurrent):
        self.one = module("slstm/step.cu", ELEMENT=NAMES[dtype], RECURRENT=NAMES[recurrent])

    def __call__(self, gates, recurrent, start, bias=None):
        batch, _, _, heads, d = gates.shape
        y, last = empty(gates, batch, 1, heads, d, dtype=gates.dtype), empty(gates, 4, batch, heads, d)
        strides = gates.stride()
        self.one.launch("slstm_step", (ceil(d, 8), heads, ceil(batch, 4)), 256, 0, gates, strides[0], strides[2], strides[3],
                        bias, recurrent, *states(start), y, last, batch, heads, d)
        return y, last


def reference(gates, recurrent, start, bias=None, reset=None, resets=None, valid=None):
    """`y` and the last state, [4, batch, heads, head_dim]; states are [4, batch or 1, heads, head_dim]."""
    batch, time, _, heads, d = gates.shape
    if bias is not None:
        gates = gates + bias
    state = start.expand(4, batch, heads, d)
    ys = []
    for t in range(time):
        h, c, n, m = state if resets is None else torch.where(resets[:, t, None, None], reset, state)
        i, f, z, o = (gates[:, t] + torch.einsum("ghjk,bhk->bghj", recurrent, h)).unbind(1)
        kept = torch.nn.functional.logsigmoid(f) + m.masked_fill(n == 0, float("-inf"))
        top = torch.maximum(kept, i)
        f, i = (kept - top).exp(), (i - top).exp()
        c, n = f * c + i * z.tanh(), f * n + i
        after = torch.stack([o.sigmoid() * c / n, c, n, top])
        y = after[0]
        if valid is not None:
            y = torch.where(valid[:, t, None, None], y, 0.0)
            after = torch.where(valid[:, t, None, None], after, state)
        ys.append(y)
        state = after
    return torch.stack(ys, 1), state
