// libtorch's own profiler (Kineto), which knows the operators of all threads and, through CUPTI, the kernels of a GPU.
#include "bridge.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>

using torch::autograd::profiler::ActivityType;

extern "C" {

int hb_profiler_start(int with_cuda) {
  return hymba::guarded([&] {
    const torch::profiler::impl::ProfilerConfig config(
        torch::profiler::impl::ProfilerState::KINETO, /*report_input_shapes=*/true);
    std::set<ActivityType> activities{ActivityType::CPU};
    if (with_cuda) {
      activities.insert(ActivityType::CUDA);
    }
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(
        config, activities, {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE});
  });
}

/// Tells the profiler of something that no operator is; ended by `hb_profiler_leave`.
int hb_profiler_enter(const char* name, void** span) {
  return hymba::guarded([&] {
    auto* entered = new at::RecordFunction(at::RecordScope::FUNCTION);
    *span = entered;
    if (entered->isActive()) {
      entered->before(std::string(name));
    }
  });
}

void hb_profiler_leave(void* span) {
  hymba::guarded([&] { delete static_cast<at::RecordFunction*>(span); });
}

/// Ends the profile and writes it as a Chrome trace.
int hb_profiler_stop(const char* path) {
  return hymba::guarded([&] {
    const auto result = torch::autograd::profiler::disableProfiler();
    TORCH_CHECK(result, "no profile is being taken");
    result->save(path);
  });
}
}
