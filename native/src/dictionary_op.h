// DictionaryUpdate as ONNX Runtime sees it: inputs, attributes and formula are those of
// edgebench/adapters/dictionary_op.py, and dictionary.h has the rounding. Included by
// custom_ops.cpp.
//
// Stricter than the body in two things: the leading dimensions of X, indices and coefficients must
// be equal, and an index outside the dictionary is refused (the body takes its atom for zero).

#ifndef EDGEBENCH_DICTIONARY_OP_H
#define EDGEBENCH_DICTIONARY_OP_H

#include <cstdint>
#include <string>

#include "edgebench/dictionary.h"
#include "runtime.h"

namespace edgebench {
namespace {

class DictionaryKernel {
 public:
  static constexpr char kName[] = "DictionaryUpdate";
  static constexpr size_t kInputs = 7;
  static int input_type(size_t index) {
    static constexpr int types[kInputs] = {ort::kFloat, ort::kInt8,    ort::kInt8, ort::kUint8,
                                           ort::kUint8, ort::kFloat16, ort::kInt8};
    return types[index];
  }

  DictionaryKernel(const OrtApi* api, const OrtKernelInfo* info) : api_(api) {
    for (const auto& attribute : {Attribute{"K", &k_}, Attribute{"block_size", &block_}}) {
      call<ort::KernelInfoGetAttributeInt64>(api, info, attribute.name, attribute.value);
      if (*attribute.value < 1 || *attribute.value > kMostColumns) {
        refuse(std::string("edgebench::DictionaryUpdate: ") + attribute.name + " is " +
               std::to_string(*attribute.value) + ", must be 1 to " + std::to_string(kMostColumns));
      }
    }
    Tensor parts[4];
    for (size_t i = 0; i < 4; ++i) {
      int constant = 0;
      const OrtValue* value = nullptr;
      call<ort::KernelInfoGetConstantInputTensor>(api, info, i + 3, &constant, &value);
      if (!constant) return;  // an input of the graph: packed at each call
      parts[i] = tensor(api, value);
    }
    held_ = Held(planes(parts));
    is_held_ = true;
    for (const Tensor& part : parts) {
      let_go(part.data, part.count() * (part.type == ort::kFloat16 ? 2 : 1));
    }
  }

  void compute(OrtKernelContext* context) const {
    Held passing;
    if (!is_held_) {
      Tensor parts[4];
      for (size_t i = 0; i < 4; ++i) parts[i] = input(api_, context, i + 3);
      passing = Held(planes(parts));
    }
    const Atoms& d = is_held_ ? held_.atoms : passing.atoms;
    const Tensor x = input(api_, context, 0), indices = input(api_, context, 1),
                 coefficients = input(api_, context, 2);
    check(x, indices, coefficients);
    OrtValue* value = nullptr;
    call<ort::KernelContextGetOutput>(api_, context, size_t{0}, x.dims.data(), x.dims.size(),
                                      &value);
    void* data = nullptr;
    call<ort::GetTensorMutableData>(api_, value, &data);
    const size_t tokens = x.count() / d.k, count = static_cast<size_t>(indices.dims.back());
    const Buffer<uint32_t> atoms(tokens * count);
    resolve(indices, d.atoms, atoms.get());
    const float* from = static_cast<const float*>(x.data);
    const int8_t* c = static_cast<const int8_t*>(coefficients.data);
    float* y = static_cast<float*>(data);
    // A look-up costs about as much as two multiply-adds, and the token's own passes as four.
    const size_t work = tokens * d.k * (2 * count + 4);
    parallel(api_, context, tokens, pieces(tokens, work), [&](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) {
        active->update(d, atoms.get() + i * count, c + i * count, count, from + i * d.k,
                       y + i * d.k);
      }
    });
  }

 private:
  struct Attribute {
    const char* name;
    int64_t* value;
  };

  // A dictionary as the kernels read it, with its memory.
  struct Held {
    Buffer<uint8_t> codes;
    Buffer<float> scales, powers;
    Atoms atoms{};

    Held() = default;
    explicit Held(const DictionaryPlanes& planes) {
      const AtomsSize size = atoms_size(planes);
      codes = Buffer<uint8_t>(size.code_bytes);
      scales = Buffer<float>(size.scale_count);
      powers = Buffer<float>(size.power_count);
      atoms = pack_atoms(planes, codes.get(), scales.get(), powers.get());
    }
  };

  [[noreturn]] void unfit(const char* what, const Tensor& t, const std::string& wanted) const {
    refuse(std::string("edgebench::DictionaryUpdate: ") + what + " has the shape " + text(t.dims) +
           " or a type that does not fit; with K = " + std::to_string(k_) +
           " and block_size = " + std::to_string(block_) + " it must be " + wanted);
  }

  void expect(const char* what, const Tensor& t, int type, const Dims& dims) const {
    if (t.type != type || t.dims != dims) unfit(what, t, text(dims));
  }

  // low, high, scales and smooth, checked.
  DictionaryPlanes planes(const Tensor (&parts)[4]) const {
    const int64_t bytes = k_ / 8 + (k_ % 8 != 0), blocks = k_ / block_ + (k_ % block_ != 0);
    const int64_t m = parts[0].dims.empty() ? 0 : parts[0].dims[0];
    if (m < 1 || m > kMostAtoms) {
      unfit("low", parts[0], "[1 or more, " + std::to_string(2 * bytes) + "]");
    }
    expect("low", parts[0], ort::kUint8, {m, 2 * bytes});
    expect("high", parts[1], ort::kUint8, {m, bytes});
    expect("scales", parts[2], ort::kFloat16, {m, blocks});
    expect("smooth", parts[3], ort::kInt8, {k_});
    return {static_cast<const uint8_t*>(parts[0].data),
            static_cast<const uint8_t*>(parts[1].data),
            static_cast<const uint16_t*>(parts[2].data),
            static_cast<const int8_t*>(parts[3].data),
            static_cast<size_t>(m),
            static_cast<size_t>(k_),
            static_cast<size_t>(block_)};
  }

  void check(const Tensor& x, const Tensor& indices, const Tensor& coefficients) const {
    if (x.type != ort::kFloat || x.dims.empty() || x.dims.back() != k_) {
      unfit("X", x, "[.., " + std::to_string(k_) + "]");
    }
    Dims dims = x.dims;
    if (!indices.dims.empty()) dims.back() = indices.dims.back();
    expect("indices", indices, ort::kInt8, dims);
    expect("coefficients", coefficients, ort::kInt8, dims);
  }

  // Indices from the end counted from the start.
  void resolve(const Tensor& indices, size_t m, uint32_t* to) const {
    const int8_t* from = static_cast<const int8_t*>(indices.data);
    const int64_t most = static_cast<int64_t>(m);
    for (size_t i = 0, n = indices.count(); i < n; ++i) {
      const int64_t row = from[i] < 0 ? from[i] + most : from[i];
      if (row < 0 || row >= most) {
        refuse("edgebench::DictionaryUpdate: index " + std::to_string(from[i]) +
               " is outside the " + std::to_string(m) + " atoms");
      }
      to[i] = static_cast<uint32_t>(row);
    }
  }

  // What an index counted from 32 bits reaches.
  static constexpr int64_t kMostAtoms = int64_t{1} << 31;

  const OrtApi* api_;
  int64_t k_ = 0, block_ = 0;
  Held held_;
  bool is_held_ = false;
};

}  // namespace
}  // namespace edgebench

#endif
