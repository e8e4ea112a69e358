// CUDA graphs over libtorch's allocator and random generators. A library of its own, in the binary as bytes and opened
// after `libtorch_cuda.so`, from which its symbols come.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>
#include <mutex>
#include <string>

namespace {

thread_local std::string last_error;

template <class F>
int guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception that is no std::exception";
  }
  return -1;
}

/// After a recording that failed: libtorch leaves the default generator as if it went on, and it would refuse to draw. It
/// goes on with a state of its own from where it was; graphs that were recorded before keep the old one.
int failed() {
  const auto reason = last_error;
  guarded([&] {
    const c10::Device device(c10::kCUDA, c10::cuda::current_device());
    auto generator = at::globalContext().defaultGenerator(device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.graphsafe_set_state(generator.clone());
  });
  last_error = reason;
  return -1;
}

struct Graph {
  at::cuda::CUDAGraph graph;
};

} // namespace

extern "C" {

const char* hb_graph_error() {
  return last_error.c_str();
}

/// Makes the device this thread's, and a stream of libtorch's pool its current one there, after all work that was given to
/// the device; keeps a stream that is not the default one.
int hb_graph_side_stream(int device) {
  return guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    c10::cuda::set_device(index);
    if (c10::cuda::getCurrentCUDAStream(index) != c10::cuda::getDefaultCUDAStream(index)) {
      return;
    }
    c10::cuda::device_synchronize();
    c10::cuda::setCurrentCUDAStream(
        c10::cuda::getStreamFromPool(/*isHighPriority=*/false, index));
  });
}

/// A name under which graphs that are never replayed at the same time share their memory.
int hb_graph_pool(uint64_t* first, uint64_t* second) {
  return guarded([&] {
    const auto pool = at::cuda::graph_pool_handle();
    *first = pool.first;
    *second = pool.second;
  });
}

Graph* hb_graph_new() {
  Graph* graph = nullptr;
  guarded([&] { graph = new Graph; });
  return graph;
}

/// Records this thread's stream, and whatever the autograd threads give to it.
int hb_graph_begin(Graph* graph, uint64_t first, uint64_t second) {
  const auto code =
      guarded([&] { graph->graph.capture_begin({first, second}, cudaStreamCaptureModeThreadLocal); });
  return code == 0 ? 0 : failed();
}

int hb_graph_end(Graph* graph) {
  const auto code = guarded([&] { graph->graph.capture_end(); });
  return code == 0 ? 0 : failed();
}

int hb_graph_replay(Graph* graph) {
  return guarded([&] { graph->graph.replay(); });
}

void hb_graph_free(Graph* graph) {
  guarded([&] { delete graph; });
}
}
