// The arithmetic, compiled once for each instruction set with KERNEL, LANES and REGISTERS given.
//
// W is read in blocks of rows that stay in the cache for both products:
//   few rows of x:  H = X · blockᵀ by dot products along W's rows, which are contiguous;
//   more rows of x: the block is transposed into a buffer once, and H = X · buffer;
// then H = gain · f(H + hidden_bias), and Y += H · block. Only one block's H ever exists.
#include "activations.h"
#include "tied_ffn.h"
#include "vector.h"

namespace {

using weightspace::Activation;
using weightspace::Piece;
using weightspace::TiedFFN;

// Accumulators fill the registers, with a few left for operands.
#if REGISTERS == 32 && LANES == 16
constexpr size_t kTileRows = 12, kTileVectors = 2, kDotRows = 6;
#elif REGISTERS == 32
constexpr size_t kTileRows = 8, kTileVectors = 2, kDotRows = 6;
#else
constexpr size_t kTileRows = 6, kTileVectors = 2, kDotRows = 2;
#endif
constexpr size_t kTileColumns = kTileVectors * LANES;
constexpr size_t kTransposeFrom = 24;  // rows of x that repay transposing a block
constexpr size_t kMostHidden = 64;     // rows of W in a block
constexpr size_t kMostRows = 24;       // rows of x that are taken through a block together
constexpr size_t kFloatsInCache = 48 * 1024;   // for a block in the second-level cache
constexpr size_t kFloatsNearby = 3 * 1024;     // for a block in the first-level cache
constexpr size_t kLine = 16;                   // floats in a cache line

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
inline size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// For one row of x, the floats of a row of W that are taken at a time: with fewer, the addresses of
// the rows, which are more than there are registers for them, are loaded as often as the floats.
constexpr size_t kStretch = REGISTERS == 32 && LANES < 16 ? 8 * LANES : 4 * LANES;

template <size_t N>
using Constant = std::integral_constant<size_t, N>;

// Call f with n, at most N, as a constant.
template <size_t N, class F>
inline void with_constant(size_t n, F f) {
  if (n == N) {
    f(Constant<N>{});
  } else if constexpr (N > 1) {
    with_constant<N - 1>(n, f);
  }
}

// The strides are in floats. `columns` counts the last vector's, where it is not full.
template <size_t M, size_t V>
inline void multiply_add_tile(const float* a, size_t lda, const float* b, size_t ldb, size_t depth,
                              float* c, size_t ldc, size_t columns) {
  Vector sum[M][V];
  UNROLL for (size_t m = 0; m < M; m++) UNROLL for (size_t v = 0; v < V; v++)
    sum[m][v] = columns == LANES ? load(c + m * ldc + v * LANES) : load_part(c + m * ldc, columns);
  auto step = [&](size_t k, auto factor_of) __attribute__((always_inline)) {
    Vector row[V];
    UNROLL for (size_t v = 0; v < V; v++) row[v] = load(b + k * ldb + v * LANES);
    UNROLL for (size_t m = 0; m < M; m++) {
      Vector factor = broadcast(factor_of(m));
      UNROLL for (size_t v = 0; v < V; v++) sum[m][v] += factor * row[v];
    }
  };
  size_t k = 0;
#if defined(__aarch64__)  // multiplies by a lane of a register, so that one load serves four steps
  for (; k + LANES <= depth; k += LANES) {
    Vector factors[M];
    UNROLL for (size_t m = 0; m < M; m++) factors[m] = load(a + m * lda + k);
    UNROLL for (size_t lane = 0; lane < LANES; lane++)
      step(k + lane, [&](size_t m) { return factors[m][lane]; });
  }
#endif
  for (; k < depth; k++) step(k, [&](size_t m) { return a[m * lda + k]; });
  UNROLL for (size_t m = 0; m < M; m++) UNROLL for (size_t v = 0; v < V; v++) {
    if (columns == LANES) {
      store(c + m * ldc + v * LANES, sum[m][v]);
    } else {
      store_part(c + m * ldc, sum[m][v], columns);
    }
  }
}

// C[rows, V vectors] += A[rows, depth] · B[depth, V vectors].
template <size_t V>
inline void multiply_add(size_t rows, const float* a, size_t lda, const float* b, size_t ldb,
                         size_t depth, float* c, size_t ldc, size_t columns = LANES) {
  size_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows)
    multiply_add_tile<kTileRows, V>(a + m * lda, lda, b, ldb, depth, c + m * ldc, ldc, columns);
  with_constant<kTileRows - 1>(rows - m, [&](auto left) {
    multiply_add_tile<left, V>(a + m * lda, lda, b, ldb, depth, c + m * ldc, ldc, columns);
  });
}

// The columns of a matrix that do not fill a vector, as rows of one vector, filled up with zeros.
inline void pack_tail(const float* from, size_t rows, size_t dim, float* to) {
  const size_t tail = dim % LANES;
  for (size_t i = 0; tail && i < rows; i++)
    store(to + i * LANES, load_part(from + i * dim + dim - tail, tail));
}

struct Matrix {
  const float* rows;
  const float* tail;  // of pack_tail; not read where the columns fill their vectors
};

inline void prefetch_stretch(const float* from) {
  UNROLL for (size_t i = 0; i < kStretch; i += kLine) prefetch(from + i);
}

// H[m, n] = x_m · w_n for M rows of x and N rows of W. Fetches F of the N rows at `ahead`, if any.
template <size_t M, size_t N, size_t F = N>
inline void dot_tile(Matrix x, Matrix w, size_t dim, float* h, size_t ldh, const float* ahead) {
  Vector sum[M][N] = {};
  auto step = [&](const float* xs, size_t ldx, const float* ws, size_t ldw) __attribute__((always_inline)) {
    Vector row[N];
    UNROLL for (size_t n = 0; n < N; n++) row[n] = load(ws + n * ldw);
    UNROLL for (size_t m = 0; m < M; m++) {
      Vector other = load(xs + m * ldx);
      UNROLL for (size_t n = 0; n < N; n++) sum[m][n] += other * row[n];
    }
  };
  size_t k = 0;
  for (; M == 1 && k + kStretch <= dim; k += kStretch) {
    Vector other[kStretch / LANES];
    UNROLL for (size_t i = 0; i < kStretch / LANES; i++) other[i] = load(x.rows + k + i * LANES);
    UNROLL for (size_t n = 0; n < N; n++) {
      UNROLL for (size_t i = 0; i < kStretch / LANES; i++)
        sum[0][n] += other[i] * load(w.rows + n * dim + k + i * LANES);
      if (n < F && ahead) prefetch_stretch(ahead + k * F + n * kStretch);
    }
  }
  for (; k + kLine <= dim; k += kLine) {
    UNROLL for (size_t i = 0; i < kLine; i += LANES) step(x.rows + k + i, dim, w.rows + k + i, dim);
    if (ahead) UNROLL for (size_t n = 0; n < F; n++) prefetch(ahead + n * dim + k);
  }
  for (; k + LANES <= dim; k += LANES) step(x.rows + k, dim, w.rows + k, dim);
  if (k < dim) step(x.tail, LANES, w.tail, LANES);
  UNROLL for (size_t m = 0; m < M; m++) {
    if constexpr (N % 4 == 0) {
      UNROLL for (size_t n = 0; n < N; n += 4)
        store_sums(h + m * ldh + n, sum[m][n], sum[m][n + 1], sum[m][n + 2], sum[m][n + 3]);
    } else {
      UNROLL for (size_t n = 0; n < N; n++) h[m * ldh + n] = sum_of(sum[m][n]);
    }
  }
}

template <size_t N>
inline void dots(size_t rows, Matrix x, Matrix w, size_t dim, float* h, size_t ldh,
                 const float* ahead) {
  size_t m = 0;
  for (; m + kDotRows <= rows; m += kDotRows, ahead = nullptr)
    dot_tile<kDotRows, N>({x.rows + m * dim, x.tail + m * LANES}, w, dim, h + m * ldh, ldh, ahead);
  with_constant<kDotRows - 1>(rows - m, [&](auto left) {
    dot_tile<left, N>({x.rows + m * dim, x.tail + m * LANES}, w, dim, h + m * ldh, ldh, ahead);
  });
}

// For one row of x, the second product of N rows of W: y += h_n w_n. Fetches what dot_tile left.
template <size_t N, size_t F>
inline void add_rows(const float* h, const float* w, size_t dim, float* y, const float* ahead) {
  Vector factor[N];
  UNROLL for (size_t n = 0; n < N; n++) factor[n] = broadcast(h[n]);
  size_t k = 0;
  for (; k + kStretch <= dim; k += kStretch) {
    Vector sum[kStretch / LANES];
    UNROLL for (size_t i = 0; i < kStretch / LANES; i++) sum[i] = load(y + k + i * LANES);
    UNROLL for (size_t n = 0; n < N; n++) {
      UNROLL for (size_t i = 0; i < kStretch / LANES; i++)
        sum[i] += factor[n] * load(w + n * dim + k + i * LANES);
      if (n >= F && ahead) prefetch_stretch(ahead + F * dim + k * (N - F) + (n - F) * kStretch);
    }
    UNROLL for (size_t i = 0; i < kStretch / LANES; i++) store(y + k + i * LANES, sum[i]);
  }
  for (; k + LANES <= dim; k += LANES) {
    Vector sum = load(y + k);
    UNROLL for (size_t n = 0; n < N; n++) sum += factor[n] * load(w + n * dim + k);
    store(y + k, sum);
  }
}

// Write a block's columns as rows of kTileColumns, panel after panel; the last is filled with zeros.
inline void transpose_block(const float* block, size_t rows, size_t dim, float* panels) {
  for (size_t n = 0; n < rows; n += LANES) {
    float* to = panels + n / kTileColumns * kTileColumns * dim + n % kTileColumns;
    const float* from = block + n * dim;
    size_t filled = smaller(rows - n, LANES), k = 0;
    if (filled == LANES)
      for (; k + LANES <= dim; k += LANES) transpose(from + k, dim, to + k * kTileColumns, kTileColumns);
    for (; k < dim; k++)
      for (size_t i = 0; i < LANES; i++)
        to[k * kTileColumns + i] = i < filled ? from[i * dim + k] : 0.0f;
  }
}

template <class F>
inline void activate(F f, float* h, size_t rows, size_t columns, size_t ldh, const float* bias,
                     const float* gain) {
  for (size_t m = 0; m < rows; m++)
    for (size_t n = 0; n < columns; n += LANES)
      store(h + m * ldh + n, f(load(h + m * ldh + n) + load(bias + n)) * load(gain + n));
}

inline void activate(Activation activation, float* h, size_t rows, size_t columns, size_t ldh,
                     const float* bias, const float* gain) {
  switch (activation) {
    case Activation::gelu: return activate(Gelu{}, h, rows, columns, ldh, bias, gain);
    case Activation::gelu_tanh: return activate(GeluTanh{}, h, rows, columns, ldh, bias, gain);
    case Activation::relu: return activate(Relu{}, h, rows, columns, ldh, bias, gain);
    case Activation::silu: return activate(Silu{}, h, rows, columns, ldh, bias, gain);
  }
}

// Buffers of one thread, cut from one allocation.
struct Buffers {
  float *h, *hidden_bias, *gain, *x_tail, *w_tail, *panels, *wide;
};

class Pass {
 public:
  Pass(const TiedFFN& ffn, const Piece& piece)
      : ffn_(ffn),
        piece_(piece),
        rows_(piece.last_row - piece.first_row),
        transposes_(rows_ >= kTransposeFrom),
        x_(ffn.x + piece.first_row * ffn.dim) {
    size_t room = (rows_ == 1 ? kFloatsNearby : kFloatsInCache) / ffn.dim;
    size_t least = rows_ == 1 ? 8 : kTileColumns;
    block_ = smaller(kMostHidden, room < least ? least : room / least * least);
    ldh_ = round_up(block_, kTileColumns);
  }

  bool allocate() {
    size_t chunk = smaller(rows_, kMostRows + kTileRows), total = 0;
    auto take = [&](size_t floats) {
      size_t start = total;
      total += round_up(floats, kLine);
      return start;
    };
    size_t vector = piece_.last_hidden - piece_.first_hidden + LANES;
    size_t h = take(chunk * ldh_), hidden_bias = take(vector), gain = take(vector);
    size_t x_tail = take(transposes_ ? 0 : rows_ * LANES), w_tail = take(block_ * LANES);
    size_t panels = take(transposes_ ? ldh_ * ffn_.dim : 0);
    size_t wide = take(ffn_.half_weight ? block_ * ffn_.dim : 0);
    float* base = weightspace::thread_buffer(weightspace::Use::piece, total);
    if (!base) return false;
    to_ = {base + h,      base + hidden_bias, base + gain, base + x_tail,
           base + w_tail, base + panels,      base + wide};
    return true;
  }

  void run() {
    if (!transposes_) pack_tail(x_, rows_, ffn_.dim, to_.x_tail);
    fill(to_.hidden_bias, ffn_.hidden_bias, 0.0f);
    fill(to_.gain, ffn_.gain, 1.0f);
    for (size_t i = piece_.first_hidden; i < piece_.last_hidden; i += block_)
      add_block(i, smaller(block_, piece_.last_hidden - i));
  }

 private:
  void add_block(size_t first, size_t count) {
    // Beyond this piece too: the next one may well be this thread's.
    const bool more = first + 2 * block_ <= ffn_.hidden;
    Matrix w{block(first, count, more), to_.w_tail};
    pack_tail(w.rows, count, ffn_.dim, to_.w_tail);
    if (transposes_) transpose_block(w.rows, count, ffn_.dim, to_.panels);
    const bool fetches = more && !ffn_.half_weight;
    if (rows_ == 1)
      return add_block_for_one_row(w, first, count, fetches ? w.rows + block_ * ffn_.dim : nullptr);
    for (size_t m = 0, rows; m < rows_; m += rows) {
      // A short rest joins the chunk before it.
      rows = rows_ - m <= kMostRows + kTileRows ? rows_ - m : kMostRows;
      if (transposes_) {
        multiply_panels(m, rows, count);
      } else {
        dot_rows<4>(w, m, rows, count, fetches ? w.rows + 4 * ffn_.dim : nullptr);
      }
      activate_block(first, rows, count);
      add_product(w, m, rows, count);
    }
  }

  void add_block_for_one_row(Matrix w, size_t first, size_t count, const float* ahead) {
    constexpr size_t together = 8, half = together / 2;
    const size_t dim = ffn_.dim, whole = count / together * together;
    const Matrix x{x_, to_.x_tail};
    for (size_t n = 0; n < whole; n += together)
      dot_tile<1, together, half>(x, {w.rows + n * dim, w.tail + n * LANES}, dim, to_.h + n, ldh_,
                                  ahead ? ahead + n * dim : nullptr);
    for (size_t n = whole; n < count; n++)
      dot_tile<1, 1>(x, {w.rows + n * dim, w.tail + n * LANES}, dim, to_.h + n, ldh_, nullptr);
    activate_block(first, 1, count);
    for (size_t n = 0; n < whole; n += together)
      add_rows<together, half>(to_.h + n, w.rows + n * dim, dim, piece_.y,
                               ahead ? ahead + n * dim : nullptr);
    // The rows, and the columns, that fill no group.
    for (size_t k = 0; whole < count && k + LANES <= dim; k += LANES)
      multiply_add_tile<1, 1>(to_.h + whole, ldh_, w.rows + whole * dim + k, dim, count - whole,
                              piece_.y + k, dim, LANES);
    add_tail(w, 0, 1, count);
  }

  const float* block(size_t first, size_t count, bool more) const {
    if (!ffn_.half_weight) return static_cast<const float*>(ffn_.weight) + first * ffn_.dim;
    const uint16_t* half = static_cast<const uint16_t*>(ffn_.weight) + first * ffn_.dim;
    size_t all = count * ffn_.dim, i = 0;
    for (; i + 2 * kLine <= all; i += 2 * kLine) {  // a cache line of halves
      prefetch(half + (more ? all : 0) + i);
      UNROLL for (size_t j = 0; j < 2 * kLine; j += LANES) store(to_.wide + i + j, widen(half + i + j));
    }
    for (; i + LANES <= all; i += LANES) store(to_.wide + i, widen(half + i));
    if (i < all) {
      uint16_t rest[LANES] = {};
      std::memcpy(rest, half + i, (all - i) * sizeof(uint16_t));
      store_part(to_.wide + i, widen(rest), all - i);
    }
    return to_.wide;
  }

  // The piece's part of a vector, or a value where there is none; with room for a vector behind.
  void fill(float* to, const float* from, float value) const {
    const size_t first = piece_.first_hidden, count = piece_.last_hidden - first;
    for (size_t i = 0; i < count; i++) to[i] = from ? from[first + i] : value;
    for (size_t i = count; i < count + LANES; i++) to[i] = 0.0f;
  }

  void activate_block(size_t first, size_t rows, size_t count) {
    const size_t i = first - piece_.first_hidden;
    activate(ffn_.activation, to_.h, rows, count, ldh_, to_.hidden_bias + i, to_.gain + i);
  }

  void multiply_panels(size_t m, size_t rows, size_t count) {
    for (size_t i = 0; i < rows * ldh_; i++) to_.h[i] = 0.0f;
    for (size_t n = 0; n < count; n += kTileColumns)
      multiply_add<kTileVectors>(rows, x_ + m * ffn_.dim, ffn_.dim, to_.panels + n * ffn_.dim,
                                 kTileColumns, ffn_.dim, to_.h + n, ldh_);
  }

  template <size_t N>
  void dot_rows(Matrix w, size_t m, size_t rows, size_t count, const float* ahead) {
    const size_t dim = ffn_.dim;
    Matrix x{x_ + m * dim, to_.x_tail + m * LANES};
    size_t n = 0;
    for (; n + N <= count; n += N)
      dots<N>(rows, x, {w.rows + n * dim, w.tail + n * LANES}, dim, to_.h + n, ldh_,
              ahead ? ahead + n * dim : nullptr);
    for (; n < count; n++)
      dots<1>(rows, x, {w.rows + n * dim, w.tail + n * LANES}, dim, to_.h + n, ldh_, nullptr);
  }

  void add_product(Matrix w, size_t m, size_t rows, size_t count) {
    const size_t dim = ffn_.dim;
    float* y = piece_.y + m * dim;
    size_t k = 0;
    for (; k + kTileColumns <= dim; k += kTileColumns)
      multiply_add<kTileVectors>(rows, to_.h, ldh_, w.rows + k, dim, count, y + k, dim);
    for (; k + LANES <= dim; k += LANES)
      multiply_add<1>(rows, to_.h, ldh_, w.rows + k, dim, count, y + k, dim);
    add_tail(w, m, rows, count);
  }

  void add_tail(Matrix w, size_t m, size_t rows, size_t count) {
    const size_t dim = ffn_.dim, tail = dim % LANES;
    float* y = piece_.y + m * dim + dim - tail;
    if (tail) multiply_add<1>(rows, to_.h, ldh_, w.tail, LANES, count, y, dim, tail);
  }

  const TiedFFN& ffn_;
  const Piece& piece_;
  const size_t rows_;
  const bool transposes_;
  const float* x_;
  size_t block_, ldh_;
  Buffers to_{};
};

bool add_piece(const TiedFFN& ffn, const Piece& piece) {
  Pass pass(ffn, piece);
  if (!pass.allocate()) return false;
  pass.run();
  return true;
}

void add(float* sum, const float* terms, size_t count) {
  size_t i = 0;
  for (; i + LANES <= count; i += LANES) store(sum + i, load(sum + i) + load(terms + i));
  for (; i < count; i++) sum[i] += terms[i];
}

bool runs_here() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return true;
#endif
}

#define QUOTE_(text) #text
#define QUOTE(text) QUOTE_(text)
}  // namespace

namespace weightspace {
extern const Kernel KERNEL;
const Kernel KERNEL{QUOTE(KERNEL), runs_here, add_piece, add};
}  // namespace weightspace
