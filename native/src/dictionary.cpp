// From the planes of a dictionary to what the kernels of DictionaryUpdate read, and the kernel for
// any processor, which the others must match bit for bit.

#include "edgebench/dictionary.h"

#include <math.h>

#include "edgebench/int3.h"
#include "kernels.h"
#include "update_row.h"

namespace edgebench {
namespace {

size_t ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }

// 2^(smooth / 16), rounded to nearest.
float power(int smooth) {
  static const float sixteenths[16] = {
      0x1.000000p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,
      0x1.306fe0p+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
      0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
      0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f,
  };
  const int shifted = smooth + 128;  // 0..255: the whole part of the exponent is 8 too large
  return sixteenths[shifted % 16] * static_cast<float>(1 << shifted / 16) * 0x1p-8f;
}

// Every third bit of 24, from the low one on, takes one of the byte's bits; the low plane's two.
struct Thirds {
  uint32_t low[256], high[256];
  Thirds() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      low[byte] = high[byte] = 0;
      for (uint32_t i = 0; i < 8; ++i) high[byte] |= (byte >> i & 1) << (3 * i + 2);
      for (uint32_t i = 0; i < 4; ++i) low[byte] |= (byte >> 2 * i & 3) << 3 * i;
    }
  }
};

}  // namespace

AtomsSize atoms_size(const DictionaryPlanes& planes) {
  const size_t words = ceil_div(planes.k, kWordCodes);
  return {planes.atoms * words * kWordBytes + 1, planes.atoms * ceil_div(planes.k, planes.block),
          words * kWordCodes};
}

Atoms pack_atoms(const DictionaryPlanes& planes, uint8_t* codes, float* scales, float* powers) {
  static const Thirds thirds;
  const size_t words = ceil_div(planes.k, kWordCodes), blocks = ceil_div(planes.k, planes.block);
  const size_t count = planes.atoms * words;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = thirds.low[planes.low[2 * i]] | thirds.low[planes.low[2 * i + 1]] << 12 |
                          thirds.high[planes.high[i]];
    for (size_t t = 0; t < kWordBytes; ++t) {
      codes[i * kWordBytes + t] = static_cast<uint8_t>(bits >> 8 * t);
    }
  }
  codes[count * kWordBytes] = 0;
  for (size_t i = 0; i < planes.atoms * blocks; ++i) scales[i] = half_to_float(planes.scales[i]);
  for (size_t i = 0; i < words * kWordCodes; ++i) {
    powers[i] = i < planes.k ? power(planes.smooth[i]) : 0;
  }
  return {codes, scales, powers, planes.atoms, planes.k, planes.block, words, blocks};
}

void update_scalar(const Atoms& d, const uint32_t* indices, const int8_t* coefficients,
                   size_t count, const float* x, float* y) {
  float squares[kWordCodes] = {0}, dots[kWordCodes] = {0};
  for (size_t i = 0; i < d.k; ++i) {
    float sum = 0;
    for (size_t j = 0; j < count; ++j) {
      const size_t atom = indices[j];
      const float step = coefficients[j] * d.scales[atom * d.blocks + i / d.block];
      sum += step * kUniformLevels[word(d, atom, i / kWordCodes) >> 3 * (i % kWordCodes) & 7];
    }
    const float r = sum * d.powers[i];
    y[i] = r;
    squares[i % kWordCodes] = fmaf(r, r, squares[i % kWordCodes]);
    dots[i % kWordCodes] = fmaf(r, x[i], dots[i % kWordCodes]);
  }
  const float times = factor(d, squares, dots);
  for (size_t i = 0; i < d.k; ++i) y[i] *= times;
}

}  // namespace edgebench
