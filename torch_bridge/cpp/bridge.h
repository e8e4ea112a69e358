// The C interface between the Rust crate and libtorch.
//
// Rules that every function here keeps:
//  * no C++ exception leaves an `extern "C"` function: fallible ones return 0 or -1 and leave a message in
//    `hb_last_error` of the calling thread;
//  * no Rust panic enters C++: the callbacks given to us catch their panics and return -1;
//  * an `at::Tensor*` that is returned or handed to a sink belongs to Rust; one that is passed in is borrowed.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

/// A growable list of tensors, the one way in which many tensors cross. Undefined tensors are allowed in it.
struct hb_tensors {
  std::vector<at::Tensor> items;
};

namespace hymba {

inline std::string& last_error() {
  static thread_local std::string message;
  return message;
}

/// Runs `body`; an exception becomes -1 and a message without the C++ backtrace.
template <class Body>
int guarded(Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return 0;
  } catch (const c10::Error& error) {
    last_error() = error.what_without_backtrace();
  } catch (const std::exception& error) {
    last_error() = error.what();
  } catch (...) {
    last_error() = "an unknown C++ exception";
  }
  return -1;
}

/// The device numbers of torch-sys: an index is that CUDA device, -1 the CPU, -2 MPS, -3 Vulkan.
inline c10::Device device_of(int32_t code) {
  switch (code) {
    case -1:
      return c10::Device(c10::kCPU);
    case -2:
      return c10::Device(c10::kMPS);
    case -3:
      return c10::Device(c10::kVulkan);
    default:
      TORCH_CHECK(code >= 0 && code < 128, "no device has the number ", code);
      return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(code));
  }
}

} // namespace hymba
