// Rounds one row of activations to int8. Included by every kernel's file and compiled there for
// that kernel's instruction set, hence static: the same operations, so the same bits, in all of
// them.

#ifndef EDGEBENCH_QUANTIZE_ROW_H
#define EDGEBENCH_QUANTIZE_ROW_H

#include <string.h>

#include "edgebench/int3.h"

namespace edgebench {

static void quantize_row(const Packed& w, const float* x, int8_t* values, float* scales,
                         int32_t* bias) {
  const size_t block = w.groups_per_block * kGroup;
  for (size_t b = 0; b < w.blocks; ++b) {
    const size_t begin = b * block;
    const size_t count = w.k - begin < block ? w.k - begin : block;
    const size_t padded = (w.groups * kGroup - begin) < block ? w.groups * kGroup - begin : block;
    const float* from = x + begin;
    int8_t* to = values + begin;
    // Magnitudes of floats order as their bits do; a NaN's and an infinity's lie above all others.
    uint32_t most = 0;
    for (size_t i = 0; i < count; ++i) {
      uint32_t bits;
      memcpy(&bits, from + i, sizeof bits);
      bits &= 0x7fffffff;
      most = bits > most ? bits : most;
    }
    float largest;
    memcpy(&largest, &most, sizeof largest);
    const float scale = largest / 127.0f;
    // Below the smallest normal scale (2^-126) 1 / scale would not be finite: such a block counts
    // as zeros. A scale of NaN carries a NaN or an infinity to every output of the row.
    const bool finite = most < 0x7f800000;
    const bool tiny = scale < 0x1p-126f;
    scales[b] = finite ? (tiny ? 0.0f : scale) : __builtin_nanf("");
    if (!finite || tiny) {
      memset(to, 0, padded);
      bias[b] = 0;
      continue;
    }
    const float inverse = 127.0f / largest;
    // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, into the lowest bits.
    const float magic = 12582912.0f;
    int32_t sum = 0;
    for (size_t i = 0; i < count; ++i) {
      const float shifted = from[i] * inverse + magic;
      int32_t bits;
      memcpy(&bits, &shifted, sizeof bits);
      const int32_t value = bits - 0x4b400000;
      sum += value;
      to[i] = static_cast<int8_t>(value);
    }
    memset(to + count, 0, padded - count);
    bias[b] = -4 * sum;
  }
}

}  // namespace edgebench

#endif
