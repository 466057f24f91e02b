// edgebench::DictionaryUpdate: a rank-one update whose direction is put together from a few atoms
// of a dictionary in three bits (edgebench/adapters/dictionary_op.py has the op and its body).
//
//     r = sum_j coefficients[j] * D[indices[j]]
//     Y = r (r . X) / (||r||^2 sqrt(K)), 0 where r is 0
//     D[m, i] = scales[m, i / block] * 2^(smooth[i] / 16) * code[m, i]
//
// Held: eight codes are 24 bits of one little-endian word, code i at bit 3 i: three bits a weight
// again. A coefficient times a scale makes the eight values that a block's codes may stand for, and
// what runs is a look-up in that table of eight.
//
// Arithmetic, the same to the last bit in every kernel. int8 times fp16 times three bits is exact
// in fp32, and the atoms are added in their order, then multiplied by the power. ||r||^2 and r . X
// are eight sums each, one for the columns of each remainder modulo 8, by fma; those are added as
// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
//
// Against exact arithmetic, with u = 2^-24, k atoms and kappa = || sum_j |c_j D_j| || / ||r|| (1
// where nothing cancels), as long as u kappa (k + 4) is below 1e-3,
//     |Y - exact| <= u ||X|| / sqrt(K) * (2 K + 8 + 8 kappa (k + 4)).

#ifndef EDGEBENCH_DICTIONARY_H
#define EDGEBENCH_DICTIONARY_H

#include <stddef.h>
#include <stdint.h>

namespace edgebench {

constexpr size_t kWordCodes = 8;
constexpr size_t kWordBytes = 3;

// The dictionary as a model file holds it.
struct DictionaryPlanes {
  const uint8_t* low;
  const uint8_t* high;
  const uint16_t* scales;
  const int8_t* smooth;
  size_t atoms, k, block;
};

// The dictionary as the kernels read it.
struct Atoms {
  const uint8_t* codes;  // [atoms][words][kWordBytes], and a byte more, as words are read as four
  const float* scales;   // [atoms][blocks]
  const float* powers;   // [words * kWordCodes], 0 past k
  size_t atoms, k, block, words, blocks;
};

struct AtomsSize {
  size_t code_bytes, scale_count, power_count;
};
AtomsSize atoms_size(const DictionaryPlanes& planes);

// Fills the three arrays, of atoms_size.
Atoms pack_atoms(const DictionaryPlanes& planes, uint8_t* codes, float* scales, float* powers);

// The update y [k] of one token x [k], from `count` atoms; indices are below d.atoms, and y and x
// are different memory.
typedef void (*UpdateRow)(const Atoms& d, const uint32_t* indices, const int8_t* coefficients,
                          size_t count, const float* x, float* y);

}  // namespace edgebench

#endif
