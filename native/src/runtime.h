// What the ops share: ONNX Runtime's API with errors as exceptions, tensors, memory, and its thread
// pool. Included by custom_ops.cpp alone, hence all in one unnamed namespace.

#ifndef EDGEBENCH_RUNTIME_H
#define EDGEBENCH_RUNTIME_H

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "edgebench/int3.h"
#include "edgebench/ort_abi.h"

namespace edgebench {
namespace {

// Sums of K codes and int8 values must fit 32 bits: 7 * 127 * 2^21 < 2^31.
constexpr int64_t kMostColumns = int64_t{1} << 21;

const Kernel* active = nullptr;  // set once, by RegisterCustomOps, before any kernel is made

// A refusal on its way to becoming a status.
struct Refusal {
  int code;
  std::string message;
};

[[noreturn]] void refuse(const std::string& message) {
  throw Refusal{ort::kInvalidArgument, message};
}

// A status that an entry gave back, on its way to the runtime again.
struct Failed {
  OrtStatus* status;
};

template <class E, class... Args>
void call(const OrtApi* api, Args... args) {
  if (OrtStatus* status = ort::entry<E>(api)(args...)) throw Failed{status};
}

template <class Body>
OrtStatus* guarded(const OrtApi* api, Body body) {
  const auto create = ort::entry<ort::CreateStatus>(api);
  try {
    body();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const Refusal& refusal) {
    return create(refusal.code, refusal.message.c_str());
  } catch (const std::bad_alloc&) {
    return create(ort::kFail, "edgebench: out of memory");
  }
}

// Memory for a vector without std::allocator, whose check of lengths is a symbol of GCC 11's
// libstdc++: older systems lack it.
template <class T>
struct Plain {
  using value_type = T;
  Plain() = default;
  template <class U>
  Plain(const Plain<U>&) {}
  T* allocate(size_t count) {
    if (count > SIZE_MAX / sizeof(T)) throw std::bad_alloc();
    void* data = std::malloc(count * sizeof(T));
    if (data == nullptr) throw std::bad_alloc();
    return static_cast<T*>(data);
  }
  void deallocate(T* data, size_t) { std::free(data); }
  friend bool operator==(const Plain&, const Plain&) { return true; }
  friend bool operator!=(const Plain&, const Plain&) { return false; }
};

using Dims = std::vector<int64_t, Plain<int64_t>>;

std::string text(const Dims& dims) {
  std::string s = "[";
  for (size_t i = 0; i < dims.size(); ++i) s += (i ? ", " : "") + std::to_string(dims[i]);
  return s + "]";
}

struct Tensor {
  const void* data;
  Dims dims;
  int type;

  size_t count() const {
    size_t n = 1;
    for (int64_t dim : dims) n *= static_cast<size_t>(dim);
    return n;
  }
};

Tensor tensor(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  call<ort::GetTensorTypeAndShape>(api, value, &info);
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> held(
      info, ort::entry<ort::ReleaseTensorTypeAndShapeInfo>(api));
  Tensor t;
  size_t rank = 0;
  call<ort::GetDimensionsCount>(api, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &rank);
  t.dims.resize(rank);
  call<ort::GetDimensions>(api, static_cast<const OrtTensorTypeAndShapeInfo*>(info), t.dims.data(),
                           rank);
  call<ort::GetTensorElementType>(api, static_cast<const OrtTensorTypeAndShapeInfo*>(info),
                                  &t.type);
  void* data = nullptr;
  call<ort::GetTensorMutableData>(api, const_cast<OrtValue*>(value), &data);
  t.data = data;
  return t;
}

Tensor input(const OrtApi* api, const OrtKernelContext* context, size_t index) {
  const OrtValue* value = nullptr;
  call<ort::KernelContextGetInput>(api, context, index, &value);
  if (value == nullptr) refuse("edgebench: input " + std::to_string(index) + " is missing");
  return tensor(api, value);
}

// Memory at a cache line, zeroed: fresh pages come so from the system.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept { std::swap(data_, other.data_); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() { std::free(data_); }
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

// Tells the system that the pages wholly inside these bytes are not needed soon. Their content
// stays: pages of a file are read again when they are, and memory without a file is left alone
// where there is no swap.
void let_go(const void* data, size_t bytes) {
#ifdef MADV_PAGEOUT
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  // A hint: kernels before 5.4 know it not and answer EINVAL, and nothing is lost.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_PAGEOUT);
#else
  (void)data;
  (void)bytes;
#endif
}

// A range of work cut for the runtime's threads. The runtime's own loop is C and knows no
// exception, so the body must not throw.
template <class Body>
void parallel(const OrtApi* api, const OrtKernelContext* context, size_t total, size_t pieces,
              Body body) {
  if (pieces <= 1) {
    if (total > 0) body(size_t{0}, total);
    return;
  }
  struct Work {
    Body* body;
    size_t total, pieces;
  } work{&body, total, pieces};
  call<ort::KernelContextParallelFor>(
      api, context,
      static_cast<void (*)(void*, size_t)>([](void* data, size_t piece) {
        const Work& w = *static_cast<Work*>(data);
        (*w.body)(w.total * piece / w.pieces, w.total * (piece + 1) / w.pieces);
      }),
      pieces, size_t{0}, static_cast<void*>(&work));
}

// Pieces big enough (in multiply-adds, about 10 microseconds) to be worth a thread's waking, and
// enough of them that a slow core gets fewer.
size_t pieces(size_t units, size_t work) {
  constexpr size_t kPiece = size_t{1} << 18, kMost = 64;
  size_t count = work / kPiece;
  if (count > kMost) count = kMost;
  return count < units ? count : units;
}

}  // namespace
}  // namespace edgebench

#endif
