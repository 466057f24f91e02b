// The kernel for any processor: the arithmetic that the others must match bit for bit.

#include <math.h>

#include "kernels.h"
#include "quantize_row.h"

namespace edgebench {
namespace {

// The eight code vectors of one row of a group, as 32 codes + 4.
void unpack(const uint8_t* v, size_t lane, uint8_t* c) {
  for (size_t t = 0; t < 4; ++t) {
    const unsigned v0 = v[4 * lane + t], v1 = v[64 + 4 * lane + t], v2 = v[128 + 4 * lane + t];
    const unsigned codes[8] = {
        v0 & 7,      v0 >> 3 & 7, v1 & 7,
        v1 >> 3 & 7, v2 & 7,      v2 >> 3 & 7,
        v0 >> 6 | (v1 >> 6 & 1) << 2, v2 >> 6 | (v1 >> 7) << 2,
    };
    for (size_t j = 0; j < 8; ++j) c[4 * j + t] = static_cast<uint8_t>(codes[j]);
  }
}

void matmul(const Packed& w, const Activations& a, size_t first, size_t last, float* y) {
  uint8_t codes[kGroup];
  for (size_t row = first * kTileRows; row < last * kTileRows && row < w.n; ++row) {
    const size_t tile = row / kTileRows, lane = row % kTileRows;
    for (size_t i = 0; i < a.m; ++i) {
      float sum = 0;
      for (size_t b = 0; b < w.blocks; ++b) {
        int32_t dot = a.bias[i * w.blocks + b];
        for (size_t g = b * w.groups_per_block; g < (b + 1) * w.groups_per_block && g < w.groups;
             ++g) {
          unpack(w.codes + (tile * w.groups + g) * kGroupBytes, lane, codes);
          const int8_t* q = a.values + (i * w.groups + g) * kGroup;
          for (size_t k = 0; k < kGroup; ++k) dot += codes[k] * q[k];
        }
        const float scale = half_to_float(w.scales[(tile * w.blocks + b) * kTileRows + lane]);
        sum = fmaf(static_cast<float>(dot) * scale, a.scales[i * w.blocks + b], sum);
      }
      y[i * w.n + row] = sum;
    }
  }
}

bool supported() { return true; }

}  // namespace

const Kernel kScalar = {"scalar", supported, quantize_row, matmul, update_scalar};

}  // namespace edgebench
