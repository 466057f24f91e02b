// aarch64 with the matrix instructions for bytes (Armv8.6 FEAT_I8MM: Neoverse V1 and N2, Apple M2,
// Cortex-A510, A715, X2 and later).
//
// smmla multiplies two rows of eight bytes by two rows of eight: four sums, 32 products an
// instruction, twice sdot's. A code vector holds four columns of each row, so two neighbouring code
// vectors are zipped into rows of eight; that takes as many instructions as it saves for one row of
// activations, so such rows go through sdot (neon_dotprod.cpp), which every such processor has.

#include <sys/auxv.h>

#include "kernels.h"
#include "neon_tile.h"

namespace edgebench {
namespace {

constexpr unsigned long kHwcap2I8mm = 1ul << 13;  // HWCAP2_I8MM in Linux's asm/hwcap.h
constexpr size_t kPairs = 4;  // pairs of rows of activations that one decoding serves

// A quarter's 4 rows x 32 columns as rows of eight: [columns / 8][rows 0 1, rows 2 3].
struct Rows {
  int8x16_t c[4][2];
};

inline __attribute__((always_inline)) Rows rows_of_eight(const uint8_t* v) {
  Codes codes = unpack(v);
  for (size_t odd = 1; odd < 6; odd += 2) {
    codes.c[odd] = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(codes.c[odd]), 3));
  }
  Rows rows;
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j) {
    const int32x4_t first = vreinterpretq_s32_s8(codes.c[2 * j]);
    const int32x4_t second = vreinterpretq_s32_s8(codes.c[2 * j + 1]);
    rows.c[j][0] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
    rows.c[j][1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
  }
  return rows;
}

// pairs x 2 rows of activations and a quarter. A sum's lanes: (weights 0, x 0), (0, x 1), (1, x 0),
// (1, x 1).
template <size_t pairs>
void some_rows(const Packed& w, const Activations& a, size_t i, size_t tile, size_t quarter,
               float* y) {
  const uint8_t* v = w.codes + tile * w.groups * kGroupBytes + 16 * quarter;
  const uint16_t* sw = w.scales + tile * w.blocks * kTileRows + 4 * quarter;
  const size_t stride = w.groups * kGroup;
  const int8_t* q = a.values + i * stride;
  float32x4_t sum[2 * pairs];
  for (size_t r = 0; r < 2 * pairs; ++r) sum[r] = vdupq_n_f32(0);
  size_t left = w.groups;
  for (size_t b = 0; b < w.blocks; ++b) {
    const size_t count = left < w.groups_per_block ? left : w.groups_per_block;
    left -= count;
    int32x4_t dot[pairs][2];
    for (size_t p = 0; p < pairs; ++p) {
      const int32_t* bias = a.bias + (i + 2 * p) * w.blocks + b;
      const int32x2_t both = vset_lane_s32(bias[w.blocks], vdup_n_s32(bias[0]), 1);
      dot[p][0] = dot[p][1] = vcombine_s32(both, both);
    }
    for (size_t g = 0; g < count; ++g) {
      const Rows rows = rows_of_eight(v);
#pragma GCC unroll 4
      for (size_t p = 0; p < pairs; ++p) {
        const int8_t* x = q + 2 * p * stride;
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) {
          const int8x16_t two = vcombine_s8(vld1_s8(x + 8 * j), vld1_s8(x + stride + 8 * j));
          dot[p][0] = vmmlaq_s32(dot[p][0], rows.c[j][0], two);
          dot[p][1] = vmmlaq_s32(dot[p][1], rows.c[j][1], two);
        }
      }
      v += kGroupBytes;
      q += kGroup;
    }
    for (size_t p = 0; p < pairs; ++p) {
      const float* sa = a.scales + (i + 2 * p) * w.blocks + b;
      sum[2 * p] = add_block(sum[2 * p], vuzp1q_s32(dot[p][0], dot[p][1]), sw, sa[0]);
      sum[2 * p + 1] = add_block(sum[2 * p + 1], vuzp2q_s32(dot[p][0], dot[p][1]), sw,
                                 sa[w.blocks]);
    }
    sw += kTileRows;
  }
  for (size_t r = 0; r < 2 * pairs; ++r) {
    store(w, tile * kTileRows + 4 * quarter, sum[r], y + (i + r) * w.n);
  }
}

void matmul(const Packed& w, const Activations& a, size_t first, size_t last, float* y) {
  const size_t paired = a.m / 2 * 2;
  for (size_t tile = first; tile < last; ++tile) {
    for (size_t quarter = 0; quarter < 4 && tile * kTileRows + 4 * quarter < w.n; ++quarter) {
      size_t i = 0;
      for (; i + 2 * kPairs <= paired; i += 2 * kPairs) {
        some_rows<kPairs>(w, a, i, tile, quarter, y);
      }
      for (; i < paired; i += 2) some_rows<1>(w, a, i, tile, quarter, y);
    }
  }
  if (paired == a.m) return;
  const size_t columns = w.groups * kGroup;
  const Activations odd = {a.values + paired * columns, a.scales + paired * w.blocks,
                           a.bias + paired * w.blocks, 1};
  kNeonDot.matmul(w, odd, first, last, y + paired * w.n);
}

bool supported() {
  return (getauxval(AT_HWCAP2) & kHwcap2I8mm) != 0 && kNeonDot.supported();
}

void quantize_row(const Packed& w, const float* x, int8_t* values, float* scales, int32_t* bias) {
  kNeonDot.quantize_row(w, x, values, scales, bias);
}

}  // namespace

const Kernel kNeonI8mm = {"neon-i8mm", supported, quantize_row, matmul, update_neon};

}  // namespace edgebench
