// The ops that ONNX Runtime sees: MatMul3Bit, Gather3Bit and Gather4Bit of the domain edgebench,
// with the inputs, attributes and values of edgebench/quantize/functions.py, whose bodies they
// stand in for, and DictionaryUpdate (dictionary_op.h). The look-ups give the body's values bit for
// bit; the product is rounded as int3.h says.
//
// A file may be anybody's: every attribute and shape is checked before a byte is read, and what
// does not fit is an error status of the runtime's. No exception crosses the border.
//
// Weights that are constants are packed when the session is made. The runtime has no way to give
// back an initialiser to a custom op (only its own kernels pre-pack), so after packing the kernel
// is told that those pages are not needed soon: where the weights lie in a file of external data
// the runtime maps it, and the pages go; in a model of one file they are heap, and stay.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "dictionary_op.h"
#include "edgebench/int3.h"
#include "edgebench/ort_abi.h"
#include "runtime.h"

namespace edgebench {
namespace {

constexpr char kDomain[] = "edgebench";

constexpr int64_t kMostRows = int64_t{1} << 31;

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
  static const Op<DictionaryKernel> dictionary;
  static OrtCustomOpDomain* const made = [api] {
    OrtCustomOpDomain* out = nullptr;
    call<ort::CreateCustomOpDomain>(api, static_cast<const char*>(kDomain), &out);
    call<ort::CustomOpDomainAdd>(api, out, static_cast<const OrtCustomOp*>(&matmul));
    call<ort::CustomOpDomainAdd>(api, out, static_cast<const OrtCustomOp*>(&gather3));
    call<ort::CustomOpDomainAdd>(api, out, static_cast<const OrtCustomOp*>(&gather4));
    call<ort::CustomOpDomainAdd>(api, out, static_cast<const OrtCustomOp*>(&dictionary));
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
