// Three-bit weight matrices: how they are stored, how they are held, and who multiplies by them.
//
// Stored (edgebench/quantize/packing.py): a code is a two's complement integer of three bits,
//     low  [N, K8/4] bytes    bits 0 and 1 of four codes
//     high [N, K8/8] bytes    bit 2 of eight codes                    K8: K rounded up to 8
//     scales [N, ceil(K / block)] fp16,    W[n, k] = scales[n, k / block] * code[n, k]
//
// Held ("packed", made once a matrix): tiles of 16 rows x 32 columns in three vectors of 64 bytes.
// Byte 4 r + t of a vector belongs to row r and to column 4 c + t of the code vector c = 0..7:
//     V0 = c0 | c1 << 3 | (c6 & 3) << 6
//     V1 = c2 | c3 << 3 | (c6 >> 2) << 6 | (c7 >> 2) << 7
//     V2 = c4 | c5 << 3 | (c7 & 3) << 6
// with c = code + 4, so 0..7. That is three bits a weight again. A 32-bit lane of a code vector is
// four columns of one row: what dot-product instructions take, and what a broadcast of four
// activations meets. The offset of 4 is taken out by starting each block's sum at -4 sum(a).
//
// Arithmetic, the same to the last bit in every kernel. With q the activations of a block rounded
// to int8 and sa = max|x| / 127 their scale,
//     Y = sum over blocks of fma(float(sum of c q - 4 sum of q) * sw, sa, .)      in block order.
// The integer sums are exact. What rounding to int8 costs: |Y - X W^T| <= sum over blocks of
// sa / 2 * sum |W|, besides float's own rounding.
//
// Everything here is plain data: the kernels' files are compiled for instruction sets that this
// machine may lack, so they share no inline function with the others.

#ifndef EDGEBENCH_INT3_H
#define EDGEBENCH_INT3_H

#include <stddef.h>
#include <stdint.h>

#include "edgebench/dictionary.h"

namespace edgebench {

constexpr size_t kTileRows = 16;
constexpr size_t kGroup = 32;
constexpr size_t kGroupBytes = 192;
constexpr size_t kLevels = 8;

// The weights as a model file holds them. levels[i] is the value of the three bits i.
struct Planes {
  const uint8_t* low;
  const uint8_t* high;
  const uint16_t* scales;
  size_t n, k, block;
  const float* levels;
};

// A two's complement integer of three bits: the levels of a model that names none.
extern const float kUniformLevels[kLevels];

// The weights as the kernels read them. Rows past n and columns past k have code and scale 0.
struct Packed {
  const uint8_t* codes;    // [tiles][groups][kGroupBytes], 64-byte aligned
  const uint16_t* scales;  // [tiles][blocks][kTileRows], fp16, 64-byte aligned
  size_t n, k;
  size_t tiles, groups, blocks, groups_per_block;
};

// Activations of m rows, one scale a block of weights, columns padded with 0 to whole groups.
struct Activations {
  const int8_t* values;  // [m][groups * kGroup]
  const float* scales;   // [m][blocks]; NaN where the block holds a NaN or an infinity
  const int32_t* bias;   // [m][blocks]: -4 sum(values)
  size_t m;
};

// Rounds one row of k floats; the three outputs are one row of Activations.
typedef void (*QuantizeRow)(const Packed& w, const float* x, int8_t* values, float* scales,
                            int32_t* bias);

// y[m][n] for the columns of y that belong to the tiles first <= tile < last.
typedef void (*MatMul)(const Packed& w, const Activations& a, size_t first, size_t last, float* y);

struct Kernel {
  const char* name;
  bool (*supported)();  // whether this processor and its system run it
  QuantizeRow quantize_row;
  MatMul matmul;
  UpdateRow update;
};

// The kernels compiled in, the fastest first; the last is scalar, which runs everywhere.
const Kernel* kernels(size_t* count);

// The fastest kernel that this processor runs; with a name, that one, or null where there is none.
const Kernel* choose(const char* name);

// Whether weights of this block size can be packed (whole groups); others go through `reference`.
bool packable(size_t block);

struct PackedSize {
  size_t code_bytes, scale_count;
};
PackedSize packed_size(size_t n, size_t k, size_t block);

// Fills codes and scales, of packed_size and zeroed; needs the uniform levels and packable(block).
Packed pack(const Planes& planes, uint8_t* codes, uint16_t* scales);

// One row of the matrix as floats, exactly: fp16 times a small integer needs no rounding.
void decode_row(const Planes& planes, size_t row, float* w);

// Y = X W^T in float for the output columns first <= n < last, straight from the planes: slow, for
// what cannot be packed. scratch holds k floats.
void reference(const Planes& planes, const float* x, size_t m, size_t first, size_t last, float* y,
               float* scratch);

float half_to_float(uint16_t half);

}  // namespace edgebench

#endif
