// DictionaryUpdate with AVX2: eight codes are one word, shifted by 0, 3, .. 21 in the eight lanes,
// whose lowest three bits then index the block's table of eight values (vpermps looks at no other).

#include <immintrin.h>

#include "edgebench/int3.h"
#include "kernels.h"
#include "update_row.h"

namespace edgebench {
namespace {

inline __attribute__((always_inline)) __m256 look_up(__m256 table, uint32_t codes) {
  const __m256i shifts = _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21);
  const __m256i wide = _mm256_set1_epi32(static_cast<int>(codes));
  return _mm256_permutevar8x32_ps(table, _mm256_srlv_epi32(wide, shifts));
}

}  // namespace

void update_avx2(const Atoms& d, const uint32_t* indices, const int8_t* coefficients, size_t count,
                 const float* x, float* y) {
  // Blocks that end within a word, and the small rows of none, are no work worth a second way.
  if (d.block % kWordCodes != 0 || d.k < kWordCodes) {
    update_scalar(d, indices, coefficients, count, x, y);
    return;
  }
  const __m256 levels = _mm256_loadu_ps(kUniformLevels);
  const size_t whole = d.k / kWordCodes, per_block = d.block / kWordCodes;
  // The last word's columns, of which y may not have all.
  float end_x[kWordCodes], end_r[kWordCodes];
  rest(d, x, end_x);
  const auto at = [&](size_t w) { return w < whole ? y + w * kWordCodes : end_r; };
  __m256 squares = _mm256_setzero_ps(), dots = _mm256_setzero_ps();
  for (size_t b = 0; b < d.blocks; ++b) {
    const size_t first = b * per_block;
    const size_t last = d.words - first < per_block ? d.words : first + per_block;
    for (size_t w = first; w < last; ++w) _mm256_storeu_ps(at(w), _mm256_setzero_ps());
    for (size_t j = 0; j < count; ++j) {
      const size_t atom = indices[j];
      const float step = coefficients[j] * d.scales[atom * d.blocks + b];
      const __m256 table = _mm256_mul_ps(_mm256_set1_ps(step), levels);
      for (size_t w = first; w < last; ++w) {
        const __m256 value = look_up(table, word(d, atom, w));
        _mm256_storeu_ps(at(w), _mm256_add_ps(_mm256_loadu_ps(at(w)), value));
      }
    }
    for (size_t w = first; w < last; ++w) {
      const __m256 power = _mm256_loadu_ps(d.powers + w * kWordCodes);
      const __m256 r = _mm256_mul_ps(_mm256_loadu_ps(at(w)), power);
      const __m256 from = _mm256_loadu_ps(w < whole ? x + w * kWordCodes : end_x);
      _mm256_storeu_ps(at(w), r);
      squares = _mm256_fmadd_ps(r, r, squares);
      dots = _mm256_fmadd_ps(r, from, dots);
    }
  }
  float s[kWordCodes], t[kWordCodes];
  _mm256_storeu_ps(s, squares);
  _mm256_storeu_ps(t, dots);
  const float times = factor(d, s, t);
  const __m256 wide = _mm256_set1_ps(times);
  for (size_t w = 0; w < whole; ++w) {
    float* to = y + w * kWordCodes;
    _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_loadu_ps(to), wide));
  }
  for (size_t i = whole * kWordCodes; i < d.k; ++i) y[i] = end_r[i % kWordCodes] * times;
}

}  // namespace edgebench
