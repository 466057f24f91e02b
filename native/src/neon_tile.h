// What the two NEON kernels share: a tile is four quarters of 4 rows, a code vector of a quarter
// one register, and shift-right-and-insert joins the split codes. Included by both files, hence
// static.

#ifndef EDGEBENCH_NEON_TILE_H
#define EDGEBENCH_NEON_TILE_H

#include <arm_neon.h>

#include "edgebench/int3.h"

namespace edgebench {

struct Codes {
  int8x16_t c[8];  // 1, 3 and 5 are eight times the code
};

static inline __attribute__((always_inline)) Codes unpack(const uint8_t* v) {
  const uint8x16_t v0 = vld1q_u8(v), v1 = vld1q_u8(v + 64), v2 = vld1q_u8(v + 128);
  const uint8x16_t seven = vdupq_n_u8(7), eights = vdupq_n_u8(0x38);
  return {{
      vreinterpretq_s8_u8(vandq_u8(v0, seven)),
      vreinterpretq_s8_u8(vandq_u8(v0, eights)),
      vreinterpretq_s8_u8(vandq_u8(v1, seven)),
      vreinterpretq_s8_u8(vandq_u8(v1, eights)),
      vreinterpretq_s8_u8(vandq_u8(v2, seven)),
      vreinterpretq_s8_u8(vandq_u8(v2, eights)),
      vreinterpretq_s8_u8(vandq_u8(vsriq_n_u8(vshrq_n_u8(v1, 4), v0, 6), seven)),
      vreinterpretq_s8_u8(vsriq_n_u8(vshrq_n_u8(v1, 5), v2, 6)),
  }};
}

static inline __attribute__((always_inline)) float32x4_t add_block(float32x4_t sum, int32x4_t dot,
                                                                   const uint16_t* scales,
                                                                   float sa) {
  const float32x4_t sw = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales)));
  return vfmaq_n_f32(sum, vmulq_f32(vcvtq_f32_s32(dot), sw), sa);
}

// Four rows of weights into y; all that are left where the matrix ends sooner.
static inline void store(const Packed& w, size_t row, float32x4_t sum, float* y) {
  if (row + 4 <= w.n) {
    vst1q_f32(y + row, sum);
    return;
  }
  float lanes[4];
  vst1q_f32(lanes, sum);
  for (size_t lane = 0; row + lane < w.n; ++lane) y[row + lane] = lanes[lane];
}

}  // namespace edgebench

#endif
