// The ops that ONNX Runtime sees: MatMul3Bit, Gather3Bit and Gather4Bit of the domain edgebench,
// with the inputs, attributes and values of edgebench/quantize/functions.py, whose bodies they
// stand in for. The look-ups give the body's values bit for bit; the product is rounded as int3.h
// says.
//
// A file may be anybody's: every attribute and shape is checked before a byte is read, and what
// does not fit is an error status of the runtime's. No exception crosses the border.
//
// Weights that are constants are packed when the session is made. The runtime has no way to give
// back an initialiser to a custom op (only its own kernels pre-pack), so after packing the kernel
// is told that those pages are not needed soon: where the weights lie in a file of external data
// the runtime maps it, and the pages go; in a model of one file they are heap, and stay.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "edgebench/int3.h"
#include "edgebench/ort_abi.h"

namespace edgebench {
namespace {

constexpr char kDomain[] = "edgebench";

// Sums of K codes and int8 values must fit 32 bits: 7 * 127 * 2^21 < 2^31.
constexpr int64_t kMostColumns = int64_t{1} << 21;
constexpr int64_t kMostRows = int64_t{1} << 31;

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

// What the attributes say of a matrix.
struct Shape {
  int64_t n, k, block;
  const char* op;

  int64_t blocks() const { return k / block + (k % block != 0); }

  void expect(const char* what, const Tensor& t, int type, int64_t columns) const {
    if (t.type != type || t.dims != Dims{n, columns}) {
      refuse(std::string("edgebench::") + op + ": " + what + " has the shape " + text(t.dims) +
             " or a type that does not fit; with N = " + std::to_string(n) +
             ", K = " + std::to_string(k) + " and block_size = " + std::to_string(block) +
             " it must be " + text({n, columns}));
    }
  }

  Planes planes(const Tensor& low, const Tensor& high, const Tensor& scales) const {
    const int64_t bytes = k / 8 + (k % 8 != 0);
    expect("low", low, ort::kUint8, 2 * bytes);
    expect("high", high, ort::kUint8, bytes);
    expect("scales", scales, ort::kFloat16, blocks());
    return {static_cast<const uint8_t*>(low.data),
            static_cast<const uint8_t*>(high.data),
            static_cast<const uint16_t*>(scales.data),
            static_cast<size_t>(n),
            static_cast<size_t>(k),
            static_cast<size_t>(block),
            kUniformLevels};
  }
};

// The op's attributes; N is not always among them.
Shape shape(const OrtApi* api, const OrtKernelInfo* info, const char* op, bool with_n) {
  Shape s{0, 0, 0, op};
  const struct {
    const char* name;
    int64_t* value;
    int64_t most;
  } attributes[] = {
      {"N", &s.n, kMostRows}, {"K", &s.k, kMostColumns}, {"block_size", &s.block, kMostColumns}};
  for (const auto& attribute : attributes) {
    if (attribute.value == &s.n && !with_n) continue;
    call<ort::KernelInfoGetAttributeInt64>(api, info, attribute.name, attribute.value);
    if (*attribute.value < 1 || *attribute.value > attribute.most) {
      refuse(std::string("edgebench::") + op + ": " + attribute.name + " is " +
             std::to_string(*attribute.value) + ", must be 1 to " +
             std::to_string(attribute.most));
    }
  }
  return s;
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

class MatMulKernel {
 public:
  static constexpr char kName[] = "MatMul3Bit";
  static constexpr size_t kInputs = 4;
  static int input_type(size_t index) {
    static constexpr int types[kInputs] = {ort::kFloat, ort::kUint8, ort::kUint8, ort::kFloat16};
    return types[index];
  }

  MatMulKernel(const OrtApi* api, const OrtKernelInfo* info)
      : api_(api), shape_(shape(api, info, kName, true)) {
    Tensor parts[3];
    for (size_t i = 0; i < 3; ++i) {
      int constant = 0;
      const OrtValue* value = nullptr;
      call<ort::KernelInfoGetConstantInputTensor>(api, info, i + 1, &constant, &value);
      if (!constant) return;  // an input of the graph: see compute
      parts[i] = tensor(api, value);
    }
    Planes planes = shape_.planes(parts[0], parts[1], parts[2]);
    // A block that holds the whole row is one block, however long.
    if (planes.block >= planes.k) planes.block = (planes.k + kGroup - 1) / kGroup * kGroup;
    if (!packable(planes.block)) return;
    const PackedSize size = packed_size(planes.n, planes.k, planes.block);
    codes_ = Buffer<uint8_t>(size.code_bytes);
    scales_ = Buffer<uint16_t>(size.scale_count);
    std::memset(codes_.get(), 0, size.code_bytes);
    std::memset(scales_.get(), 0, size.scale_count * sizeof(uint16_t));
    packed_ = pack(planes, codes_.get(), scales_.get());
    is_packed_ = true;
    for (const Tensor& part : parts) {
      let_go(part.data, part.count() * (part.type == ort::kFloat16 ? 2 : 1));
    }
  }

  void compute(OrtKernelContext* context) const {
    const Tensor x = input(api_, context, 0);
    if (x.dims.empty() || x.dims.back() != shape_.k) {
      refuse(std::string("edgebench::MatMul3Bit: X has the shape ") + text(x.dims) +
             ", its last dimension must be K = " + std::to_string(shape_.k));
    }
    Dims dims = x.dims;
    dims.back() = shape_.n;
    OrtValue* value = nullptr;
    call<ort::KernelContextGetOutput>(api_, context, size_t{0},
                                      static_cast<const int64_t*>(dims.data()), dims.size(),
                                      &value);
    void* data = nullptr;
    call<ort::GetTensorMutableData>(api_, value, &data);
    const size_t m = x.count() / static_cast<size_t>(shape_.k);
    if (m == 0) return;
    const float* from = static_cast<const float*>(x.data);
    float* y = static_cast<float*>(data);
    if (is_packed_) {
      multiply(context, from, m, y);
    } else {
      multiply_planes(context, from, m, y);
    }
  }

 private:
  void multiply(OrtKernelContext* context, const float* x, size_t m, float* y) const {
    const Packed& w = packed_;
    const size_t columns = w.groups * kGroup;
    const Buffer<int8_t> values(m * columns);
    const Buffer<float> scales(m * w.blocks);
    const Buffer<int32_t> bias(m * w.blocks);
    // A float to round costs about as much as 16 multiply-adds.
    parallel(api_, context, m, pieces(m, 16 * m * w.k), [&](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) {
        active->quantize_row(w, x + i * w.k, values.get() + i * columns,
                             scales.get() + i * w.blocks, bias.get() + i * w.blocks);
      }
    });
    const Activations a{values.get(), scales.get(), bias.get(), m};
    parallel(api_, context, w.tiles, pieces(w.tiles, m * w.n * w.k),
             [&](size_t first, size_t last) { active->matmul(w, a, first, last, y); });
  }

  void multiply_planes(OrtKernelContext* context, const float* x, size_t m, float* y) const {
    const Planes planes = shape_.planes(input(api_, context, 1), input(api_, context, 2),
                                        input(api_, context, 3));
    const size_t count = pieces(planes.n, 16 * m * planes.n * planes.k);
    // One row of scratch a piece, made before the runtime's loop, which must not throw.
    const Buffer<float> scratch((count ? count : 1) * planes.k);
    parallel(api_, context, count ? count : 1, count, [&](size_t first, size_t last) {
      const size_t total = count ? count : 1;
      reference(planes, x, m, planes.n * first / total, planes.n * last / total, y,
                scratch.get() + first * planes.k);
    });
  }

  const OrtApi* api_;
  Shape shape_;
  Buffer<uint8_t> codes_;
  Buffer<uint16_t> scales_;
  Packed packed_{};
  bool is_packed_ = false;
};

// What the look-ups share: indices checked before they are used, and one output row an index.
class Rows {
 public:
  Rows(const OrtApi* api, OrtKernelContext* context, size_t input_index, int64_t n,
       const char* op)
      : indices_(input(api, context, input_index)), n_(n) {
    if (indices_.type != ort::kInt32 && indices_.type != ort::kInt64) {
      refuse(std::string("edgebench::") + op + ": indices must be int32 or int64");
    }
    count_ = indices_.count();
    for (size_t i = 0; i < count_; ++i) {
      if (stated(i) < -n || stated(i) >= n) {
        refuse(std::string("edgebench::") + op + ": index " + std::to_string(stated(i)) +
               " is outside the " + std::to_string(n) + " rows");
      }
    }
  }

  // Y of the indices' shape and K, with decode(row, y) for every index.
  template <class Decode>
  void write(const OrtApi* api, OrtKernelContext* context, int64_t k, Decode decode) const {
    Dims dims = indices_.dims;
    dims.push_back(k);
    OrtValue* value = nullptr;
    call<ort::KernelContextGetOutput>(api, context, size_t{0},
                                      static_cast<const int64_t*>(dims.data()), dims.size(),
                                      &value);
    void* data = nullptr;
    call<ort::GetTensorMutableData>(api, value, &data);
    float* y = static_cast<float*>(data);
    const size_t width = static_cast<size_t>(k);
    parallel(api, context, count_, pieces(count_, 16 * count_ * width),
             [&](size_t first, size_t last) {
               for (size_t i = first; i < last; ++i) {
                 const int64_t row = stated(i);
                 decode(static_cast<size_t>(row < 0 ? row + n_ : row), y + i * width);
               }
             });
  }

 private:
  int64_t stated(size_t i) const {
    return indices_.type == ort::kInt64 ? static_cast<const int64_t*>(indices_.data)[i]
                                        : static_cast<const int32_t*>(indices_.data)[i];
  }

  Tensor indices_;
  int64_t n_;
  size_t count_ = 0;
};

class Gather3Kernel {
 public:
  static constexpr char kName[] = "Gather3Bit";
  static constexpr size_t kInputs = 4;
  static int input_type(size_t index) {
    // Indices are int32 or int64: undefined lets both in, and Rows checks.
    static constexpr int types[kInputs] = {ort::kUint8, ort::kUint8, ort::kFloat16,
                                           ort::kUndefined};
    return types[index];
  }

  Gather3Kernel(const OrtApi* api, const OrtKernelInfo* info)
      : api_(api), shape_(shape(api, info, kName, true)) {}

  void compute(OrtKernelContext* context) const {
    const Planes planes = shape_.planes(input(api_, context, 0), input(api_, context, 1),
                                        input(api_, context, 2));
    const Rows rows(api_, context, 3, shape_.n, kName);
    rows.write(api_, context, shape_.k, [&](size_t row, float* y) { decode_row(planes, row, y); });
  }

 private:
  const OrtApi* api_;
  Shape shape_;
};

class Gather4Kernel {
 public:
  static constexpr char kName[] = "Gather4Bit";
  static constexpr size_t kInputs = 3;
  static int input_type(size_t index) {
    static constexpr int types[kInputs] = {ort::kUint8, ort::kFloat16, ort::kUndefined};
    return types[index];
  }

  Gather4Kernel(const OrtApi* api, const OrtKernelInfo* info)
      : api_(api), shape_(shape(api, info, kName, false)) {}

  void compute(OrtKernelContext* context) const {
    const Tensor codes = input(api_, context, 0), scales = input(api_, context, 1);
    Shape s = shape_;
    s.n = codes.dims.empty() ? 0 : codes.dims[0];
    s.expect("codes", codes, ort::kUint8, s.k / 2 + s.k % 2);
    s.expect("scales", scales, ort::kFloat16, s.blocks());
    const uint8_t* bytes = static_cast<const uint8_t*>(codes.data);
    const uint16_t* halves = static_cast<const uint16_t*>(scales.data);
    const size_t k = static_cast<size_t>(s.k), block = static_cast<size_t>(s.block),
                 blocks = static_cast<size_t>(s.blocks()), stride = k / 2 + k % 2;
    const Rows rows(api_, context, 2, s.n, kName);
    rows.write(api_, context, s.k, [&](size_t row, float* y) {
      for (size_t i = 0; i < k; ++i) {
        const int nibble = bytes[row * stride + i / 2] >> 4 * (i % 2) & 15;
        const float scale = half_to_float(halves[row * blocks + i / block]);
        y[i] = static_cast<float>((nibble ^ 8) - 8) * scale;
      }
    });
  }

 private:
  const OrtApi* api_;
  Shape shape_;
};

// The runtime's table for one of the kernels above.
template <class Kernel>
class Op : public OrtCustomOp {
 public:
  Op() : OrtCustomOp{} {
    version = ort::kApiVersion;
    GetName = [](const OrtCustomOp*) { return static_cast<const char*>(Kernel::kName); };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return Kernel::input_type(index); };
    GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::kInputs; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return ort::kFloat; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return ort::kRequired; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return ort::kRequired; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return ort::kMemDefault; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                        void** out) {
      return guarded(api, [&] { *out = new Made{api, Kernel(api, info)}; });
    };
    KernelComputeV2 = [](void* made, OrtKernelContext* context) {
      const Made& m = *static_cast<Made*>(made);
      return guarded(m.api, [&] { m.kernel.compute(context); });
    };
    KernelDestroy = [](void* made) { delete static_cast<Made*>(made); };
  }

 private:
  struct Made {
    const OrtApi* api;
    Kernel kernel;
  };
};

// The domain outlives every session that uses it, and so stays for the process.
OrtCustomOpDomain* domain(const OrtApi* api) {
  static const Op<MatMulKernel> matmul;
  static const Op<Gather3Kernel> gather3;
  static const Op<Gather4Kernel> gather4;
  static OrtCustomOpDomain* const made = [api] {
    OrtCustomOpDomain* out = nullptr;
    call<ort::CreateCustomOpDomain>(api, static_cast<const char*>(kDomain), &out);
    call<ort::CustomOpDomainAdd>(api, out, static_cast<const OrtCustomOp*>(&matmul));
    call<ort::CustomOpDomainAdd>(api, out, static_cast<const OrtCustomOp*>(&gather3));
    call<ort::CustomOpDomainAdd>(api, out, static_cast<const OrtCustomOp*>(&gather4));
    return out;
  }();
  return made;
}

// The kernel that EDGEBENCH_NATIVE_KERNEL names, else the fastest here; null for a name without
// one.
const Kernel* chosen() {
  const char* name = std::getenv("EDGEBENCH_NATIVE_KERNEL");
  return choose(name != nullptr && *name != '\0' ? name : nullptr);
}

}  // namespace
}  // namespace edgebench

#define EDGEBENCH_EXPORT extern "C" __attribute__((visibility("default")))

// What ONNX Runtime calls: SessionOptions.register_custom_ops_library.
EDGEBENCH_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace edgebench;
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    return ort::entry<ort::CreateStatus>(base->GetApi(1))(
        ort::kFail, "edgebench: the native kernels need ONNX Runtime 1.17 or later");
  }
  return guarded(api, [&] {
    static const Kernel* const once = chosen();
    if (once == nullptr) refuse("edgebench: EDGEBENCH_NATIVE_KERNEL names no kernel of this CPU");
    active = once;
    call<ort::AddCustomOpDomain>(api, options, domain(api));
  });
}

// For the agent, by ctypes: the library's version, the layout and signature that it reads
// (raised with every change of them), and the kernel that it would run, or null.
EDGEBENCH_EXPORT const char* edgebench_native_version() { return EDGEBENCH_NATIVE_VERSION; }
EDGEBENCH_EXPORT int edgebench_native_abi() { return 1; }
EDGEBENCH_EXPORT const char* edgebench_native_kernel() {
  const edgebench::Kernel* kernel = edgebench::chosen();
  return kernel ? kernel->name : nullptr;
}
