//! One token without gradients, as in decoding: one kernel.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::kernels::floats;
use crate::cuda::launch::{Launch, Shape, blocks};
use crate::cuda::{Define, Loaded, Unavailable, Value, program};
use crate::mlstm::{M_FLOOR, Mlstm, MlstmState};

program!(STEP = "mlstm/step.cu", variants: &[&variant("bf16", true), &variant("float", false)]);

const fn variant(element: &'static str, whole: bool) -> [Define; 2] {
    [("ELEMENT", Value::Text(element)), ("WHOLE", Value::Int(whole as i64))]
}

/// What a grid may have in y and z, columns of a block, and the widest query that its shared memory holds.
const ROWS: i64 = 65_535;
const COLUMNS: i64 = 64;
const WIDEST: i64 = 4096;

/// The kernel of one token, loaded.
#[derive(Clone, Copy)]
pub(super) struct Step {
    loaded: &'static Loaded,
    element: Kind,
}

impl Step {
    /// Nothing if the call is of another kind.
    pub(super) fn find(args: &Mlstm<'_>, graph: bool) -> Option<Result<Self, Unavailable>> {
        let size = args.q.size();
        let plain = !graph && args.resets.is_none() && args.valid.is_none();
        let wide = [args.q, args.k, args.v].iter().any(|x| x.kind() == Kind::Double);
        if !plain || wide || size[1] != 1 || size[0] > ROWS || size[2] > ROWS || size[3] > WIDEST {
            return None;
        }
        let small = [args.q, args.k, args.v].iter().all(|x| x.kind() == Kind::BFloat16);
        let (element, name) = if small { (Kind::BFloat16, "bf16") } else { (Kind::Float, "float") };
        let whole = args.v.size()[3] % 4 == 0 && args.initial_state.c.data_ptr().addr().is_multiple_of(16);
        Some(STEP.on(args.q.device(), &variant(name, whole)).map(|loaded| Self { loaded, element }))
    }

    /// `h` and the new state.
    pub(super) fn run(self, args: &Mlstm<'_>) -> Result<(Tensor, MlstmState)> {
        let device = args.q.device();
        let size = args.q.size();
        let (batch, heads, d_qk, d_v) = (size[0], size[2], size[3], args.v.size()[3]);
        let dense = |x: &Tensor| -> Result<Tensor> {
            let x = x.f_to_kind(self.element)?;
            Ok(if x.stride()[3] == 1 { x } else { x.f_contiguous()? })
        };
        let token = [dense(args.q)?, dense(args.k)?, dense(args.v)?];
        let gates = [args.input_gate.f_to_kind(Kind::Float)?, args.forget_gate.f_to_kind(Kind::Float)?];
        let state = |x: &Tensor| -> Result<Tensor> { Ok(x.f_to_kind(Kind::Float)?.f_contiguous()?) };
        let given = args.initial_state;
        let before = [state(&given.c)?, state(&given.n)?, state(&given.m)?];
        let h = Tensor::f_empty([batch, 1, heads, d_v], (self.element, device))?;
        let c = floats(&[batch, heads, d_qk, d_v], device)?;
        let n = floats(&[batch, heads, d_qk], device)?;
        let m = floats(&[batch, heads], device)?;
        let launch = self.loaded.kernel("mlstm_step")?;
        let launch = token.iter().fold(launch, |launch, x| row(launch, x, self.element));
        let launch = gates.iter().fold(launch, |launch, x| row(launch, x, Kind::Float));
        let launch = before
            .iter()
            .fold(launch, |launch, x| launch.state(Some(x)))
            .tensor(&h, self.element)
            .tensor(&c, Kind::Float)
            .tensor(&n, Kind::Float)
            .tensor(&m, Kind::Float)
            .i64(heads)
            .i64(d_qk)
            .i64(d_v)
            .f32((d_qk as f64).powf(-0.5) as f32)
            .f32(args.eps as f32)
            .f32(M_FLOOR as f32);
        let grid = [blocks(d_v, COLUMNS)?, blocks(heads, 1)?, blocks(batch, 1)?];
        // SAFETY: the kernel's parameters in its order; the operands have the shapes that were checked, the results those
        // made above.
        unsafe { launch.run(Shape { grid, block: [256, 1, 1], shared: 8 * d_qk as u32 }) }?;
        let state = MlstmState {
            c: c.f_to_kind(given.c.kind())?,
            n: n.f_to_kind(given.n.kind())?,
            m: m.f_to_kind(given.m.kind())?,
        };
        Ok((h.f_to_kind(args.v.kind())?, state))
    }
}

/// An operand `[batch, 1, heads, ..]`: its address and its strides over batch and heads.
fn row<'a>(launch: Launch<'a>, x: &'a Tensor, kind: Kind) -> Launch<'a> {
    let stride = x.stride();
    launch.tensor(x, kind).i64(stride[0]).i64(stride[2])
}
