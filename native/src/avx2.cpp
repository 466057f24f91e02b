// x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
//
// maddubs multiplies bytes u8 x i8 and adds pairs to 16 bits, saturating. Codes reach 7 and values
// 127, so a pair is at most 1,778: all eight code vectors of a group add up in 16 bits (14,224),
// and one madd a group widens. Two of the odd code vectors are taken where they lie, 8 times too
// large (28,448 together), and shifted down after the sum instead of before.

#include <immintrin.h>

#include "kernels.h"
#include "quantize_row.h"

namespace edgebench {
namespace {

// The rows of activations that one decoding serves; more would spill registers.
constexpr size_t kRows = 4;

inline __attribute__((always_inline)) __m256i load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

inline __attribute__((always_inline)) __m256i four(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, sizeof bytes);
  return _mm256_set1_epi32(bytes);
}

inline __attribute__((always_inline)) __m256i code6(__m256i v0, __m256i v1) {
  return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v0, 6), _mm256_set1_epi8(3)),
                         _mm256_and_si256(_mm256_srli_epi16(v1, 4), _mm256_set1_epi8(4)));
}

inline __attribute__((always_inline)) __m256i code7(__m256i v1, __m256i v2) {
  return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v2, 6), _mm256_set1_epi8(3)),
                         _mm256_and_si256(_mm256_srli_epi16(v1, 5), _mm256_set1_epi8(4)));
}

// dot + the sums of one group for 8 rows of weights and one of activations.
inline __attribute__((always_inline)) __m256i group(__m256i dot, const uint8_t* v,
                                                    const int8_t* q) {
  const __m256i seven = _mm256_set1_epi8(7), eights = _mm256_set1_epi8(0x38);
  const __m256i v0 = load(v), v1 = load(v + 64), v2 = load(v + 128);
  __m256i even = _mm256_maddubs_epi16(_mm256_and_si256(v0, seven), four(q));
  __m256i odd = _mm256_maddubs_epi16(_mm256_and_si256(v0, eights), four(q + 4));
  even = _mm256_add_epi16(even, _mm256_maddubs_epi16(_mm256_and_si256(v1, seven), four(q + 8)));
  odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(_mm256_and_si256(v1, eights), four(q + 12)));
  even = _mm256_add_epi16(even, _mm256_maddubs_epi16(_mm256_and_si256(v2, seven), four(q + 16)));
  const __m256i c5 = _mm256_and_si256(_mm256_srli_epi16(v2, 3), seven);
  even = _mm256_add_epi16(even, _mm256_maddubs_epi16(c5, four(q + 20)));
  even = _mm256_add_epi16(even, _mm256_maddubs_epi16(code6(v0, v1), four(q + 24)));
  even = _mm256_add_epi16(even, _mm256_maddubs_epi16(code7(v1, v2), four(q + 28)));
  even = _mm256_add_epi16(even, _mm256_srai_epi16(odd, 3));
  return _mm256_add_epi32(dot, _mm256_madd_epi16(even, _mm256_set1_epi16(1)));
}

inline __attribute__((always_inline)) __m256 scales(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline __attribute__((always_inline)) __m256 add_block(__m256 sum, __m256i dot, __m256 sw,
                                                       float sa) {
  return _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dot), sw), _mm256_set1_ps(sa), sum);
}

// Eight rows of weights into y; all that are left where the matrix ends sooner.
void store(const Packed& w, size_t row, __m256 sum, float* y) {
  if (row + 8 <= w.n) {
    _mm256_storeu_ps(y + row, sum);
    return;
  }
  float lanes[8];
  _mm256_storeu_ps(lanes, sum);
  for (size_t lane = 0; row + lane < w.n; ++lane) y[row + lane] = lanes[lane];
}

void one_row(const Packed& w, const Activations& a, size_t i, size_t tile, float* y) {
  const uint8_t* v = w.codes + tile * w.groups * kGroupBytes;
  const uint16_t* sw = w.scales + tile * w.blocks * kTileRows;
  const int8_t* q = a.values + i * w.groups * kGroup;
  __m256 sum0 = _mm256_setzero_ps(), sum1 = _mm256_setzero_ps();
  size_t left = w.groups;
  for (size_t b = 0; b < w.blocks; ++b) {
    const size_t count = left < w.groups_per_block ? left : w.groups_per_block;
    left -= count;
    __m256i dot0 = _mm256_set1_epi32(a.bias[i * w.blocks + b]), dot1 = dot0;
    for (size_t g = 0; g < count; ++g) {
      // Two kilobytes ahead: what DRAM delivers during its own latency.
      _mm_prefetch(reinterpret_cast<const char*>(v + 2048), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(v + 2048 + 64), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(v + 2048 + 128), _MM_HINT_T0);
      dot0 = group(dot0, v, q);
      dot1 = group(dot1, v + 32, q);
      v += kGroupBytes;
      q += kGroup;
    }
    const float sa = a.scales[i * w.blocks + b];
    sum0 = add_block(sum0, dot0, scales(sw), sa);
    sum1 = add_block(sum1, dot1, scales(sw + 8), sa);
    sw += kTileRows;
  }
  store(w, tile * kTileRows, sum0, y + i * w.n);
  if (tile * kTileRows + 8 < w.n) store(w, tile * kTileRows + 8, sum1, y + i * w.n);
}

// kRows rows of activations and half a tile: the codes are decoded once for all of them.
void several_rows(const Packed& w, const Activations& a, size_t i, size_t tile, size_t half,
                  float* y) {
  const __m256i seven = _mm256_set1_epi8(7);
  const uint8_t* v = w.codes + tile * w.groups * kGroupBytes + 32 * half;
  const uint16_t* sw = w.scales + tile * w.blocks * kTileRows + 8 * half;
  const size_t stride = w.groups * kGroup;
  const int8_t* q = a.values + i * stride;
  __m256 sum[kRows];
  for (size_t r = 0; r < kRows; ++r) sum[r] = _mm256_setzero_ps();
  size_t left = w.groups;
  for (size_t b = 0; b < w.blocks; ++b) {
    const size_t count = left < w.groups_per_block ? left : w.groups_per_block;
    left -= count;
    __m256i dot[kRows];
    for (size_t r = 0; r < kRows; ++r) {
      dot[r] = _mm256_set1_epi32(a.bias[(i + r) * w.blocks + b]);
    }
    for (size_t g = 0; g < count; ++g) {
      const __m256i v0 = load(v), v1 = load(v + 64), v2 = load(v + 128);
      const __m256i c[8] = {
          _mm256_and_si256(v0, seven), _mm256_and_si256(_mm256_srli_epi16(v0, 3), seven),
          _mm256_and_si256(v1, seven), _mm256_and_si256(_mm256_srli_epi16(v1, 3), seven),
          _mm256_and_si256(v2, seven), _mm256_and_si256(_mm256_srli_epi16(v2, 3), seven),
          code6(v0, v1),               code7(v1, v2),
      };
#pragma GCC unroll 4
      for (size_t r = 0; r < kRows; ++r) {
        const int8_t* p = q + r * stride;
        __m256i pairs = _mm256_maddubs_epi16(c[0], four(p));
#pragma GCC unroll 8
        for (size_t j = 1; j < 8; ++j) {
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(c[j], four(p + 4 * j)));
        }
        dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      }
      v += kGroupBytes;
      q += kGroup;
    }
    const __m256 s = scales(sw);
    for (size_t r = 0; r < kRows; ++r) {
      sum[r] = add_block(sum[r], dot[r], s, a.scales[(i + r) * w.blocks + b]);
    }
    sw += kTileRows;
  }
  for (size_t r = 0; r < kRows; ++r) {
    store(w, tile * kTileRows + 8 * half, sum[r], y + (i + r) * w.n);
  }
}

void matmul(const Packed& w, const Activations& a, size_t first, size_t last, float* y) {
  for (size_t tile = first; tile < last; ++tile) {
    size_t i = 0;
    for (; i + kRows <= a.m; i += kRows) {
      several_rows(w, a, i, tile, 0, y);
      if (tile * kTileRows + 8 < w.n) several_rows(w, a, i, tile, 1, y);
    }
    for (; i < a.m; ++i) one_row(w, a, i, tile, y);
  }
}

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

const Kernel kAvx2 = {"avx2", supported, quantize_row, matmul};

}  // namespace edgebench
