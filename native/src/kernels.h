// The kernels that may be compiled in; which are is CMakeLists.txt's to say (EDGEBENCH_HAVE_*).

#ifndef EDGEBENCH_KERNELS_H
#define EDGEBENCH_KERNELS_H

#include "edgebench/int3.h"

namespace edgebench {

extern const Kernel kScalar;
extern const Kernel kAvx2;
extern const Kernel kAvxVnni;
extern const Kernel kAvx512Vnni;
extern const Kernel kNeon;
extern const Kernel kNeonDot;
extern const Kernel kNeonI8mm;

}  // namespace edgebench

#endif
