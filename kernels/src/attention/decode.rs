//! Attention of one token on CUDA devices, without gradients: keys and values are read where they lie, codes too.

use tch::{Kind, Tensor};
use torch_bridge::Result;
use torch_bridge::guards::Autocast;

use super::cuda::{FAR, readable, strided, taken};
use super::{Attention, Coded};
use crate::cuda::launch::{Launch, Shape, blocks};
use crate::cuda::{self, Define, Loaded, Unavailable, Value, program};
use crate::kv_quant::{Bits, Quantised};

program!(DECODE = "attention/decode.cu", variants: VARIANTS);

const VARIANTS: &[&[Define]] = &[
    &variant([64, 128, 5, 0, 0]),
    &variant([64, 64, 8, 8, 1]),
    &variant([128, 128, 4, 4, 0]),
    &variant([48, 16, 1, 8, 0]),
];

const fn variant([key, value, group, bits, ragged]: [i64; 5]) -> [Define; 5] {
    [
        ("DQK", Value::Int(key)),
        ("DV", Value::Int(value)),
        ("GROUP", Value::Int(group)),
        ("BITS", Value::Int(bits)),
        ("RAGGED", Value::Int(ragged)),
    ]
}

/// The most query heads of a block.
const GROUP: i64 = 8;
/// Blocks that a multiprocessor should get.
const BLOCKS: i64 = 4;
/// The fewest keys of a split.
const FEWEST: i64 = 64;

/// As [`attention`](super::attention), for one token of CUDA tensors; nothing where something else is to run.
pub(super) fn attention(args: &Attention<'_>) -> Result<Option<Tensor>> {
    let (q, k, v) = (args.query.size(), args.key.size(), args.value.size());
    let (&[batch, heads, 1, width], &[_, kv_heads, keys, _], &[_, _, _, value]) =
        (q.as_slice(), k.as_slice(), v.as_slice())
    else {
        return Ok(None);
    };
    let device = args.query.device();
    let kind = Autocast::current(device).filter(|_| args.query.kind() != Kind::Double);
    if kind.unwrap_or(args.query.kind()) != Kind::BFloat16 || args.dropout > 0.0 {
        return Ok(None);
    }
    let seen = args.visibility;
    let (meta, cached) = (seen.meta, seen.cached);
    let front = if args.meta.is_some() { 0 } else { meta };
    let (groups, size) = args.codes.map_or((0, 0), |codes| {
        let size = codes.key.codes.size();
        (size[2], size[3])
    });
    let (coded, others) = (groups * size, cached + 1 - groups * size);
    let fits = heads % kv_heads == 0
        && args.key.size() == [batch, kv_heads, front + others, width]
        && args.value.size() == [batch, kv_heads, front + others, value]
        && keys == front + others
        && args.codes.is_none_or(|codes| front == 0 && codes.fits([batch, kv_heads, width, value]));
    let fits = fits
        && args.meta.is_none_or(|[k, v]| {
            let rows = k.size()[0];
            (rows == 1 || rows == batch)
                && k.size() == [rows, kv_heads, meta, width]
                && v.size() == [rows, kv_heads, meta, value]
        });
    if !fits {
        // The definition says what is wrong.
        return Ok(None);
    }
    let group = (heads / kv_heads).min(GROUP);
    let bounds = seen.bounds(batch, 1)?;
    let bits = args.codes.filter(|_| groups > 0).map_or(0, |codes| match codes.bits {
        Bits::Eight => 8,
        Bits::Four => 4,
    });
    let find = || {
        if !taken(width) || !taken(value) {
            return Err(Unavailable::from(format!(
                "attention has no CUDA kernel for heads of {width} and {value} channels"
            )));
        }
        DECODE.on(device, &variant([width, value, group, bits, bounds.is_some().into()]))
    };
    let Some(loaded) = cuda::or_definition("attention", find())? else { return Ok(None) };

    let narrow = |x: &Tensor| -> Result<Tensor> { readable(&x.f_to_kind(Kind::BFloat16)?) };
    let (q, k, v) = (narrow(args.query)?, narrow(args.key)?, narrow(args.value)?);
    let metas = match args.meta {
        Some([k, v]) => Some((narrow(k)?, narrow(v)?)),
        None => Some((k.f_narrow(2, 0, meta)?, v.f_narrow(2, 0, meta)?)),
    }
    .filter(|_| meta > 0);
    let (k, v) = (k.f_narrow(2, front, others)?, v.f_narrow(2, front, others)?);
    let codes = args.codes.filter(|_| groups > 0).map(|codes| Groups::of(&codes)).transpose()?;

    let all = meta + cached + 1;
    let pieces = (heads / kv_heads + GROUP - 1) / GROUP;
    let most = i64::from(loaded.constant("attention_decode_most")?);
    let wanted = loaded.multiprocessors() * BLOCKS / (batch * kv_heads * pieces).max(1);
    let per = ceiling(all, wanted.clamp(1, ceiling(all, FEWEST))).min(most);
    let splits = ceiling(all, per);
    let float = (Kind::Float, device);
    let y = Tensor::f_empty([batch, heads, 1, value], (Kind::BFloat16, device))?;
    let partial = (splits > 1)
        .then(|| {
            let sums = Tensor::f_empty([batch, heads, splits, value], float)?;
            Ok::<_, tch::TchError>((sums, Tensor::f_empty([batch, heads, splits, 2], float)?))
        })
        .transpose()?;

    let stride = q.stride();
    let mut launch = loaded
        .kernel("attention_decode")?
        .tensor(&q, Kind::BFloat16)
        .i64(if batch == 1 { 0 } else { stride[0] })
        .i64(stride[1]);
    launch = match &metas {
        Some((k, v)) => strided(strided(launch, k), v),
        None => absent(absent(launch)),
    };
    launch = strided(strided(launch, &k), &v);
    for index in 0..6 {
        let kind = if index % 3 == 0 { Kind::Uint8 } else { Kind::BFloat16 };
        launch = match &codes {
            Some(Groups(parts)) => {
                let part = &parts[index];
                let stride = part.stride();
                launch.tensor(part, kind).i64(if part.size()[0] == 1 { 0 } else { stride[0] }).i64(stride[1])
            }
            None => launch.optional(None, kind).i64(0).i64(0),
        };
    }
    launch = launch
        .optional(bounds.as_ref().map(|bounds| &bounds.queries), Kind::Int)
        .optional(bounds.as_ref().map(|bounds| &bounds.keys), Kind::Int)
        .tensor(&y, Kind::BFloat16)
        .optional(partial.as_ref().map(|partial| &partial.0), Kind::Float)
        .optional(partial.as_ref().map(|partial| &partial.1), Kind::Float);
    for number in
        [meta, coded, size.max(1), cached, heads, kv_heads, seen.window.unwrap_or(FAR).min(FAR), per]
    {
        launch = launch.i64(number);
    }
    launch = launch.f32((args.scale() * std::f64::consts::LOG2_E) as f32);
    let grid = [blocks(splits, 1)?, blocks(kv_heads * pieces, 1)?, blocks(batch, 1)?];
    // SAFETY: the kernel's parameters in its order; the operands were checked to fit each other, and their rows to be
    // readable.
    unsafe { launch.run(Shape { grid, block: [128, 1, 1], shared: 0 }) }?;
    if let Some((sums, scales)) = &partial {
        join(loaded, sums, scales, &y, splits)?;
    }
    Ok(Some(y))
}

/// An operand that is not there.
fn absent(launch: Launch<'_>) -> Launch<'_> {
    launch.optional(None, Kind::BFloat16).i64(0).i64(0).i64(0)
}

fn ceiling(count: i64, size: i64) -> i64 {
    (count + size - 1) / size
}

fn join(loaded: &'static Loaded, sums: &Tensor, scales: &Tensor, y: &Tensor, splits: i64) -> Result<()> {
    let launch = loaded
        .kernel("attention_decode_join")?
        .tensor(sums, Kind::Float)
        .tensor(scales, Kind::Float)
        .tensor(y, Kind::BFloat16)
        .i64(splits);
    let rows = y.size()[0] * y.size()[1];
    // SAFETY: the kernel's parameters in its order, and a block for each head of each row.
    unsafe { launch.run(Shape { grid: [blocks(rows, 1)?, 1, 1], block: [128, 1, 1], shared: 0 }) }
}

/// Codes, scales and zeros of keys, then of values, as the kernel reads them.
struct Groups([Tensor; 6]);

impl Groups {
    fn of(codes: &Coded<'_>) -> Result<Self> {
        let part = |x: &Tensor, kind| -> Result<Tensor> {
            let x = x.f_to_kind(kind)?;
            let inner: i64 = x.size()[2..].iter().product();
            let dense = x.f_narrow(0, 0, 1)?.f_narrow(1, 0, 1)?.is_contiguous();
            let aligned = x.data_ptr().addr().is_multiple_of(16)
                && x.stride()[..2].iter().all(|stride| stride % 16 == 0)
                && inner % 16 == 0;
            Ok(if dense && aligned { x } else { x.f_contiguous()? })
        };
        let three = |x: &Quantised| -> Result<[Tensor; 3]> {
            Ok([
                part(&x.codes, Kind::Uint8)?,
                part(&x.scale, Kind::BFloat16)?,
                part(&x.zero, Kind::BFloat16)?,
            ])
        };
        let ([a, b, c], [d, e, f]) = (three(codes.key)?, three(codes.value)?);
        Ok(Self([a, b, c, d, e, f]))
    }
}
