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
          __asm__("" : "+x"(pairs));
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

// Many rows of activations: a stretch of a tile is decoded once, into the first-level cache, and a
// slab of rows is multiplied by it. With the decoding gone from the inner loop, registers are free
// for sums of a whole tile, so that each broadcast of activations serves 16 rows of weights.
constexpr size_t kStretch = 16;  // groups: 8 KB decoded
constexpr size_t kSlab = 64;     // rows: 4 KB each of sums and of dots
constexpr size_t kMany = 16;     // rows from which this is faster

struct alignas(64) Slab {
  uint8_t codes[kStretch][8][64];
  float sums[kSlab][kTileRows];
  int32_t dots[kSlab][kTileRows];  // of a block that goes on into the next stretch
};

void decode(const uint8_t* v, uint8_t* to) {
  const __m256i seven = _mm256_set1_epi8(7);
  for (size_t half = 0; half < 2; ++half, v += 32, to += 32) {
    const __m256i v0 = load(v), v1 = load(v + 64), v2 = load(v + 128);
    const __m256i c[8] = {
        _mm256_and_si256(v0, seven), _mm256_and_si256(_mm256_srli_epi16(v0, 3), seven),
        _mm256_and_si256(v1, seven), _mm256_and_si256(_mm256_srli_epi16(v1, 3), seven),
        _mm256_and_si256(v2, seven), _mm256_and_si256(_mm256_srli_epi16(v2, 3), seven),
        code6(v0, v1),               code7(v1, v2),
    };
    for (size_t j = 0; j < 8; ++j) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 64 * j), c[j]);
    }
  }
}

// dot + the sums of one or two groups; 28,448 is the most that a 16-bit sum of two reaches.
template <size_t groups>
inline __attribute__((always_inline)) void decoded(__m256i (&dot)[kRows][2], const uint8_t* c,
                                                   const int8_t* q, size_t stride) {
  __m256i pairs[kRows][2];
#pragma GCC unroll 16
  for (size_t j = 0; j < 8 * groups; ++j) {
    const __m256i low = load(c + 64 * j), high = load(c + 64 * j + 32);
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) {
      const __m256i x = four(q + r * stride + 4 * j);
      const __m256i a = _mm256_maddubs_epi16(low, x), b = _mm256_maddubs_epi16(high, x);
      pairs[r][0] = j == 0 ? a : _mm256_add_epi16(pairs[r][0], a);
      pairs[r][1] = j == 0 ? b : _mm256_add_epi16(pairs[r][1], b);
      // Keeps the order of the sums: as a tree they would take more registers than there are.
      __asm__("" : "+x"(pairs[r][0]), "+x"(pairs[r][1]));
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (size_t r = 0; r < kRows; ++r) {
    dot[r][0] = _mm256_add_epi32(dot[r][0], _mm256_madd_epi16(pairs[r][0], ones));
    dot[r][1] = _mm256_add_epi32(dot[r][1], _mm256_madd_epi16(pairs[r][1], ones));
  }
}

// kRows rows from i of the activations, at `row` of the slab, times the groups first <= g < last.
void stretch(const Packed& w, const Activations& a, size_t i, size_t row, size_t tile, size_t first,
             size_t last, Slab& slab) {
  const size_t columns = w.groups * kGroup;
  const int8_t* q = a.values + i * columns + first * kGroup;
  const uint8_t* c = slab.codes[0][0];
  // Counted on, not divided anew: a division takes as long as a group.
  size_t b = first / w.groups_per_block, begin = b * w.groups_per_block;
  for (size_t g = first; g < last; ++b, begin += w.groups_per_block) {
    size_t end = begin + w.groups_per_block;
    const bool goes_on = end > last && last < w.groups;
    if (end > last) end = last;
    __m256i dot[kRows][2];
    if (g == begin) {
      for (size_t r = 0; r < kRows; ++r) {
        dot[r][0] = dot[r][1] = _mm256_set1_epi32(a.bias[(i + r) * w.blocks + b]);
      }
    } else {
      for (size_t r = 0; r < kRows; ++r) {
        dot[r][0] = load(slab.dots[row + r]);
        dot[r][1] = load(slab.dots[row + r] + 8);
      }
    }
    for (; g + 2 <= end; g += 2, c += 1024, q += 2 * kGroup) decoded<2>(dot, c, q, columns);
    for (; g < end; ++g, c += 512, q += kGroup) decoded<1>(dot, c, q, columns);
    if (goes_on) {
      for (size_t r = 0; r < kRows; ++r) {
        int32_t* to = slab.dots[row + r];
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), dot[r][0]);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + 8), dot[r][1]);
      }
      return;
    }
    const uint16_t* sw = w.scales + (tile * w.blocks + b) * kTileRows;
    const __m256 low = scales(sw), high = scales(sw + 8);
    for (size_t r = 0; r < kRows; ++r) {
      const float sa = a.scales[(i + r) * w.blocks + b];
      float* sum = slab.sums[row + r];
      _mm256_store_ps(sum, add_block(_mm256_load_ps(sum), dot[r][0], low, sa));
      _mm256_store_ps(sum + 8, add_block(_mm256_load_ps(sum + 8), dot[r][1], high, sa));
    }
  }
}

// `count` rows of activations from i, a multiple of kRows and at most kSlab, and a tile.
void slab_of_rows(const Packed& w, const Activations& a, size_t i, size_t count, size_t tile,
                  Slab& slab, float* y) {
  __builtin_memset(slab.sums, 0, count * sizeof slab.sums[0]);
  for (size_t g = 0; g < w.groups; g += kStretch) {
    const size_t last = g + kStretch < w.groups ? g + kStretch : w.groups;
    for (size_t at = g; at < last; ++at) {
      decode(w.codes + (tile * w.groups + at) * kGroupBytes, slab.codes[at - g][0]);
    }
    for (size_t row = 0; row < count; row += kRows) {
      stretch(w, a, i + row, row, tile, g, last, slab);
    }
  }
  for (size_t row = 0; row < count; ++row) {
    for (size_t half = 0; half < 2 && tile * kTileRows + 8 * half < w.n; ++half) {
      store(w, tile * kTileRows + 8 * half, _mm256_load_ps(slab.sums[row] + 8 * half),
            y + (i + row) * w.n);
    }
  }
}

void matmul(const Packed& w, const Activations& a, size_t first, size_t last, float* y) {
  Slab slab;
  for (size_t tile = first; tile < last; ++tile) {
    size_t i = 0;
    while (i + kMany <= a.m) {
      const size_t count = a.m - i < kSlab ? (a.m - i) / kRows * kRows : kSlab;
      slab_of_rows(w, a, i, count, tile, slab, y);
      i += count;
    }
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

const Kernel kAvx2 = {"avx2", supported, quantize_row, matmul, update_avx2};

}  // namespace edgebench
