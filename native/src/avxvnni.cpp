// x86-64 with AVX-VNNI (Alder Lake and later): dpbusd on registers of 32 bytes, half a tile each.
// The arithmetic is avx512vnni.cpp's; EDGEBENCH_SIMDE as there.

#ifdef EDGEBENCH_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
// AVX-VNNI and AVX-512 VL name one operation differently.
#define DPBUSD _mm256_dpbusd_epi32
#else
#include <immintrin.h>
#define DPBUSD _mm256_dpbusd_avx_epi32
#endif

#include "kernels.h"
#include "quantize_row.h"

namespace edgebench {
namespace {

constexpr size_t kRows = 2;

inline __attribute__((always_inline)) __m256i load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

inline __attribute__((always_inline)) __m256i four(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, sizeof bytes);
  return _mm256_set1_epi32(bytes);
}

template <size_t rows>
void some_rows(const Packed& w, const Activations& a, size_t i, size_t tile, size_t half,
               float* y) {
  const __m256i seven = _mm256_set1_epi8(7), eights = _mm256_set1_epi8(0x38);
  const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(4);
  const uint8_t* v = w.codes + tile * w.groups * kGroupBytes + 32 * half;
  const uint16_t* sw = w.scales + tile * w.blocks * kTileRows + 8 * half;
  const size_t stride = w.groups * kGroup;
  const int8_t* q = a.values + i * stride;
  __m256 sum[rows];
  for (size_t r = 0; r < rows; ++r) sum[r] = _mm256_setzero_ps();
  size_t left = w.groups;
  for (size_t b = 0; b < w.blocks; ++b) {
    const size_t count = left < w.groups_per_block ? left : w.groups_per_block;
    left -= count;
    __m256i even[rows], odd[rows];
    for (size_t r = 0; r < rows; ++r) {
      even[r] = _mm256_set1_epi32(a.bias[(i + r) * w.blocks + b]);
      odd[r] = _mm256_setzero_si256();
    }
    for (size_t g = 0; g < count; ++g) {
      __builtin_prefetch(v + 2048);
      __builtin_prefetch(v + 2048 + 64);
      __builtin_prefetch(v + 2048 + 128);
      const __m256i v0 = load(v), v1 = load(v + 64), v2 = load(v + 128);
      const __m256i c6 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v0, 6), low),
                                         _mm256_and_si256(_mm256_srli_epi16(v1, 4), high));
      const __m256i c7 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v2, 6), low),
                                         _mm256_and_si256(_mm256_srli_epi16(v1, 5), high));
#pragma GCC unroll 2
      for (size_t r = 0; r < rows; ++r) {
        const int8_t* p = q + r * stride;
        even[r] = DPBUSD(even[r], _mm256_and_si256(v0, seven), four(p));
        odd[r] = DPBUSD(odd[r], _mm256_and_si256(v0, eights), four(p + 4));
        even[r] = DPBUSD(even[r], _mm256_and_si256(v1, seven), four(p + 8));
        odd[r] = DPBUSD(odd[r], _mm256_and_si256(v1, eights), four(p + 12));
        even[r] = DPBUSD(even[r], _mm256_and_si256(v2, seven), four(p + 16));
        odd[r] = DPBUSD(odd[r], _mm256_and_si256(v2, eights), four(p + 20));
        even[r] = DPBUSD(even[r], c6, four(p + 24));
        even[r] = DPBUSD(even[r], c7, four(p + 28));
      }
      v += kGroupBytes;
      q += kGroup;
    }
    const __m256 s = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sw)));
    for (size_t r = 0; r < rows; ++r) {
      const __m256i dot = _mm256_add_epi32(even[r], _mm256_srai_epi32(odd[r], 3));
      sum[r] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dot), s),
                               _mm256_set1_ps(a.scales[(i + r) * w.blocks + b]), sum[r]);
    }
    sw += kTileRows;
  }
  const size_t row = tile * kTileRows + 8 * half;
  for (size_t r = 0; r < rows; ++r) {
    float* to = y + (i + r) * w.n + row;
    if (row + 8 <= w.n) {
      _mm256_storeu_ps(to, sum[r]);
    } else {
      float lanes[8];
      _mm256_storeu_ps(lanes, sum[r]);
      for (size_t lane = 0; row + lane < w.n; ++lane) to[lane] = lanes[lane];
    }
  }
}

void matmul(const Packed& w, const Activations& a, size_t first, size_t last, float* y) {
  for (size_t tile = first; tile < last; ++tile) {
    for (size_t half = 0; half < 2 && tile * kTileRows + 8 * half < w.n; ++half) {
      size_t i = 0;
      for (; i + kRows <= a.m; i += kRows) some_rows<kRows>(w, a, i, tile, half, y);
      for (; i < a.m; ++i) some_rows<1>(w, a, i, tile, half, y);
    }
  }
}

bool supported() {
#ifdef EDGEBENCH_SIMDE
  return true;
#else
  return __builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
}

}  // namespace

const Kernel kAvxVnni = {"avxvnni", supported, quantize_row, matmul, update_avx2};

}  // namespace edgebench
