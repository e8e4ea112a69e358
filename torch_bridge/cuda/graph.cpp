// CUDA graphs over libtorch's allocator and random generators. A library of its own, in the binary as bytes and opened
// after `libtorch_cuda.so`, from which its symbols come.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>
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

struct Graph {
  at::cuda::CUDAGraph graph;
};

} // namespace

extern "C" {

const char* hb_graph_error() {
  return last_error.c_str();
}

/// Makes a stream of libtorch's pool the current one of this thread, after all work that was given to the device.
int hb_graph_side_stream(int device) {
  return guarded([&] {
    c10::cuda::device_synchronize();
    c10::cuda::setCurrentCUDAStream(
        c10::cuda::getStreamFromPool(/*isHighPriority=*/false, static_cast<c10::DeviceIndex>(device)));
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
  return guarded([&] { graph->graph.capture_begin({first, second}, cudaStreamCaptureModeThreadLocal); });
}

int hb_graph_end(Graph* graph) {
  return guarded([&] { graph->graph.capture_end(); });
}

int hb_graph_replay(Graph* graph) {
  return guarded([&] { graph->graph.replay(); });
}

void hb_graph_free(Graph* graph) {
  guarded([&] { delete graph; });
}
}
