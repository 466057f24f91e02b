// From the planes of a model file to the tiles of the kernels, and the plain arithmetic on planes.

#include <string.h>

#include "edgebench/int3.h"

namespace edgebench {

const float kUniformLevels[kLevels] = {0, 1, 2, 3, -4, -3, -2, -1};

namespace {

size_t ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }

// The three bits of one code: two's complement, so the code itself modulo 8.
unsigned bits_of(const Planes& planes, size_t row, size_t column) {
  const size_t low_stride = 2 * ceil_div(planes.k, 8), high_stride = ceil_div(planes.k, 8);
  const unsigned low = planes.low[row * low_stride + column / 4] >> 2 * (column % 4) & 3;
  const unsigned high = planes.high[row * high_stride + column / 8] >> column % 8 & 1;
  return low | high << 2;
}

// Four codes of two bits, and four of the third, spread over the bytes of a word.
struct Spread {
  uint32_t low[256], high[16];
  Spread() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      low[byte] = (byte & 3) | (byte & 12) << 6 | (byte & 48) << 12 | (byte & 192) << 18;
    }
    for (uint32_t nibble = 0; nibble < 16; ++nibble) {
      high[nibble] =
          (nibble & 1) << 2 | (nibble & 2) << 9 | (nibble & 4) << 16 | (nibble & 8) << 23;
    }
  }
};

void put(uint8_t* to, uint32_t word) {
  for (int t = 0; t < 4; ++t) to[t] = static_cast<uint8_t>(word >> 8 * t);
}

}  // namespace

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  uint32_t bits;
  if (exponent == 31) {
    // A NaN comes out quiet, as the processors' own conversions make it.
    bits = sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0);
  } else if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
  } else {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  }
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

bool packable(size_t block) { return block > 0 && block % kGroup == 0; }

PackedSize packed_size(size_t n, size_t k, size_t block) {
  const size_t tiles = ceil_div(n, kTileRows);
  return {tiles * ceil_div(k, kGroup) * kGroupBytes, tiles * ceil_div(k, block) * kTileRows};
}

Packed pack(const Planes& planes, uint8_t* codes, uint16_t* scales) {
  Packed w;
  w.codes = codes;
  w.scales = scales;
  w.n = planes.n;
  w.k = planes.k;
  w.tiles = ceil_div(planes.n, kTileRows);
  w.groups = ceil_div(planes.k, kGroup);
  w.blocks = ceil_div(planes.k, planes.block);
  w.groups_per_block = planes.block / kGroup;
  static const Spread spread;
  const size_t stride = ceil_div(planes.k, 8);
  for (size_t row = 0; row < planes.n; ++row) {
    const size_t tile = row / kTileRows, lane = row % kTileRows;
    for (size_t b = 0; b < w.blocks; ++b) {
      scales[(tile * w.blocks + b) * kTileRows + lane] = planes.scales[row * w.blocks + b];
    }
    for (size_t group = 0; group < w.groups; ++group) {
      // Past the row's bytes codes are 0; past k the activations are, so that these do not matter.
      uint8_t low[8] = {0}, high[4] = {0};
      const size_t bytes = stride - 4 * group < 4 ? stride - 4 * group : 4;
      memcpy(low, planes.low + 2 * (row * stride + 4 * group), 2 * bytes);
      memcpy(high, planes.high + row * stride + 4 * group, bytes);
      uint32_t c[8];
      for (size_t j = 0; j < 8; ++j) {
        // code + 4, modulo 8: the third bit the other way round.
        c[j] = (spread.low[low[j]] | spread.high[high[j / 2] >> 4 * (j % 2) & 15]) ^ 0x04040404;
      }
      uint8_t* v = codes + (tile * w.groups + group) * kGroupBytes + 4 * lane;
      put(v, c[0] | c[1] << 3 | (c[6] & 0x03030303) << 6);
      put(v + 64, c[2] | c[3] << 3 | (c[6] & 0x04040404) << 4 | (c[7] & 0x04040404) << 5);
      put(v + 128, c[4] | c[5] << 3 | (c[7] & 0x03030303) << 6);
    }
  }
  return w;
}

void decode_row(const Planes& planes, size_t row, float* w) {
  const size_t blocks = ceil_div(planes.k, planes.block);
  for (size_t b = 0; b < blocks; ++b) {
    const float scale = half_to_float(planes.scales[row * blocks + b]);
    const size_t begin = b * planes.block;
    const size_t end = planes.k - begin < planes.block ? planes.k : begin + planes.block;
    for (size_t column = begin; column < end; ++column) {
      w[column] = planes.levels[bits_of(planes, row, column)] * scale;
    }
  }
}

void reference(const Planes& planes, const float* x, size_t m, size_t first, size_t last, float* y,
               float* scratch) {
  for (size_t row = first; row < last; ++row) {
    decode_row(planes, row, scratch);
    for (size_t i = 0; i < m; ++i) {
      float sum = 0;
      for (size_t column = 0; column < planes.k; ++column) {
        sum += x[i * planes.k + column] * scratch[column];
      }
      y[i * planes.n + row] = sum;
    }
  }
}

}  // namespace edgebench
