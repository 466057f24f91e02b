// Every kernel that this processor runs against the scalar one, bit for bit, and the scalar one
// against X W^T in double, within the bound that int3.h states. No framework: a failure prints what
// it saw and the program exits 1. Arrays are allocated at their exact sizes, so that a sanitizer
// sees a byte too far. Usage: kernel_test [seed [cases]]

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <random>
#include <vector>

#include "edgebench/int3.h"

using namespace edgebench;

namespace {

int failures = 0, checks = 0;

struct Case {
  size_t m, n, k, block;
};

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

struct Matrix {
  Case shape;
  std::vector<uint8_t> low, high;
  std::vector<uint16_t> scales;
  Planes planes() const {
    return {low.data(), high.data(), scales.data(), shape.n, shape.k, shape.block, kUniformLevels};
  }
};

template <class Random>
Matrix random_matrix(const Case& c, Random& random) {
  Matrix w{c, {}, {}, {}};
  w.low.resize(c.n * 2 * ceil_div(c.k, 8));
  w.high.resize(c.n * ceil_div(c.k, 8));
  w.scales.resize(c.n * ceil_div(c.k, c.block));
  for (auto& byte : w.low) byte = static_cast<uint8_t>(random());
  for (auto& byte : w.high) byte = static_cast<uint8_t>(random());
  // Any finite half: normal, subnormal, zero, of both signs.
  for (auto& s : w.scales) s = static_cast<uint16_t>(random() % 0x7c00 | (random() & 0x8000));
  return w;
}

// Sixty-four-byte aligned storage of exactly so many bytes.
struct Aligned {
  void* p = nullptr;
  explicit Aligned(size_t bytes) {
    if (posix_memalign(&p, 64, bytes ? bytes : 1) != 0) abort();
    memset(p, 0, bytes ? bytes : 1);
  }
  ~Aligned() { free(p); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
};

struct Held {
  PackedSize size;
  Aligned codes, scales;
  Packed packed;
  explicit Held(const Planes& w)
      : size(packed_size(w.n, w.k, w.block)),
        codes(size.code_bytes),
        scales(size.scale_count * 2),
        packed(pack(w, static_cast<uint8_t*>(codes.p), static_cast<uint16_t*>(scales.p))) {}
};

struct Rounded {
  std::vector<int8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> bias;
  Rounded(const Kernel& kernel, const Packed& w, const std::vector<float>& x, size_t m)
      : values(m * w.groups * kGroup, 99), scales(m * w.blocks), bias(m * w.blocks) {
    for (size_t i = 0; i < m; ++i) {
      kernel.quantize_row(w, x.data() + i * w.k, values.data() + i * w.groups * kGroup,
                          scales.data() + i * w.blocks, bias.data() + i * w.blocks);
    }
  }
  Activations view(size_t m) const { return {values.data(), scales.data(), bias.data(), m}; }
};

void fail(const char* what, const char* kernel, const Case& c, size_t at, double got, double want) {
  if (++failures <= 20) {
    printf("FAIL %s: %s at %zu: %.9g, expected %.9g (m %zu n %zu k %zu block %zu)\n", kernel, what,
           at, got, want, c.m, c.n, c.k, c.block);
  }
}

bool same(float a, float b) {
  return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

std::vector<float> run(const Kernel& kernel, const Packed& w, const std::vector<float>& x,
                       size_t m) {
  const Rounded rounded(kernel, w, x, m);
  std::vector<float> y(m * w.n, -1e30f);
  // In two parts, as two threads would.
  const size_t middle = w.tiles / 2;
  kernel.matmul(w, rounded.view(m), 0, middle, y.data());
  kernel.matmul(w, rounded.view(m), middle, w.tiles, y.data());
  return y;
}

// The scalar kernel's error bound: int8 rounding of the activations, float's rounding of each
// block's term and of the running sum, and blocks too small for a normal scale.
void check_bound(const Planes& w, const std::vector<float>& x, size_t m,
                 const std::vector<float>& y) {
  const Case c{m, w.n, w.k, w.block};
  std::vector<float> row(w.k);
  const size_t blocks = ceil_div(w.k, w.block);
  for (size_t n = 0; n < w.n; ++n) {
    decode_row(w, n, row.data());
    for (size_t i = 0; i < m; ++i) {
      double exact = 0, bound = 0, magnitude = 0;
      for (size_t b = 0; b < blocks; ++b) {
        double largest = 0, sum = 0;
        for (size_t k = b * w.block; k < w.k && k < (b + 1) * w.block; ++k) {
          const double xk = x[i * w.k + k];
          largest = fmax(largest, fabs(xk));
          exact += xk * row[k];
          sum += fabs(static_cast<double>(row[k]));
        }
        bound += (largest / 127 / 2 * 1.0001 + 0x1p-126 * 127) * sum;
        magnitude += largest * sum;
      }
      bound += magnitude * static_cast<double>(blocks + 4) * 0x1p-23 + 1e-38;
      ++checks;
      const double got = y[i * w.n + n];
      if (!(fabs(got - exact) <= bound)) {
        fail("beyond the int8 bound", "scalar", c, i * w.n + n, got, exact);
      }
    }
  }
}

void check(const Case& c, const Matrix& matrix, const std::vector<float>& x, bool finite) {
  const Planes planes = matrix.planes();
  const Held held(planes);
  const std::vector<float> want = run(*choose("scalar"), held.packed, x, c.m);
  if (finite) check_bound(planes, x, c.m, want);
  size_t count;
  const Kernel* all = kernels(&count);
  for (size_t e = 0; e < count; ++e) {
    if (!all[e].supported()) continue;
    const Rounded ours(all[e], held.packed, x, c.m), theirs(*choose("scalar"), held.packed, x, c.m);
    ++checks;
    if (ours.values != theirs.values || ours.bias != theirs.bias) {
      fail("rounded activations differ", all[e].name, c, 0, 0, 0);
    }
    const std::vector<float> got = run(all[e], held.packed, x, c.m);
    for (size_t i = 0; i < got.size(); ++i) {
      ++checks;
      if (!same(got[i], want[i])) fail("differs from scalar", all[e].name, c, i, got[i], want[i]);
    }
  }
}

std::vector<float> activations(const Case& c, std::mt19937& random, float scale) {
  std::vector<float> x(c.m * c.k);
  std::normal_distribution<float> normal;
  for (auto& value : x) value = normal(random) * scale;
  return x;
}

void check_reference(const Case& c, std::mt19937& random) {
  const Matrix matrix = random_matrix(c, random);
  const Planes w = matrix.planes();
  const std::vector<float> x = activations(c, random, 1);
  std::vector<float> y(c.m * c.n), scratch(c.k);
  reference(w, x.data(), c.m, 0, c.n, y.data(), scratch.data());
  for (size_t n = 0; n < c.n; ++n) {
    decode_row(w, n, scratch.data());
    for (size_t i = 0; i < c.m; ++i) {
      double exact = 0, magnitude = 0;
      for (size_t k = 0; k < c.k; ++k) {
        exact += static_cast<double>(x[i * c.k + k]) * scratch[k];
        magnitude += fabs(static_cast<double>(x[i * c.k + k]) * scratch[k]);
      }
      ++checks;
      const double got = y[i * c.n + n];
      if (!(fabs(got - exact) <= magnitude * static_cast<double>(c.k) * 0x1p-24 + 1e-38)) {
        fail("float reference", "reference", c, i * c.n + n, got, exact);
      }
    }
  }
}

// DictionaryUpdate: every kernel with the bits of the scalar one, and that one against double
// arithmetic straight from the planes, within the bound that dictionary.h states.
void check_update(size_t atoms, size_t k, size_t block, size_t count, float scale, bool finite,
                  std::mt19937& random) {
  Matrix matrix = random_matrix({1, atoms, k, block}, random);
  if (!finite) matrix.scales[random() % matrix.scales.size()] = random() % 2 ? 0x7c00 : 0x7e01;
  std::vector<int8_t> smooth(k), coefficients(count);
  std::vector<uint32_t> indices(count);
  for (auto& s : smooth) s = static_cast<int8_t>(random());
  for (auto& c : coefficients) c = static_cast<int8_t>(random() % 9 == 0 ? 0 : random());
  for (auto& i : indices) i = static_cast<uint32_t>(random() % atoms);
  const std::vector<float> x = activations({1, 1, k, block}, random, scale);
  const Planes w = matrix.planes();
  const DictionaryPlanes planes{w.low, w.high, w.scales, smooth.data(), atoms, k, block};
  const AtomsSize size = atoms_size(planes);
  std::vector<uint8_t> codes(size.code_bytes);
  std::vector<float> scales(size.scale_count), powers(size.power_count);
  const Atoms d = pack_atoms(planes, codes.data(), scales.data(), powers.data());
  const Case c{count, atoms, k, block};
  std::vector<float> want(k, 7), got(k, 8);
  choose("scalar")->update(d, indices.data(), coefficients.data(), count, x.data(), want.data());
  size_t compiled;
  const Kernel* all = kernels(&compiled);
  for (size_t e = 0; e < compiled; ++e) {
    if (!all[e].supported()) continue;
    all[e].update(d, indices.data(), coefficients.data(), count, x.data(), got.data());
    for (size_t i = 0; i < k; ++i) {
      ++checks;
      if (!same(got[i], want[i])) fail("update differs", all[e].name, c, i, got[i], want[i]);
    }
  }
  if (!finite) return;
  std::vector<double> r(k, 0);
  double whole = 0, norm = 0, dot = 0, squares = 0;
  std::vector<float> row(k);
  std::vector<double> all_of(k, 0);
  for (size_t j = 0; j < count; ++j) {
    decode_row(w, indices[j], row.data());
    for (size_t i = 0; i < k; ++i) {
      const double term = coefficients[j] * (row[i] * exp2(smooth[i] / 16.0));
      r[i] += term;
      all_of[i] += fabs(term);
    }
  }
  for (size_t i = 0; i < k; ++i) {
    whole += all_of[i] * all_of[i];
    norm += r[i] * r[i];
    dot += r[i] * x[i];
    squares += static_cast<double>(x[i]) * x[i];
  }
  const double u = 0x1p-24, kappa = norm > 0 ? sqrt(whole / norm) : 1;
  if (norm > 0 && (u * kappa * (count + 4.0) > 1e-3 || norm < 1e-28)) return;  // no bound is stated
  const double rest = 2.0 * k + 8 + 8 * kappa * (count + 4.0);
  const double bound = u * sqrt(squares / k) * rest + 1e-37;
  for (size_t i = 0; i < k; ++i) {
    ++checks;
    const double exact = norm > 0 ? r[i] * dot / (norm * sqrt(static_cast<double>(k))) : 0;
    if (!(fabs(want[i] - exact) <= bound)) fail("update", "scalar", c, i, want[i], exact);
  }
}

void check_halves() {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const int exponent = bits >> 10 & 31;
    const double fraction = bits & 1023;
    const double sign = bits & 0x8000 ? -1 : 1;
    const float got = half_to_float(static_cast<uint16_t>(bits));
    ++checks;
    if (exponent == 31) {
      if (fraction != 0 ? !isnan(got) : got != static_cast<float>(sign * INFINITY)) {
        fail("half", "half", {}, bits, got, 0);
      }
      continue;
    }
    const double want = exponent == 0 ? sign * ldexp(fraction, -24)
                                      : sign * ldexp(1024 + fraction, exponent - 25);
    if (got != static_cast<float>(want)) fail("half", "half", {}, bits, got, want);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned seed = argc > 1 ? static_cast<unsigned>(atoi(argv[1])) : 1;
  const int cases = argc > 2 ? atoi(argv[2]) : 60;
  std::mt19937 random(seed);
  check_halves();

  const size_t blocks[] = {32, 64, 96, 128, 256, 1024};
  auto below = [&](size_t limit) { return 1 + static_cast<size_t>(random()) % limit; };
  for (int i = 0; i < cases; ++i) {
    const Case c{i % 8 == 0 ? below(512) : below(9), below(i % 8 == 0 ? 40 : 150),
                 below(i % 8 == 0 ? 300 : 1200), blocks[random() % 6]};
    const float scales[] = {1, 1e-3f, 1e30f, 1e-36f, 1e-42f};
    check(c, random_matrix(c, random), activations(c, random, scales[i % 5]), true);
  }
  // The ends: one of everything, M = 512, and shapes around a tile, a group and a row of registers.
  const Case edges[] = {{1, 1, 1, 32},    {512, 3, 31, 32},  {1, 16, 32, 32},   {4, 17, 33, 32},
                        {5, 15, 64, 128}, {3, 8, 4097, 128}, {2, 9, 256, 256},  {7, 24, 257, 64},
                        {1, 4, 160, 64},  {6, 12, 95, 1024}, {511, 20, 40, 32}, {1, 300, 768, 32},
                        // Many rows go through stretches of columns, and through slabs of rows.
                        {16, 20, 513, 32}, {67, 17, 1100, 96}, {70, 9, 2050, 1024},
                        {130, 33, 1025, 64}};
  for (const Case& c : edges) {
    check(c, random_matrix(c, random), activations(c, random, 1), true);
  }
  // Saturation: every code and every activation at its extreme, in all signs, over large blocks.
  for (const int high : {0, 255}) {
    for (const int low : {0, 255}) {
      for (const float sign : {1.0f, -1.0f}) {
        const Case c{sign > 0 ? size_t{5} : size_t{21}, 33, 1030, 256};
        Matrix w = random_matrix(c, random);
        for (auto& byte : w.low) byte = static_cast<uint8_t>(low);
        for (auto& byte : w.high) byte = static_cast<uint8_t>(high);
        for (auto& s : w.scales) s = 0x3c00;
        check(c, w, std::vector<float>(c.m * c.k, 3.0f * sign), true);
      }
    }
  }
  // NaN and infinity, in activations and in scales: the same outputs in every kernel.
  for (int i = 0; i < 12; ++i) {
    const Case c{below(6), below(40), below(300), blocks[random() % 3]};
    Matrix w = random_matrix(c, random);
    std::vector<float> x = activations(c, random, 1);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    if (i % 2) {
      x[random() % x.size()] = bad[i % 3];
    } else {
      w.scales[random() % w.scales.size()] = static_cast<uint16_t>(i % 4 ? 0x7c00 : 0x7e01);
    }
    check(c, w, x, false);
    if (i % 2) {
      const Held held(w.planes());
      const std::vector<float> y = run(*choose("scalar"), held.packed, x, c.m);
      bool any = false;
      for (float value : y) any = any || isnan(value);
      ++checks;
      if (!any) fail("a NaN activation was lost", "scalar", c, 0, 0, NAN);
    }
  }
  for (const size_t block : {1, 7, 16, 24, 32, 100}) check_reference({3, 11, 53, block}, random);

  const size_t any_block[] = {1, 5, 8, 32, 100, 128, 1024};
  for (int i = 0; i < 10 * cases; ++i) {
    check_update(below(60), below(i % 4 ? 300 : 1500), any_block[random() % 7], random() % 6,
                 i % 3 ? 1.0f : 1e-3f, i % 5 != 0, random);
  }

  size_t count;
  const Kernel* all = kernels(&count);
  printf("kernels:");
  for (size_t e = 0; e < count; ++e) {
    printf(" %s%s", all[e].name, all[e].supported() ? "" : "(not run here)");
  }
  printf("\nchosen: %s\n%d checks, %d failures\n", choose(nullptr)->name, checks, failures);
  return failures ? 1 : 0;
}
