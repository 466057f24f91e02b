// x86-64 with AVX-512 VNNI (Ice Lake, Zen 4 and later): a code vector of a tile is one register.
//
// dpbusd adds four products of u8 x i8 to 32 bits without saturating, so the three odd code vectors
// are all taken where they lie, 8 times too large, into a sum of their own that is shifted once a
// block.
//
// With EDGEBENCH_SIMDE the instructions are SIMDe's portable functions: so the arithmetic is tested
// on processors that lack them.

#ifdef EDGEBENCH_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif

#include "kernels.h"
#include "quantize_row.h"

namespace edgebench {
namespace {

constexpr size_t kRows = 4;

#ifdef EDGEBENCH_SIMDE
// What SIMDe 0.7.4 lacks, and its fmadd, which rounds twice.
inline __m512 to_float(__m512i v) {
  int32_t lanes[kTileRows];
  float floats[kTileRows];
  _mm512_storeu_si512(lanes, v);
  for (size_t lane = 0; lane < kTileRows; ++lane) floats[lane] = static_cast<float>(lanes[lane]);
  return _mm512_loadu_ps(floats);
}

inline __m512i eighth(__m512i v) {
  int32_t lanes[kTileRows];
  _mm512_storeu_si512(lanes, v);
  for (int32_t& lane : lanes) lane >>= 3;
  return _mm512_loadu_si512(lanes);
}

inline __m512 fused(__m512 a, float b, __m512 c) {
  float x[kTileRows], z[kTileRows];
  _mm512_storeu_ps(x, a);
  _mm512_storeu_ps(z, c);
  for (size_t lane = 0; lane < kTileRows; ++lane) z[lane] = __builtin_fmaf(x[lane], b, z[lane]);
  return _mm512_loadu_ps(z);
}

inline __m512 widen(const uint16_t* halves) {
  float floats[kTileRows];
  for (size_t lane = 0; lane < kTileRows; ++lane) floats[lane] = half_to_float(halves[lane]);
  return _mm512_loadu_ps(floats);
}
#else
inline __attribute__((always_inline)) __m512 to_float(__m512i v) { return _mm512_cvtepi32_ps(v); }

inline __attribute__((always_inline)) __m512i eighth(__m512i v) { return _mm512_srai_epi32(v, 3); }

inline __attribute__((always_inline)) __m512 fused(__m512 a, float b, __m512 c) {
  return _mm512_fmadd_ps(a, _mm512_set1_ps(b), c);
}

inline __attribute__((always_inline)) __m512 widen(const uint16_t* halves) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}
#endif

inline __attribute__((always_inline)) __m512i four(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

struct Codes {
  __m512i c[8];  // 1, 3 and 5 are eight times the code
};

inline __attribute__((always_inline)) Codes unpack(const uint8_t* v) {
  const __m512i v0 = _mm512_loadu_si512(v), v1 = _mm512_loadu_si512(v + 64),
                v2 = _mm512_loadu_si512(v + 128);
  const __m512i seven = _mm512_set1_epi8(7), eights = _mm512_set1_epi8(0x38);
  const __m512i low = _mm512_set1_epi8(3), high = _mm512_set1_epi8(4);
  return {{
      _mm512_and_si512(v0, seven),
      _mm512_and_si512(v0, eights),
      _mm512_and_si512(v1, seven),
      _mm512_and_si512(v1, eights),
      _mm512_and_si512(v2, seven),
      _mm512_and_si512(v2, eights),
      _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(v0, 6), low),
                      _mm512_and_si512(_mm512_srli_epi16(v1, 4), high)),
      _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(v2, 6), low),
                      _mm512_and_si512(_mm512_srli_epi16(v1, 5), high)),
  }};
}

inline __attribute__((always_inline)) void group(const Codes& codes, const int8_t* q, __m512i& even,
                                                 __m512i& odd) {
  even = _mm512_dpbusd_epi32(even, codes.c[0], four(q));
  odd = _mm512_dpbusd_epi32(odd, codes.c[1], four(q + 4));
  even = _mm512_dpbusd_epi32(even, codes.c[2], four(q + 8));
  odd = _mm512_dpbusd_epi32(odd, codes.c[3], four(q + 12));
  even = _mm512_dpbusd_epi32(even, codes.c[4], four(q + 16));
  odd = _mm512_dpbusd_epi32(odd, codes.c[5], four(q + 20));
  even = _mm512_dpbusd_epi32(even, codes.c[6], four(q + 24));
  even = _mm512_dpbusd_epi32(even, codes.c[7], four(q + 28));
}

template <size_t rows>
void some_rows(const Packed& w, const Activations& a, size_t i, size_t tile, float* y) {
  const uint8_t* v = w.codes + tile * w.groups * kGroupBytes;
  const uint16_t* sw = w.scales + tile * w.blocks * kTileRows;
  const size_t stride = w.groups * kGroup;
  const int8_t* q = a.values + i * stride;
  __m512 sum[rows];
  for (size_t r = 0; r < rows; ++r) sum[r] = _mm512_setzero_ps();
  size_t left = w.groups;
  for (size_t b = 0; b < w.blocks; ++b) {
    const size_t count = left < w.groups_per_block ? left : w.groups_per_block;
    left -= count;
    __m512i even[rows], odd[rows];
    for (size_t r = 0; r < rows; ++r) {
      even[r] = _mm512_set1_epi32(a.bias[(i + r) * w.blocks + b]);
      odd[r] = _mm512_setzero_si512();
    }
    for (size_t g = 0; g < count; ++g) {
      __builtin_prefetch(v + 2048);
      __builtin_prefetch(v + 2048 + 64);
      __builtin_prefetch(v + 2048 + 128);
      const Codes codes = unpack(v);
#pragma GCC unroll 4
      for (size_t r = 0; r < rows; ++r) group(codes, q + r * stride, even[r], odd[r]);
      v += kGroupBytes;
      q += kGroup;
    }
    const __m512 s = widen(sw);
    for (size_t r = 0; r < rows; ++r) {
      const __m512i dot = _mm512_add_epi32(even[r], eighth(odd[r]));
      sum[r] = fused(_mm512_mul_ps(to_float(dot), s), a.scales[(i + r) * w.blocks + b], sum[r]);
    }
    sw += kTileRows;
  }
  const size_t row = tile * kTileRows;
  for (size_t r = 0; r < rows; ++r) {
    float* to = y + (i + r) * w.n + row;
    if (row + kTileRows <= w.n) {
      _mm512_storeu_ps(to, sum[r]);
    } else {
      float lanes[kTileRows];
      _mm512_storeu_ps(lanes, sum[r]);
      for (size_t lane = 0; row + lane < w.n; ++lane) to[lane] = lanes[lane];
    }
  }
}

void matmul(const Packed& w, const Activations& a, size_t first, size_t last, float* y) {
  for (size_t tile = first; tile < last; ++tile) {
    size_t i = 0;
    for (; i + kRows <= a.m; i += kRows) some_rows<kRows>(w, a, i, tile, y);
    for (; i < a.m; ++i) some_rows<1>(w, a, i, tile, y);
  }
}

bool supported() {
#ifdef EDGEBENCH_SIMDE
  return true;
#else
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("f16c");
#endif
}

}  // namespace

const Kernel kAvx512Vnni = {"avx512vnni", supported, quantize_row, matmul, update_avx2};

}  // namespace edgebench
