// DictionaryUpdate on any aarch64: eight codes are one word, shifted by 0, 3, .. 21 in two
// registers of four lanes. A code times its block's step is exact, so a fused multiply-add gives
// the bits of the look-up and the sum.

#include <arm_neon.h>

#include "kernels.h"
#include "update_row.h"

namespace edgebench {
namespace {

// Four codes, from three bits at the bottom of each lane.
inline __attribute__((always_inline)) float32x4_t codes(uint32x4_t lanes) {
  const uint32x4_t three = vandq_u32(lanes, vdupq_n_u32(7));
  const uint32x4_t turned = veorq_u32(three, vdupq_n_u32(4));
  return vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(turned), vdupq_n_s32(4)));
}

}  // namespace

void update_neon(const Atoms& d, const uint32_t* indices, const int8_t* coefficients, size_t count,
                 const float* x, float* y) {
  if (d.block % kWordCodes != 0 || d.k < kWordCodes) {
    update_scalar(d, indices, coefficients, count, x, y);
    return;
  }
  const int32_t shifts[kWordCodes] = {0, -3, -6, -9, -12, -15, -18, -21};
  const int32x4_t shift0 = vld1q_s32(shifts), shift1 = vld1q_s32(shifts + 4);
  const size_t whole = d.k / kWordCodes, per_block = d.block / kWordCodes;
  float end_x[kWordCodes], end_r[kWordCodes];
  rest(d, x, end_x);
  float32x4_t squares[2] = {vdupq_n_f32(0), vdupq_n_f32(0)}, dots[2] = {squares[0], squares[0]};
  for (size_t w = 0; w < d.words; ++w) {
    const size_t b = w / per_block;
    float32x4_t r[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
    for (size_t j = 0; j < count; ++j) {
      const size_t atom = indices[j];
      const float step = coefficients[j] * d.scales[atom * d.blocks + b];
      const uint32x4_t wide = vdupq_n_u32(word(d, atom, w));
      r[0] = vfmaq_n_f32(r[0], codes(vshlq_u32(wide, shift0)), step);
      r[1] = vfmaq_n_f32(r[1], codes(vshlq_u32(wide, shift1)), step);
    }
    const float* from = w < whole ? x + w * kWordCodes : end_x;
    float* to = w < whole ? y + w * kWordCodes : end_r;
    for (size_t h = 0; h < 2; ++h) {
      r[h] = vmulq_f32(r[h], vld1q_f32(d.powers + w * kWordCodes + 4 * h));
      squares[h] = vfmaq_f32(squares[h], r[h], r[h]);
      dots[h] = vfmaq_f32(dots[h], r[h], vld1q_f32(from + 4 * h));
      vst1q_f32(to + 4 * h, r[h]);
    }
  }
  float s[kWordCodes], t[kWordCodes];
  for (size_t h = 0; h < 2; ++h) {
    vst1q_f32(s + 4 * h, squares[h]);
    vst1q_f32(t + 4 * h, dots[h]);
  }
  const float times = factor(d, s, t);
  for (size_t i = 0; i < whole * kWordCodes; i += 4) {
    vst1q_f32(y + i, vmulq_n_f32(vld1q_f32(y + i), times));
  }
  for (size_t i = whole * kWordCodes; i < d.k; ++i) y[i] = end_r[i % kWordCodes] * times;
}

}  // namespace edgebench
