// aarch64 with the dot product instructions (Armv8.2 FEAT_DotProd: Cortex-A55, A76, a Pi 5).
//
// sdot by element multiplies four rows' four codes with four activations out of one register that
// holds sixteen: no broadcast, and 32-bit sums.

#include <sys/auxv.h>

#include "kernels.h"
#include "neon_tile.h"
#include "quantize_row.h"

namespace edgebench {
namespace {

constexpr unsigned long kHwcapDot = 1ul << 20;  // HWCAP_ASIMDDP in Linux's asm/hwcap.h

inline __attribute__((always_inline)) void group(const Codes& codes, const int8_t* q,
                                                 int32x4_t& even, int32x4_t& odd) {
  const int8x16_t x0 = vld1q_s8(q), x1 = vld1q_s8(q + 16);
  even = vdotq_laneq_s32(even, codes.c[0], x0, 0);
  odd = vdotq_laneq_s32(odd, codes.c[1], x0, 1);
  even = vdotq_laneq_s32(even, codes.c[2], x0, 2);
  odd = vdotq_laneq_s32(odd, codes.c[3], x0, 3);
  even = vdotq_laneq_s32(even, codes.c[4], x1, 0);
  odd = vdotq_laneq_s32(odd, codes.c[5], x1, 1);
  even = vdotq_laneq_s32(even, codes.c[6], x1, 2);
  even = vdotq_laneq_s32(even, codes.c[7], x1, 3);
}

// One row of activations and a whole tile: the four quarters' sums are independent, so the latency
// of sdot hides.
void one_row(const Packed& w, const Activations& a, size_t i, size_t tile, float* y) {
  const uint8_t* v = w.codes + tile * w.groups * kGroupBytes;
  const uint16_t* sw = w.scales + tile * w.blocks * kTileRows;
  const int8_t* q = a.values + i * w.groups * kGroup;
  float32x4_t sum[4];
  for (size_t s = 0; s < 4; ++s) sum[s] = vdupq_n_f32(0);
  size_t left = w.groups;
  for (size_t b = 0; b < w.blocks; ++b) {
    const size_t count = left < w.groups_per_block ? left : w.groups_per_block;
    left -= count;
    int32x4_t even[4], odd[4];
    for (size_t s = 0; s < 4; ++s) {
      even[s] = vdupq_n_s32(a.bias[i * w.blocks + b]);
      odd[s] = vdupq_n_s32(0);
    }
    for (size_t g = 0; g < count; ++g) {
      __builtin_prefetch(v + 1024);
      __builtin_prefetch(v + 1024 + 64);
      __builtin_prefetch(v + 1024 + 128);
#pragma GCC unroll 4
      for (size_t s = 0; s < 4; ++s) group(unpack(v + 16 * s), q, even[s], odd[s]);
      v += kGroupBytes;
      q += kGroup;
    }
    const float sa = a.scales[i * w.blocks + b];
    for (size_t s = 0; s < 4; ++s) {
      sum[s] = add_block(sum[s], vsraq_n_s32(even[s], odd[s], 3), sw + 4 * s, sa);
    }
    sw += kTileRows;
  }
  for (size_t s = 0; s < 4 && tile * kTileRows + 4 * s < w.n; ++s) {
    store(w, tile * kTileRows + 4 * s, sum[s], y + i * w.n);
  }
}

constexpr size_t kRows = 4;

// kRows rows of activations and a quarter: the codes are decoded once for all of them.
void several_rows(const Packed& w, const Activations& a, size_t i, size_t tile, size_t quarter,
                  float* y) {
  const uint8_t* v = w.codes + tile * w.groups * kGroupBytes + 16 * quarter;
  const uint16_t* sw = w.scales + tile * w.blocks * kTileRows + 4 * quarter;
  const size_t stride = w.groups * kGroup;
  const int8_t* q = a.values + i * stride;
  float32x4_t sum[kRows];
  for (size_t r = 0; r < kRows; ++r) sum[r] = vdupq_n_f32(0);
  size_t left = w.groups;
  for (size_t b = 0; b < w.blocks; ++b) {
    const size_t count = left < w.groups_per_block ? left : w.groups_per_block;
    left -= count;
    int32x4_t even[kRows], odd[kRows];
    for (size_t r = 0; r < kRows; ++r) {
      even[r] = vdupq_n_s32(a.bias[(i + r) * w.blocks + b]);
      odd[r] = vdupq_n_s32(0);
    }
    for (size_t g = 0; g < count; ++g) {
      const Codes codes = unpack(v);
#pragma GCC unroll 4
      for (size_t r = 0; r < kRows; ++r) group(codes, q + r * stride, even[r], odd[r]);
      v += kGroupBytes;
      q += kGroup;
    }
    for (size_t r = 0; r < kRows; ++r) {
      sum[r] = add_block(sum[r], vsraq_n_s32(even[r], odd[r], 3), sw,
                         a.scales[(i + r) * w.blocks + b]);
    }
    sw += kTileRows;
  }
  for (size_t r = 0; r < kRows; ++r) {
    store(w, tile * kTileRows + 4 * quarter, sum[r], y + (i + r) * w.n);
  }
}

void matmul(const Packed& w, const Activations& a, size_t first, size_t last, float* y) {
  for (size_t tile = first; tile < last; ++tile) {
    size_t i = 0;
    for (; i + kRows <= a.m; i += kRows) {
      for (size_t quarter = 0; quarter < 4 && tile * kTileRows + 4 * quarter < w.n; ++quarter) {
        several_rows(w, a, i, tile, quarter, y);
      }
    }
    for (; i < a.m; ++i) one_row(w, a, i, tile, y);
  }
}

bool supported() { return (getauxval(AT_HWCAP) & kHwcapDot) != 0; }

}  // namespace

const Kernel kNeonDot = {"neon-dotprod", supported, quantize_row, matmul, update_neon};

}  // namespace edgebench
