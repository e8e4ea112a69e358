//! Real mixers with one thing wrong each: `kind: faulty` hands everything to the mixer `of`, but for its `fault`.

use std::{cell::RefCell, collections::BTreeMap};

use hymba_plus::{
    model::slot::{MixerModule, MixerObject},
    prelude::*,
};
use tch::Device;
use torch_bridge::guards::{NoGrad, is_grad_enabled};

/// A mixer with a fault.
#[component_config]
pub struct Faulty {
    /// The mixer.
    pub of: Component<sequence_mixer>,
    /// What is wrong with it.
    pub fault: Fault,
}

/// Mistakes that were made before, here or elsewhere.
#[component_config]
pub enum Fault {
    /// Nothing: the unbroken twin.
    Nothing,
    /// A window lets one token more through.
    WindowOffByOne,
    /// The ring of keys keeps one token less than the window needs.
    RingTooShort,
    /// Positions of every call start at 0.
    PositionsNotOffset,
    /// The ring is overwritten before a consumer reads it.
    RingOverwritten,
    /// A consumer sees as much as its producer, whatever its own window.
    ConsumerForgetsWindow,
    /// A new document starts from zero instead of the initial state.
    ResetToZero,
    /// A new document goes on with the old one's state.
    ResetIgnored,
    /// The initial state gets no gradient.
    InitialDetached,
    /// The state after a call has no history.
    StateDetached,
    /// The mixer is not told which tokens are padding.
    PaddingLeaks,
    /// A recurrent state is kept in the type of the activations.
    StateInLowPrecision,
    /// A recurrent state is rounded to bf16 and back.
    StateRounded,
    /// A state tensor that no plan lists.
    UnplannedState,
    /// An output of 32 bits in a bf16 model.
    OutputKind,
    /// An output sees a little of the next token.
    FutureLeak,
    /// The same, hidden from gradients.
    FutureLeakDetached,
    /// Rows see a little of each other.
    RowsMixed,
    /// Equal calls differ in the last bit.
    Unsteady,
    /// The new state is written over the old one.
    WrittenInPlace,
    /// The module remembers its last state, and prefers it to the one it is given.
    HiddenMemory,
    /// A factor is computed from a parameter when the module is built, and never again.
    ReadAtBuild,
    /// A parameter that nothing reads.
    IdleParameter,
    /// An input slice that nothing reads.
    IdleInput,
    /// The convolution forgets its inputs over an empty call.
    EmptyCallForgets,
    /// Meta tokens leave nothing behind.
    MetaDropped,
    /// Half of the gradient of the inputs is lost.
    HalfDetached,
    /// A stub that lets a little of its input through.
    NotNeutral,
}

register!(sequence_mixer "faulty" => Faulty);

impl Faulty {
    fn window(&self) -> Option<i64> {
        self.of.config.get("window").and_then(serde_json::Value::as_i64)
    }
}

impl MixerObject for Faulty {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        self.of.make().unwrap().plan(plan)?;
        match self.fault {
            Fault::IdleParameter => drop(plan.parameter("idle", &[3], Init::ONES)),
            Fault::IdleInput => plan.input("idle", 3),
            _ => {}
        }
        Ok(())
    }

    fn build(&self, parts: Parts) -> Box<dyn MixerModule> {
        let mut of = self.of.clone();
        let consumes = matches!(parts.plan.context.kv, KvRole::Consumer { .. });
        let wider = match self.fault {
            Fault::WindowOffByOne => 1,
            Fault::ConsumerForgetsWindow if consumes => 100,
            _ => 0,
        };
        if let (true, Some(window)) = (wider > 0, self.window()) {
            of.config.insert("window".to_owned(), (window + wider).into());
        }
        let parameter = parts.parameters.values().next();
        let factor =
            parameter.map(|p| 1.0 + p.detach().to_kind(Kind::Double).mean(Kind::Double).double_value(&[]));
        let inner = of.make().unwrap().build(parts);
        let window = self.window().unwrap_or(i64::MAX);
        Box::new(FaultyModule { fault: self.fault, window, inner, factor, memory: RefCell::default() })
    }
}

#[derive(Debug)]
struct FaultyModule {
    fault: Fault,
    /// The planned window.
    window: i64,
    inner: Box<dyn MixerModule>,
    factor: Option<f64>,
    memory: RefCell<Option<Tensor>>,
}

impl MixerModule for FaultyModule {
    fn forward(&self, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let (span, initial) = (self.span(call.span)?, self.initial(call.initial)?);
        let altered = Call { span: &span, initial: &initial, ..*call };
        let output = self.inner.forward(&self.inputs(x)?, &self.before(state)?, &altered)?;
        Ok(MixerOutput {
            y: self.output(&output.y, x)?,
            state: self.after(state, output.state, &span)?,
            view: output.view.map(|view| self.view(&view)).transpose()?,
        })
    }

    fn parts(&self) -> &Parts {
        self.inner.parts()
    }
}

impl FaultyModule {
    fn inputs(&self, x: &Inputs) -> Result<Inputs> {
        let slices = self.parts().plan.inputs.iter().filter(|slice| slice.name != "idle");
        let slices = slices.map(|slice| {
            let x = x.get(&slice.name)?;
            let x = match self.fault {
                Fault::HalfDetached => x * 0.5 + x.detach() * 0.5,
                _ => x.shallow_clone(),
            };
            Ok((slice.name.clone(), x))
        });
        Ok(Inputs::new(slices.collect::<Result<BTreeMap<_, _>>>()?))
    }

    fn span(&self, of: &Span) -> Result<Span> {
        let mut span = Span::prefix(of.time, Device::Cpu, of.training)?;
        let copy = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        (span.batch, span.phase, span.uniform) = (of.batch, of.phase, of.uniform);
        span.positions = of.positions.shallow_clone();
        (span.lengths, span.valid) = (copy(&of.lengths), copy(&of.valid));
        (span.resets, span.document) = (copy(&of.resets), copy(&of.document));
        match self.fault {
            Fault::PositionsNotOffset if of.phase == Phase::Text => {
                span.positions = Tensor::arange(of.time, (Kind::Int64, Device::Cpu)).unsqueeze(0);
            }
            Fault::PaddingLeaks => (span.lengths, span.valid) = (None, None),
            Fault::ResetIgnored => (span.resets, span.document) = (None, None),
            _ => {}
        }
        Ok(span)
    }

    fn initial(&self, initial: &State) -> Result<State> {
        match self.fault {
            Fault::ResetToZero => initial.map(|tensor| Ok(tensor.zeros_like())),
            Fault::InitialDetached => initial.map(|tensor| Ok(tensor.detach())),
            _ => Ok(initial.share()),
        }
    }

    fn before(&self, state: &State) -> Result<State> {
        let remembered = self.memory.borrow();
        match (self.fault, remembered.as_ref()) {
            (Fault::HiddenMemory, Some(ssm)) if ssm.size() == state.get("ssm")?.size() => {
                Ok(state.with("ssm", ssm.to_kind(state.get("ssm")?.kind())))
            }
            _ => Ok(state.share()),
        }
    }

    fn output(&self, y: &Tensor, x: &Inputs) -> Result<Tensor> {
        let next = |y: &Tensor| {
            let time = y.size()[1];
            if time < 2 {
                return y.zeros_like();
            }
            Tensor::cat(&[y.narrow(1, 1, time - 1), y.narrow(1, 0, 1).zeros_like()], 1)
        };
        Ok(match self.fault {
            Fault::FutureLeak => y + next(y) * 1e-3,
            Fault::FutureLeakDetached => y + next(&y.detach()) * 1e-3,
            Fault::RowsMixed => y + y.mean_dim([0].as_slice(), true, y.kind()) * 1e-3,
            Fault::Unsteady if y.kind() == Kind::Double => y * (y.detach().randn_like() * 3e-16 + 1.0),
            Fault::OutputKind if y.kind() == Kind::BFloat16 => y.to_kind(Kind::Float),
            Fault::ReadAtBuild => y * self.factor.unwrap_or(1.0),
            Fault::NotNeutral => y + x.get("x")? * 1e-3,
            _ => y.shallow_clone(),
        })
    }

    fn after(&self, before: &State, after: State, span: &Span) -> Result<State> {
        let trimmed = |keep: i64| -> Result<State> {
            let mut trimmed = after.share();
            for (name, dimension) in [("k", 2), ("v", 2), ("position", 1)] {
                let Some(tensor) = after.find(name) else { continue };
                let (length, keep) = (tensor.size()[dimension], keep.min(tensor.size()[dimension]));
                trimmed = trimmed.with(name, tensor.narrow(dimension as i64, length - keep, keep));
            }
            Ok(trimmed)
        };
        let changed = |name: &str, change: &dyn Fn(&Tensor) -> Tensor| -> Result<State> {
            Ok(after.with(name, change(after.get(name)?)))
        };
        match self.fault {
            Fault::WindowOffByOne => trimmed(self.window),
            Fault::RingTooShort => trimmed(self.window - 2),
            Fault::StateDetached => after.map(|tensor| Ok(tensor.detach())),
            Fault::StateInLowPrecision => {
                let kind = after.get("conv_tail")?.kind();
                changed("ssm", &|ssm| ssm.to_kind(kind))
            }
            Fault::StateRounded => changed("ssm", &|ssm| match ssm.kind() {
                Kind::Float => ssm.to_kind(Kind::BFloat16).to_kind(Kind::Float),
                _ => ssm.shallow_clone(),
            }),
            Fault::UnplannedState => Ok(after.with("extra", Tensor::zeros([1], (Kind::Float, Device::Cpu)))),
            Fault::WrittenInPlace => {
                let (old, new) = (before.get("ssm")?, after.get("ssm")?);
                if !is_grad_enabled() && old.size() == new.size() {
                    let _guard = NoGrad::new();
                    old.shallow_clone().copy_(new);
                }
                Ok(after)
            }
            Fault::HiddenMemory => {
                *self.memory.borrow_mut() = Some(after.get("ssm")?.detach());
                Ok(after)
            }
            Fault::EmptyCallForgets if span.time == 0 => changed("conv_tail", &Tensor::zeros_like),
            Fault::MetaDropped if span.phase == Phase::Prefix => Ok(before.share()),
            _ => Ok(after),
        }
    }

    /// What a consumer is shown.
    fn view(&self, view: &State) -> Result<State> {
        let (keys, window) = (view.get("k")?.size()[2], self.window);
        let meta = self.parts().plan.context.meta_tokens.min(keys);
        let text = keys - meta;
        if !matches!(self.fault, Fault::RingOverwritten) || text <= window {
            return Ok(view.share());
        }
        // The place of a token holds the newest token that is a multiple of the window later.
        let newest = |i: i64| i + (text - 1 - i) / window * window;
        let index: Vec<i64> = (0..meta).chain((0..text).map(|i| meta + newest(i))).collect();
        let index = Tensor::from_slice(&index);
        Ok(view
            .with("k", view.get("k")?.index_select(2, &index))
            .with("v", view.get("v")?.index_select(2, &index)))
    }
}
