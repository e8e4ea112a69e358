// Autograd functions whose forward and backward are written in Rust, and gradients of graphs.
#include "bridge.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <stdexcept>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

extern "C" {

/// What a forward call reads and fills.
struct hb_forward_frame {
  const hb_tensors* inputs;
  const uint8_t* needs_grad; // one byte per input
  hb_tensors* outputs;
  hb_tensors* saved;
  hb_tensors* non_differentiable; // those of `outputs` that carry no gradient
};

/// What a backward call reads and fills.
struct hb_backward_frame {
  const hb_tensors* saved;
  const hb_tensors* grads; // undefined where nothing flowed back
  hb_tensors* input_grads; // Rust pushes exactly `inputs`, undefined for none
  size_t inputs;
};

// Each returns 0, or -1 after `hb_set_error`.
using hb_forward_fn = int (*)(void* state, const hb_forward_frame*);
using hb_backward_fn = int (*)(void* state, const hb_backward_frame*);
using hb_drop_fn = void (*)(void* state);
}

namespace {

/// Owns the Rust half of a function for as long as its node in the graph lives.
struct RustState final : torch::CustomClassHolder {
  RustState(void* state, hb_backward_fn backward, hb_drop_fn drop, std::string name, size_t inputs)
      : state(state), backward(backward), drop(drop), name(std::move(name)), inputs(inputs) {}
  ~RustState() override {
    drop(state);
  }
  void* state;
  hb_backward_fn backward;
  hb_drop_fn drop;
  std::string name;
  size_t inputs;
};

struct ForwardCall {
  c10::intrusive_ptr<RustState> rust;
  hb_forward_fn forward;
  const std::vector<uint8_t>* needs_grad;
};

[[noreturn]] void raise(const RustState& rust, const char* pass) {
  throw std::runtime_error(rust.name + ": " + pass + ": " + hymba::last_error());
}

/// Tells a profiler, if one listens, that a function of ours runs on these tensors.
void announce(at::RecordFunction& listener, const std::string& name, at::ArrayRef<at::Tensor> tensors) {
  if (listener.isActive()) {
    const std::vector<c10::IValue> seen(tensors.begin(), tensors.end());
    listener.before(name, &seen);
  }
}

struct RustFunction : torch::autograd::Function<RustFunction> {
  // `apply` must see an `at::TensorList`: a `std::vector` would match the generic template for non-tensors, and the
  // outputs would silently not be differentiable.
  static variable_list forward(AutogradContext* context, const ForwardCall* call, at::TensorList inputs) {
    const auto& rust = *call->rust;
    at::RecordFunction listener(at::RecordScope::FUNCTION);
    const auto name = "hymba::" + rust.name;
    announce(listener, name, inputs);
    const hb_tensors given{inputs.vec()};
    hb_tensors outputs, saved, non_differentiable;
    const hb_forward_frame frame{&given, call->needs_grad->data(), &outputs, &saved, &non_differentiable};
    if (call->forward(rust.state, &frame) != 0) {
      raise(rust, "forward");
    }
    context->save_for_backward(std::move(saved.items));
    context->mark_non_differentiable(non_differentiable.items);
    context->set_materialize_grads(false);
    context->saved_data["rust"] = c10::IValue::make_capsule(call->rust);
    return std::move(outputs.items);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    // First, because it raises torch's own error when the graph has been freed.
    const hb_tensors saved{context->get_saved_variables()};
    const auto capsule = context->saved_data["rust"].toCapsule();
    const auto& rust = static_cast<const RustState&>(*capsule);
    at::RecordFunction listener(at::RecordScope::FUNCTION);
    const auto name = "hymba::" + rust.name + "_backward";
    announce(listener, name, grads);
    const hb_tensors given{std::move(grads)};
    hb_tensors input_grads;
    // One undefined gradient for the argument of `forward` that is no tensor.
    input_grads.items.reserve(rust.inputs + 1);
    input_grads.items.emplace_back();
    const hb_backward_frame frame{&saved, &given, &input_grads, rust.inputs};
    if (rust.backward(rust.state, &frame) != 0) {
      raise(rust, "backward");
    }
    return std::move(input_grads.items);
  }
};

variable_list borrow(const hb_tensors* list) {
  return list ? list->items : variable_list{};
}

} // namespace

extern "C" {

/// Takes `state` over in every case, errors included.
int hb_function_apply(
    const char* name,
    void* state,
    hb_forward_fn forward,
    hb_backward_fn backward,
    hb_drop_fn drop,
    const hb_tensors* inputs,
    hb_tensors* outputs) {
  return hymba::guarded([&] {
    auto rust = c10::make_intrusive<RustState>(state, backward, drop, name, inputs->items.size());
    std::vector<uint8_t> needs_grad;
    needs_grad.reserve(inputs->items.size());
    for (const auto& input : inputs->items) {
      needs_grad.push_back(at::GradMode::is_enabled() && input.defined() && input.requires_grad());
    }
    const ForwardCall call{std::move(rust), forward, &needs_grad};
    outputs->items = RustFunction::apply(&call, at::TensorList(inputs->items));
  });
}

int hb_grad(
    const hb_tensors* outputs,
    const hb_tensors* inputs,
    const hb_tensors* grad_outputs,
    int retain_graph,
    int create_graph,
    int allow_unused,
    hb_tensors* grads) {
  return hymba::guarded([&] {
    grads->items = torch::autograd::grad(
        borrow(outputs), borrow(inputs), borrow(grad_outputs), retain_graph != 0, create_graph != 0,
        allow_unused != 0);
  });
}

int hb_backward(const hb_tensors* tensors, const hb_tensors* grad_tensors, int retain_graph) {
  return hymba::guarded(
      [&] { torch::autograd::backward(borrow(tensors), borrow(grad_tensors), retain_graph != 0, false); });
}
}
