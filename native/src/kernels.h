// The kernels that may be compiled in; which are is CMakeLists.txt's to say (EDGEBENCH_HAVE_*).

#ifndef EDGEBENCH_KERNELS_H
#define EDGEBENCH_KERNELS_H

#include "edgebench/int3.h"

namespace edgebench {

void update_scalar(const Atoms&, const uint32_t*, const int8_t*, size_t, const float*, float*);
void update_avx2(const Atoms&, const uint32_t*, const int8_t*, size_t, const float*, float*);
void update_neon(const Atoms&, const uint32_t*, const int8_t*, size_t, const float*, float*);

extern const Kernel kScalar;
extern const Kernel kAvx2;
extern const Kernel kAvxVnni;
extern const Kernel kAvx512Vnni;
extern const Kernel kNeon;
extern const Kernel kNeonDot;
extern const Kernel kNeonI8mm;

}  // namespace edgebench

#endif
