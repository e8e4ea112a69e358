//! Attention on CUDA devices: what its kernels get, and in which order they run.

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::guards::{Autocast, is_grad_enabled};
use torch_bridge::{Error, Result};

use super::mask::Bounds;
use super::{Attention, plain};
use crate::cuda::launch::{Launch, Shape, blocks};
use crate::cuda::sums::Sums;
use crate::cuda::{self, COMMON, Define, Header, Loaded, Unavailable, Value, program};
use crate::second;

static TILES: Header = Header { name: "attention.cuh", text: include_str!("attention.cuh") };

program!(FORWARD = "attention/forward.cu", headers: &[&COMMON, &TILES], specific: true, variants: VARIANTS);
program!(BACKWARD_QUERIES = "attention/backward_queries.cu", headers: &[&COMMON, &TILES], specific: true, variants: VARIANTS);
program!(BACKWARD_KEYS = "attention/backward_keys.cu", headers: &[&COMMON, &TILES], specific: true, variants: VARIANTS);

/// Wide and narrow heads, with and without rows that differ.
const VARIANTS: &[&[Define]] =
    &[&variant([64, 128, 0]), &variant([128, 128, 1]), &variant([64, 64, 1]), &variant([48, 16, 0])];

const fn variant([key, value, ragged]: [i64; 3]) -> [Define; 3] {
    [("DQK", Value::Int(key)), ("DV", Value::Int(value)), ("RAGGED", Value::Int(ragged))]
}

/// The widest head.
const WIDEST: i64 = 128;
/// Widths are multiples of this.
const STEP: i64 = 16;
/// Elements at whose multiples a row begins.
const EIGHT: i64 = 8;
/// More places than any window or sequence has.
pub(super) const FAR: i64 = 1 << 30;

/// As [`attention`](super::attention), for CUDA tensors; nothing where the definition is to run. Other types than bf16
/// are the definition's.
pub(super) fn attention(args: &Attention<'_>) -> Result<Option<Tensor>> {
    let device = args.query.device();
    let kind = Autocast::current(device).filter(|_| args.query.kind() != Kind::Double);
    if kind.unwrap_or(args.query.kind()) != Kind::BFloat16 || args.dropout > 0.0 {
        return Ok(None);
    }
    let sizes = Sizes::of(args)?;
    let bounds = args.visibility.bounds(sizes.batch, sizes.time)?;
    let given = [Some(args.query), Some(args.key), Some(args.value)];
    let meta = args.meta.iter().flat_map(|[key, value]| [Some(*key), Some(*value)]);
    let inputs: Vec<Tensor> =
        given.into_iter().chain(meta).flatten().map(|x| x.to_kind(Kind::BFloat16)).collect();
    let graph = is_grad_enabled() && inputs.iter().any(Tensor::requires_grad);
    let found = Kernels::find(&sizes, args.query, bounds.is_some(), graph);
    let Some(kernels) = cuda::or_definition("attention", found)? else { return Ok(None) };
    let again = Again::of(args);
    let node = Node { sizes, kernels, bounds, scale: args.scale(), again };
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    Ok(autograd::apply("attention", node, &inputs)?.pop())
}

/// Whether there are kernels for heads of this width.
pub(super) fn taken(width: i64) -> bool {
    width > 0 && width <= WIDEST && width % STEP == 0
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: i64,
    heads: i64,
    kv_heads: i64,
    time: i64,
    key: i64,
    value: i64,
    meta: i64,
    cached: i64,
    window: i64,
}

impl Sizes {
    fn of(args: &Attention<'_>) -> Result<Self> {
        let refusal = || {
            let [q, k, v] = [args.query, args.key, args.value].map(Tensor::size);
            Error::other(format!("attention: queries {q:?}, keys {k:?} and values {v:?} do not fit"))
        };
        let (q, k, v) = (args.query.size(), args.key.size(), args.value.size());
        let (&[batch, heads, time, key], &[kb, kv_heads, keys, kd], &[vb, vh, values, value]) =
            (q.as_slice(), k.as_slice(), v.as_slice())
        else {
            return Err(refusal());
        };
        let (meta, cached) = (args.visibility.meta, args.visibility.cached);
        let before = if args.meta.is_some() { 0 } else { meta };
        let fits = kb == batch
            && vb == batch
            && vh == kv_heads
            && kv_heads > 0
            && heads % kv_heads == 0
            && kd == key
            && keys == before + cached + time
            && values == keys;
        let fits = fits
            && args.meta.is_none_or(|[k, v]| {
                let rows = k.size().first().copied().unwrap_or(0);
                (rows == 1 || rows == batch)
                    && k.size() == [rows, kv_heads, meta, key]
                    && v.size() == [rows, kv_heads, meta, value]
            });
        if !fits {
            return Err(refusal());
        }
        let window = args.visibility.window.unwrap_or(FAR).min(FAR);
        Ok(Self { batch, heads, kv_heads, time, key, value, meta, cached, window })
    }
}

/// The kernels of one call, loaded.
#[derive(Clone, Copy)]
struct Kernels {
    forward: &'static Loaded,
    /// Only where gradients may be asked for.
    backward: Option<Backward>,
}

#[derive(Clone, Copy)]
struct Backward {
    queries: &'static Loaded,
    keys: &'static Loaded,
    sums: Sums,
}

impl Kernels {
    fn find(sizes: &Sizes, query: &Tensor, ragged: bool, graph: bool) -> Result<Self, Unavailable> {
        let device = query.device();
        if !taken(sizes.key) || !taken(sizes.value) {
            let widths = format!("{} and {}", sizes.key, sizes.value);
            return Err(format!("attention has no CUDA kernel for heads of {widths} channels").into());
        }
        if sizes.cached + sizes.time >= FAR || sizes.meta >= FAR {
            return Err("attention has no CUDA kernel for so many keys".into());
        }
        let defines = variant([sizes.key, sizes.value, ragged.into()]);
        let backward = graph
            .then(|| {
                let (queries, keys) =
                    (BACKWARD_QUERIES.on(device, &defines)?, BACKWARD_KEYS.on(device, &defines)?);
                Ok::<_, Unavailable>(Backward { queries, keys, sums: Sums::on(device)? })
            })
            .transpose()?;
        Ok(Self { forward: FORWARD.on(device, &defines)?, backward })
    }
}

/// What tensor operations need besides tensors that are differentiated.
struct Again {
    meta: i64,
    cached: i64,
    window: Option<i64>,
    cached_positions: Tensor,
    positions: Tensor,
    valid: Option<Tensor>,
    document: Option<Tensor>,
    uniform: bool,
}

// SAFETY: the tensors are read only, and libtorch counts references atomically.
unsafe impl Send for Again {}

impl Again {
    fn of(args: &Attention<'_>) -> Self {
        let seen = args.visibility;
        Self {
            meta: seen.meta,
            cached: seen.cached,
            window: seen.window,
            cached_positions: seen.cached_positions.shallow_clone(),
            positions: seen.positions.shallow_clone(),
            valid: seen.valid.map(Tensor::shallow_clone),
            document: seen.document.map(Tensor::shallow_clone),
            uniform: seen.uniform,
        }
    }

    fn plainly(&self, inputs: &[Tensor], scale: f64) -> Result<Tensor> {
        let [query, key, value, meta @ ..] = inputs else { return Err(missing()) };
        let meta = if let [key, value] = meta { Some([key, value]) } else { None };
        let visibility = super::Visibility {
            meta: self.meta,
            cached: self.cached,
            window: self.window,
            cached_positions: &self.cached_positions,
            positions: &self.positions,
            valid: self.valid.as_ref(),
            document: self.document.as_ref(),
            uniform: self.uniform,
        };
        let visibility = &visibility;
        let scale = Some(scale);
        plain::attention(&Attention { query, key, value, meta, codes: None, visibility, scale, dropout: 0.0 })
    }
}

fn missing() -> Error {
    Error::other("attention: operands are missing")
}

/// The node of the graph. It saves the operands, the output and the logarithms of the sums.
struct Node {
    sizes: Sizes,
    kernels: Kernels,
    bounds: Option<Bounds>,
    scale: f64,
    again: Again,
}

// SAFETY: the tensors of the bounds are read only, and libtorch counts references atomically.
unsafe impl Send for Bounds {}

/// Keys or values in their two parts: meta keys, perhaps, and the others.
struct Parts {
    meta: Option<Tensor>,
    others: Tensor,
}

/// With rows that a kernel can read: contiguous, beginning at multiples of 16 bytes.
pub(super) fn readable(x: &Tensor) -> Result<Tensor> {
    let stride = x.stride();
    let aligned = x.data_ptr().addr().is_multiple_of(16)
        && stride[..3].iter().all(|stride| stride % EIGHT == 0)
        && stride[3] == 1;
    if aligned {
        return Ok(x.shallow_clone());
    }
    let copy = x.f_contiguous()?;
    // A contiguous tensor may begin anywhere in another one.
    Ok(if copy.data_ptr().addr().is_multiple_of(16) { copy } else { copy.copy() })
}

impl Node {
    fn parts(&self, joined: &Tensor, meta: Option<&Tensor>) -> Result<Parts> {
        let front = self.sizes.meta;
        if let Some(meta) = meta {
            let meta = (front > 0).then(|| readable(meta)).transpose()?;
            return Ok(Parts { meta, others: readable(joined)? });
        }
        let joined = readable(joined)?;
        let others = joined.f_narrow(2, front, self.sizes.cached + self.sizes.time)?;
        let meta = (front > 0).then(|| joined.f_narrow(2, 0, front)).transpose()?;
        Ok(Parts { meta, others })
    }

    /// Queries, keys and values.
    fn operands(&self, inputs: &[Tensor]) -> Result<(Tensor, Parts, Parts)> {
        match inputs {
            [q, k, v] => Ok((readable(q)?, self.parts(k, None)?, self.parts(v, None)?)),
            [q, k, v, mk, mv] => Ok((readable(q)?, self.parts(k, Some(mk))?, self.parts(v, Some(mv))?)),
            _ => Err(missing()),
        }
    }

    /// The sizes, as all kernels get them at the end.
    fn sized<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        let Sizes { heads, kv_heads, time, meta, cached, window, .. } = self.sizes;
        launch.i64(time).i64(meta).i64(cached).i64(heads).i64(kv_heads).i64(window)
    }

    fn bounded<'a>(&'a self, launch: Launch<'a>) -> Launch<'a> {
        let bounds = self.bounds.as_ref();
        launch
            .optional(bounds.map(|bounds| &bounds.queries), Kind::Int)
            .optional(bounds.map(|bounds| &bounds.keys), Kind::Int)
            .i64(bounds.is_some_and(|bounds| bounds.holes).into())
    }
}

/// Address and strides of batch, head and row; a batch of one is shared.
pub(super) fn strided<'a>(launch: Launch<'a>, x: &'a Tensor) -> Launch<'a> {
    let stride = x.stride();
    let batch = if x.size()[0] == 1 { 0 } else { stride[0] };
    launch.tensor(x, Kind::BFloat16).i64(batch).i64(stride[1]).i64(stride[2])
}

fn strided_parts<'a>(mut launch: Launch<'a>, q: &'a Tensor, k: &'a Parts, v: &'a Parts) -> Launch<'a> {
    launch = strided(launch, q);
    for meta in [&k.meta, &v.meta] {
        launch = match meta {
            Some(meta) => strided(launch, meta),
            None => launch.optional(None, Kind::BFloat16).i64(0).i64(0).i64(0),
        };
    }
    strided(strided(launch, &k.others), &v.others)
}

fn shape(loaded: &Loaded, grid: i64, shared: &'static str, threads: &'static str) -> Result<Shape> {
    let [shared, threads] = [loaded.constant(shared)?, loaded.constant(threads)?].map(i32::unsigned_abs);
    Ok(Shape { grid: [blocks(grid, 1)?, 1, 1], block: [threads, 1, 1], shared })
}

fn ceiling(count: i64, size: i64) -> i64 {
    (count + size - 1) / size
}

impl Function for Node {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (q, k, v) = self.operands(inputs)?;
        let Sizes { batch, heads, time, value, .. } = self.sizes;
        let y = Tensor::f_empty([batch, time, heads, value], (Kind::BFloat16, q.device()))?;
        let keep = saved.needs_any_grad();
        let lse =
            keep.then(|| Tensor::f_empty([batch, heads, time], (Kind::Float, q.device()))).transpose()?;
        let loaded = self.kernels.forward;
        let rows = i64::from(loaded.constant("attention_forward_rows")?);
        let launch = strided_parts(loaded.kernel("attention_forward")?, &q, &k, &v)
            .tensor(&y, Kind::BFloat16)
            .optional(lse.as_ref(), Kind::Float);
        let launch = self.sized(self.bounded(launch)).f32((self.scale * std::f64::consts::LOG2_E) as f32);
        let grid = batch * heads * ceiling(time, rows);
        let shape = shape(loaded, grid, "attention_forward_shared", "attention_forward_threads")?;
        // SAFETY: the kernel's parameters in its order; the operands were checked to fit each other, and their rows to
        // be readable.
        unsafe { launch.run(shape) }?;
        if let Some(lse) = &lse {
            saved.save(&y);
            saved.save(lse);
            for input in inputs {
                saved.save(input);
            }
        }
        Ok(vec![y.f_transpose(1, 2)?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let [y, lse, inputs @ ..] = saved else { return Err(missing()) };
        let Some(dy) = grads.first().and_then(Option::as_ref) else {
            return Ok(inputs.iter().map(|_| None).collect());
        };
        let again = || {
            let y = self.again.plainly(inputs, self.scale)?;
            let second = y.f_detach()?;
            Ok((y, second))
        };
        if let Some(gradients) = second::differentiable(inputs, grads, again) {
            return gradients;
        }
        let Backward { queries, keys, sums } =
            self.kernels.backward.ok_or_else(|| Error::other("attention: no backward was loaded"))?;
        let (q, k, v) = self.operands(inputs)?;
        let dy = readable(dy)?;
        let Sizes { batch, heads, kv_heads, time, key, value, meta, cached, .. } = self.sizes;
        let group = heads / kv_heads;
        let float = (Kind::Float, q.device());
        let (dq, delta) = (q.f_empty_like()?, lse.f_empty_like()?);
        let (scale, scale2) = (self.scale as f32, (self.scale * std::f64::consts::LOG2_E) as f32);

        let launch = strided_parts(queries.kernel("attention_backward_queries")?, &q, &k, &v)
            .tensor(y, Kind::BFloat16)
            .tensor(lse, Kind::Float);
        let launch = strided(strided(launch, &dy), &dq).tensor(&delta, Kind::Float);
        let launch = self.sized(self.bounded(launch)).f32(scale).f32(scale2);
        let name = ["attention_backward_queries_shared", "attention_backward_queries_threads"];
        let rows = i64::from(queries.constant("attention_backward_queries_rows")?);
        let grid = batch * heads * ceiling(time, rows);
        // SAFETY: as in the forward; the gradient has the output's shape, and readable rows.
        unsafe { launch.run(shape(queries, grid, name[0], name[1])?) }?;

        let joined = inputs.len() == 3;
        let front = if joined { meta } else { 0 };
        let fresh = |like: &Tensor, width| {
            Tensor::f_empty([batch, kv_heads, front + cached + time, width], (like.kind(), like.device()))
        };
        let (dk, dv) = (fresh(&q, key)?, fresh(&q, value)?);
        let (others_dk, others_dv) =
            (dk.f_narrow(2, front, cached + time)?, dv.f_narrow(2, front, cached + time)?);
        let part = |width| Tensor::f_empty([batch, group, kv_heads, meta, width], float);
        let (meta_dk, meta_dv) = (part(key)?, part(value)?);
        let launch = strided_parts(keys.kernel("attention_backward_keys")?, &q, &k, &v)
            .tensor(lse, Kind::Float)
            .tensor(&delta, Kind::Float);
        let launch = strided(strided(strided(launch, &dy), &others_dk), &others_dv)
            .tensor(&meta_dk, Kind::Float)
            .tensor(&meta_dv, Kind::Float);
        let launch = self.sized(self.bounded(launch).i64(batch)).f32(scale).f32(scale2);
        let rows = i64::from(keys.constant("attention_backward_keys_rows")?);
        let others = if self.bounds.is_some() {
            ceiling(cached, rows) + ceiling(time, rows)
        } else {
            ceiling(cached + time, rows)
        };
        let grid = batch * heads * ceiling(meta, rows) + batch * kv_heads * others;
        let name = ["attention_backward_keys_shared", "attention_backward_keys_threads"];
        // SAFETY: as above.
        unsafe { launch.run(shape(keys, grid, name[0], name[1])?) }?;

        let mut gradients = vec![Some(dq)];
        let mut of_meta = Vec::new();
        for (partial, width, all) in [(&meta_dk, key, &dk), (&meta_dv, value, &dv)] {
            gradients.push(Some(all.shallow_clone()));
            if meta == 0 {
                of_meta.extend((!joined).then(|| inputs.get(of_meta.len() + 3).map(Tensor::zeros_like)));
                continue;
            }
            let columns = kv_heads * meta * width;
            if joined {
                let sum = sums.of(partial, [batch, group, columns])?;
                all.f_narrow(2, 0, meta)?.f_copy_(&sum.f_view([batch, kv_heads, meta, width])?)?;
            } else {
                let like = inputs.get(of_meta.len() + 3).ok_or_else(missing)?;
                let kept = like.size()[0];
                let sum = if kept == 1 {
                    sums.of(partial, [1, batch * group, columns])?
                } else {
                    sums.of(partial, [batch, group, columns])?
                };
                of_meta.push(Some(sum.f_view(like.size().as_slice())?.f_to_kind(like.kind())?));
            }
        }
        gradients.extend(of_meta);
        Ok(gradients)
    }
}
