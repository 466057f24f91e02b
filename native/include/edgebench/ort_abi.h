// The few entries of ONNX Runtime's C API that a library of custom ops needs.
//
// Neither the Python wheel nor Debian 12 brings onnxruntime_c_api.h, and the library must build on
// a device that has only the wheel. The API is a table of function pointers whose order never
// changes ("new functions are only appended", docs/Versioning.md and the comments of struct
// OrtApi), so the place of an entry and its signature are all that is needed. Places and signatures
// are those of include/onnxruntime/core/session/onnxruntime_c_api.h; the latest used is
// ParallelFor, of 1.17.

#ifndef EDGEBENCH_ORT_ABI_H
#define EDGEBENCH_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

extern "C" {

struct OrtApi;  // read through `entry`
struct OrtStatus;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtShapeInferContext;

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null where the runtime is older than that
  const char* (*GetVersionString)(void);
};

// struct OrtCustomOp as of version 17: the version and 25 functions. A null function is one not
// given; the runtime then takes its own default.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                               void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** input, int** output);
  void (*ReleaseMayInplace)(int* input, int* output);
  size_t (*GetAliasMap)(int** input, int** output);
  void (*ReleaseAliasMap)(int* input, int* output);
};

}  // extern "C"

static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void*), "struct OrtCustomOp of version 17");

namespace edgebench {
namespace ort {

constexpr uint32_t kApiVersion = 17;

// enum ONNXTensorElementDataType
constexpr int kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7;
constexpr int kFloat16 = 10;
// enum OrtErrorCode
constexpr int kFail = 1, kInvalidArgument = 2, kInvalidGraph = 10;
// enum OrtCustomOpInputOutputCharacteristic, OrtMemType
constexpr int kRequired = 0, kMemDefault = 0;

// What each entry is called with, and where it stands in the table.
template <size_t index_, class Function>
struct Entry {
  static constexpr size_t index = index_;
  using type = Function*;
};

using CreateStatus = Entry<0, OrtStatus*(int code, const char* message)>;
using CreateCustomOpDomain = Entry<26, OrtStatus*(const char* domain, OrtCustomOpDomain** out)>;
using CustomOpDomainAdd = Entry<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Entry<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Entry<51, OrtStatus*(OrtValue*, void** out)>;
using GetTensorElementType = Entry<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int* out)>;
using GetDimensionsCount = Entry<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t* out)>;
using GetDimensions =
    Entry<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t* values, size_t length)>;
using GetTensorTypeAndShape = Entry<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using KernelInfoGetAttributeInt64 =
    Entry<86, OrtStatus*(const OrtKernelInfo*, const char* name, int64_t* out)>;
using KernelContextGetInput =
    Entry<90, OrtStatus*(const OrtKernelContext*, size_t index, const OrtValue** out)>;
using KernelContextGetOutput = Entry<91, OrtStatus*(OrtKernelContext*, size_t index,
                                                    const int64_t* dims, size_t count, OrtValue**)>;
using ReleaseTensorTypeAndShapeInfo = Entry<99, void(OrtTensorTypeAndShapeInfo*)>;
using KernelInfoGetConstantInputTensor =
    Entry<249, OrtStatus*(const OrtKernelInfo*, size_t index, int* is_constant, const OrtValue**)>;
using KernelContextParallelFor =
    Entry<274, OrtStatus*(const OrtKernelContext*, void (*function)(void*, size_t), size_t total,
                          size_t batches, void* data)>;

template <class E>
typename E::type entry(const OrtApi* api) {
  return reinterpret_cast<typename E::type>(reinterpret_cast<void* const*>(api)[E::index]);
}

}  // namespace ort
}  // namespace edgebench

#endif
