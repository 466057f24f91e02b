// Which kernel runs here.

#include <string.h>

#include "kernels.h"

namespace edgebench {
namespace {

const Kernel kCompiled[] = {
#ifdef EDGEBENCH_HAVE_AVX512VNNI
    kAvx512Vnni,
#endif
#ifdef EDGEBENCH_HAVE_AVXVNNI
    kAvxVnni,
#endif
#ifdef EDGEBENCH_HAVE_AVX2
    kAvx2,
#endif
#ifdef EDGEBENCH_HAVE_NEON
    kNeonI8mm,
    kNeonDot,
    kNeon,
#endif
    kScalar,
};

}  // namespace

const Kernel* kernels(size_t* count) {
  *count = sizeof kCompiled / sizeof kCompiled[0];
  return kCompiled;
}

const Kernel* choose(const char* name) {
  for (const Kernel& kernel : kCompiled) {
    if ((name == nullptr || strcmp(name, kernel.name) == 0) && kernel.supported()) return &kernel;
  }
  return nullptr;
}

}  // namespace edgebench
