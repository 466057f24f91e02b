// aarch64 as every processor has it (Cortex-A53, A72: a Pi 3 or 4).
//
// There is no dot product of bytes: smlal adds products to 16 bits. Codes reach 7 and values 127,
// so the eight code vectors of a group stay under 7,112, with the odd ones, 8 times too large,
// apart (3 x 7,112). A group ends with the pairs' sums, in 32 bits.

#include "kernels.h"
#include "neon_tile.h"
#include "quantize_row.h"

namespace edgebench {
namespace {

inline __attribute__((always_inline)) int8x16_t four(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, sizeof bytes);
  return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
}

inline __attribute__((always_inline)) int32x4_t group(int32x4_t dot, const Codes& codes,
                                                      const int8_t* q) {
  int8x16_t x = four(q);
  int16x8_t low = vmull_s8(vget_low_s8(codes.c[0]), vget_low_s8(x));
  int16x8_t high = vmull_high_s8(codes.c[0], x);
  x = four(q + 4);
  int16x8_t odd_low = vmull_s8(vget_low_s8(codes.c[1]), vget_low_s8(x));
  int16x8_t odd_high = vmull_high_s8(codes.c[1], x);
#pragma GCC unroll 2
  for (size_t j = 3; j < 6; j += 2) {
    x = four(q + 4 * j);
    odd_low = vmlal_s8(odd_low, vget_low_s8(codes.c[j]), vget_low_s8(x));
    odd_high = vmlal_high_s8(odd_high, codes.c[j], x);
  }
  const size_t even[] = {2, 4, 6, 7};
#pragma GCC unroll 4
  for (size_t e = 0; e < 4; ++e) {
    x = four(q + 4 * even[e]);
    low = vmlal_s8(low, vget_low_s8(codes.c[even[e]]), vget_low_s8(x));
    high = vmlal_high_s8(high, codes.c[even[e]], x);
  }
  low = vsraq_n_s16(low, odd_low, 3);
  high = vsraq_n_s16(high, odd_high, 3);
  return vpadalq_s16(dot, vpaddq_s16(low, high));
}

void some_rows(const Packed& w, const Activations& a, size_t i, size_t rows, size_t tile,
               size_t quarter, float* y) {
  const uint8_t* v = w.codes + tile * w.groups * kGroupBytes + 16 * quarter;
  const uint16_t* sw = w.scales + tile * w.blocks * kTileRows + 4 * quarter;
  const size_t stride = w.groups * kGroup;
  const int8_t* q = a.values + i * stride;
  float32x4_t sum[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
  size_t left = w.groups;
  for (size_t b = 0; b < w.blocks; ++b) {
    const size_t count = left < w.groups_per_block ? left : w.groups_per_block;
    left -= count;
    int32x4_t dot[2];
    for (size_t r = 0; r < rows; ++r) dot[r] = vdupq_n_s32(a.bias[(i + r) * w.blocks + b]);
    for (size_t g = 0; g < count; ++g) {
      const Codes codes = unpack(v);
      for (size_t r = 0; r < rows; ++r) dot[r] = group(dot[r], codes, q + r * stride);
      v += kGroupBytes;
      q += kGroup;
    }
    for (size_t r = 0; r < rows; ++r) {
      sum[r] = add_block(sum[r], dot[r], sw, a.scales[(i + r) * w.blocks + b]);
    }
    sw += kTileRows;
  }
  for (size_t r = 0; r < rows; ++r) {
    store(w, tile * kTileRows + 4 * quarter, sum[r], y + (i + r) * w.n);
  }
}

void matmul(const Packed& w, const Activations& a, size_t first, size_t last, float* y) {
  for (size_t tile = first; tile < last; ++tile) {
    for (size_t quarter = 0; quarter < 4 && tile * kTileRows + 4 * quarter < w.n; ++quarter) {
      size_t i = 0;
      for (; i + 2 <= a.m; i += 2) some_rows(w, a, i, 2, tile, quarter, y);
      for (; i < a.m; ++i) some_rows(w, a, i, 1, tile, quarter, y);
    }
  }
}

bool supported() { return true; }  // Advanced SIMD is part of every aarch64 Linux.

}  // namespace

const Kernel kNeon = {"neon", supported, quantize_row, matmul, update_neon};

}  // namespace edgebench
