// The library's state: errors, tensor lists, modes, random generators, memory, devices and settings.
#include "bridge.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Generator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/Stream.h>
#include <torch/headeronly/version.h>

#include <mutex>

using hymba::device_of;
using hymba::guarded;

namespace {

at::Generator default_generator(int32_t device) {
  return at::globalContext().defaultGenerator(device_of(device));
}

/// The device as this machine's accelerator, or an error that says what is the matter.
c10::Device accelerator(int32_t code) {
  const auto device = device_of(code);
  TORCH_CHECK(!device.is_cpu(), "the CPU is not an accelerator");
  const auto present = at::accelerator::getAccelerator(false);
  TORCH_CHECK(present.has_value() && *present == device.type(), "no device ", device, " is available");
  at::globalContext().lazyInitDevice(device.type());
  const auto count = at::accelerator::deviceCount();
  TORCH_CHECK(!device.has_index() || device.index() < count, "no device ", device, ": there are ", count);
  return device;
}

c10::DeviceIndex index_of(const c10::Device& device) {
  return device.has_index() ? device.index() : c10::DeviceIndex{0};
}

} // namespace

extern "C" {

// --- errors -------------------------------------------------------------------------------------------------------

const char* hb_last_error() {
  return hymba::last_error().c_str();
}

void hb_set_error(const char* text, size_t length) {
  hymba::last_error().assign(text, length);
}

// --- tensors ------------------------------------------------------------------------------------------------------

hb_tensors* hb_tensors_new(size_t capacity) {
  auto* list = new hb_tensors;
  list->items.reserve(capacity);
  return list;
}

void hb_tensors_free(hb_tensors* list) {
  delete list;
}

size_t hb_tensors_length(const hb_tensors* list) {
  return list->items.size();
}

/// Null pushes an undefined tensor.
void hb_tensors_push(hb_tensors* list, const at::Tensor* tensor) {
  if (tensor) {
    list->items.push_back(*tensor);
  } else {
    list->items.emplace_back();
  }
}

/// A new handle on the tensor, null for an undefined one.
at::Tensor* hb_tensors_get(const hb_tensors* list, size_t index) {
  const auto& tensor = list->items[index];
  return tensor.defined() ? new at::Tensor(tensor) : nullptr;
}

/// What Rust must know before it touches the elements of a tensor.
struct hb_tensor_facts {
  int32_t defined;
  int32_t plain; // dense, strided and without a lazy negation or conjugation
  int32_t contiguous;
  int32_t on_cpu;
  int32_t scalar_type;
  int64_t elements;
};

int hb_tensor_inspect(const at::Tensor* tensor, hb_tensor_facts* facts) {
  return guarded([&] {
    *facts = hb_tensor_facts{};
    if (!tensor->defined()) {
      return;
    }
    facts->defined = 1;
    facts->plain = tensor->layout() == c10::kStrided && !tensor->is_neg() && !tensor->is_conj();
    facts->contiguous = facts->plain && tensor->is_contiguous();
    facts->on_cpu = tensor->device().is_cpu();
    facts->scalar_type = static_cast<int32_t>(tensor->scalar_type());
    facts->elements = tensor->numel();
  });
}

int hb_tensor_data(const at::Tensor* tensor, int writable, void** data) {
  return guarded([&] {
    *data = writable ? tensor->mutable_data_ptr() : const_cast<void*>(tensor->const_data_ptr());
  });
}

/// Tells autograd that the elements were written, so that a stale saved tensor is found.
int hb_tensor_bump_version(const at::Tensor* tensor) {
  return guarded([&] { tensor->unsafeGetTensorImpl()->bump_version(); });
}

// --- modes --------------------------------------------------------------------------------------------------------

int hb_grad_mode() {
  return c10::GradMode::is_enabled();
}

void hb_set_grad_mode(int enabled) {
  c10::GradMode::set_enabled(enabled != 0);
}

c10::InferenceMode* hb_inference_enter() {
  return new c10::InferenceMode(true);
}

void hb_inference_leave(c10::InferenceMode* mode) {
  delete mode;
}

int hb_autocast_get(int32_t device, int32_t* enabled, int32_t* scalar_type) {
  return guarded([&] {
    const auto type = device_of(device).type();
    *enabled = at::autocast::is_autocast_enabled(type);
    *scalar_type = static_cast<int32_t>(at::autocast::get_autocast_dtype(type));
  });
}

int hb_autocast_set(int32_t device, int enabled, int32_t scalar_type) {
  return guarded([&] {
    const auto type = device_of(device).type();
    at::autocast::set_autocast_dtype(type, static_cast<c10::ScalarType>(scalar_type));
    at::autocast::set_autocast_enabled(type, enabled != 0);
  });
}

void hb_autocast_enter() {
  at::autocast::increment_nesting();
}

/// The cache of cast weights belongs to the outermost region.
void hb_autocast_leave() {
  if (at::autocast::decrement_nesting() == 0) {
    at::autocast::clear_cache();
  }
}

// --- random numbers -----------------------------------------------------------------------------------------------

int hb_rng_get_state(int32_t device, at::Tensor** state) {
  return guarded([&] {
    auto generator = default_generator(device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    *state = new at::Tensor(generator.get_state());
  });
}

int hb_rng_set_state(int32_t device, const at::Tensor* state) {
  return guarded([&] {
    auto generator = default_generator(device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

int hb_rng_seed(int32_t device, uint64_t seed) {
  return guarded([&] {
    auto generator = default_generator(device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  });
}

int hb_generator_new(int32_t device, uint64_t seed, c10::IValue** out) {
  return guarded([&] {
    const auto where = device_of(device);
    auto generator = where.is_cpu()
        ? at::detail::createCPUGenerator(seed)
        : at::globalContext().getAcceleratorHooksInterface(where.type()).getNewGenerator(index_of(accelerator(device)));
    generator.set_current_seed(seed);
    *out = new c10::IValue(std::move(generator));
  });
}

int hb_generator_get_state(const c10::IValue* value, at::Tensor** state) {
  return guarded([&] {
    auto generator = value->toGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    *state = new at::Tensor(generator.get_state());
  });
}

int hb_generator_set_state(const c10::IValue* value, const at::Tensor* state) {
  return guarded([&] {
    auto generator = value->toGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

// --- accelerators -------------------------------------------------------------------------------------------------

struct hb_memory {
  int64_t allocated;
  int64_t allocated_peak;
  int64_t reserved;
  int64_t reserved_peak;
};

int hb_memory_stats(int32_t code, hb_memory* out) {
  return guarded([&] {
    const auto device = accelerator(code);
    const auto stats = at::getDeviceAllocator(device.type())->getDeviceStats(index_of(device));
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *out = hb_memory{
        stats.allocated_bytes[all].current, stats.allocated_bytes[all].peak, stats.reserved_bytes[all].current,
        stats.reserved_bytes[all].peak};
  });
}

int hb_memory_reset_peak(int32_t code) {
  return guarded([&] {
    const auto device = accelerator(code);
    at::getDeviceAllocator(device.type())->resetPeakStats(index_of(device));
  });
}

int hb_memory_capacity(int32_t code, uint64_t* free, uint64_t* total) {
  return guarded([&] {
    const auto device = accelerator(code);
    const auto info = at::getDeviceAllocator(device.type())->getMemoryInfo(index_of(device));
    *free = info.first;
    *total = info.second;
  });
}

int hb_memory_empty_cache(int32_t code) {
  return guarded([&] { at::getDeviceAllocator(accelerator(code).type())->emptyCache(); });
}

int hb_synchronize(int32_t code) {
  return guarded([&] { at::accelerator::synchronizeDevice(index_of(accelerator(code))); });
}

int hb_current_stream(int32_t code, void** native, int64_t* id) {
  return guarded([&] {
    const auto stream = at::accelerator::getCurrentStream(index_of(accelerator(code)));
    *native = stream.native_handle();
    *id = static_cast<int64_t>(stream.id());
  });
}

// --- settings -----------------------------------------------------------------------------------------------------

int hb_threads(int32_t* intra, int32_t* inter) {
  return guarded([&] {
    *intra = at::get_num_threads();
    *inter = static_cast<int32_t>(at::get_num_interop_threads());
  });
}

int hb_set_intra_threads(int32_t count) {
  return guarded([&] { at::set_num_threads(count); });
}

int hb_set_inter_threads(int32_t count) {
  return guarded([&] { at::set_num_interop_threads(count); });
}

int hb_set_deterministic(int enabled, int warn_only) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setDeterministicAlgorithms(enabled != 0, warn_only != 0);
    // By default libtorch then fills every new tensor with NaN first, in a kernel of its own: a check for operations that
    // read what nobody wrote, which costs a fifth of the launches of a training step.
    context.setDeterministicFillUninitializedMemory(false);
  });
}

int hb_deterministic() {
  const auto& context = at::globalContext();
  return context.deterministicAlgorithms() ? (context.deterministicAlgorithmsWarnOnly() ? 2 : 1) : 0;
}

int hb_set_backend_determinism(int mkldnn, int cudnn, int cudnn_benchmark) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setDeterministicMkldnn(mkldnn != 0);
    context.setDeterministicCuDNN(cudnn != 0);
    context.setBenchmarkCuDNN(cudnn_benchmark != 0);
  });
}

int hb_set_matmul_precision(const char* name) {
  return guarded([&] { at::globalContext().setFloat32MatmulPrecision(name); });
}

int hb_matmul_precision(int32_t* level) {
  return guarded([&] { *level = static_cast<int32_t>(at::globalContext().float32MatmulPrecision()); });
}

int hb_set_cudnn_tf32(int allowed) {
  return guarded([&] { at::globalContext().setAllowTF32CuDNN(allowed != 0); });
}

struct hb_attention_backends {
  int32_t flash;
  int32_t memory_efficient;
  int32_t math;
  int32_t cudnn;
};

void hb_attention(hb_attention_backends* out) {
  const auto& context = at::globalContext();
  *out = hb_attention_backends{
      context.userEnabledFlashSDP(), context.userEnabledMemEfficientSDP(), context.userEnabledMathSDP(),
      context.userEnabledCuDNNSDP()};
}

int hb_set_attention(const hb_attention_backends* backends) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setSDPUseFlash(backends->flash != 0);
    context.setSDPUseMemEfficient(backends->memory_efficient != 0);
    context.setSDPUseMath(backends->math != 0);
    context.setSDPUseCuDNN(backends->cudnn != 0);
  });
}

const char* hb_cpu_capability() {
  static const std::string name = at::get_cpu_capability();
  return name.c_str();
}

const char* hb_libtorch_version() {
  return TORCH_VERSION;
}
}
