// What the kernels of DictionaryUpdate share: the ends of rows and of sums, with the same bits in
// all of them. Included by every kernel's file and compiled there for its instruction set, hence
// static.

#ifndef EDGEBENCH_UPDATE_ROW_H
#define EDGEBENCH_UPDATE_ROW_H

#include <math.h>
#include <string.h>

#include "edgebench/dictionary.h"

namespace edgebench {

// Eight codes of an atom.
static inline uint32_t word(const Atoms& d, size_t atom, size_t index) {
  uint32_t bits;
  memcpy(&bits, d.codes + (atom * d.words + index) * kWordBytes, sizeof bits);
  return bits;
}

// The last columns of a row, zeros after them.
static inline void rest(const Atoms& d, const float* row, float* eight) {
  const size_t begin = d.k / kWordCodes * kWordCodes;
  memset(eight, 0, kWordCodes * sizeof(float));
  memcpy(eight, row + begin, (d.k - begin) * sizeof(float));
}

static inline float total(const float* s) {
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

// What r is multiplied by, from the eight partial sums of ||r||^2 and of r . x.
static inline float factor(const Atoms& d, const float* squares, const float* dots) {
  const float norm = total(squares);
  // As the body does: a norm that is not a number stays so.
  const float least = norm < 1e-30f ? 1e-30f : norm;
  return total(dots) / (least * sqrtf(static_cast<float>(d.k)));
}

}  // namespace edgebench

#endif
