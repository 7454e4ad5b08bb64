// A row of logits as the contract sees it: its support, its softcap, its temperature. Included by
// token_log_probs-inl.h, inside the namespace of its instruction set.

constexpr double kLog2e = 1.44269504088896340736;
constexpr double kLn2 = 0.69314718055994530942;

template <class T>
struct Row {
  const T* z;
  int64_t begin, end;   // contiguous support
  const int32_t* kept;  // or the kept ids
  int64_t num_kept;
  Softcap softcap;  // to y, before the temperature
  // What multiplies y (or z) to give x, and the same in units of log2.
  double factor;
  float scale;

  int64_t size() const { return kept ? num_kept : end - begin; }
  // Values that must be gathered or squashed first go through chunks of floats.
  bool has_softcap() const { return softcap.cap != 0; }
  bool direct() const { return !kept && !has_softcap(); }
  int64_t chunks() const { return (size() + kChunk - 1) / kChunk; }
  int chunk_size(int64_t at) const {
    const int64_t left = size() - at * kChunk;
    return (int)(left < kChunk ? left : kChunk);
  }

  // What is exponentiated is factor * (value - reference). As chunks hold it: rounded to float.
  double value(int64_t id) const {
    const double v = (double)to_float(z[id]);
    return has_softcap() ? (double)(float)squashed(v) : v;
  }
  double squashed(double v) const {
    vdouble y, slope;
    squash(softcap, vdouble{} + v, y, slope);
    return y[0];
  }
  bool supports(int64_t id) const {
    if (!kept) return id >= begin && id < end;
    for (int64_t i = 0; i < num_kept; ++i) {
      if (kept[i] == id) return true;
    }
    return false;
  }

  // Elements [from, from + n) of the support as floats; `out` holds n rounded up to a pack.
  void gather(int64_t from, int n, float* out) const {
    if (kept) {
      for (int i = 0; i < n; ++i) out[i] = to_float(z[kept[from + i]]);
    } else {
      const T* source = z + begin + from;
      int i = 0;
      for (; i + kPack <= n; i += kPack) unpack(source + i, out + i);
      if (i < n) {
        T tail[kPack];
        pad_pack(tail, source + i, n - i, source[i]);
        unpack(tail, out + i);
      }
    }
    if (has_softcap()) {
      for (int i = 0; i < n; i += kLanes) {
        vfloat y, slope;
        squash(softcap, load<vfloat>(out + i), y, slope);
        store(out + i, y);
      }
    }
  }

  int segments() const { return chunks() < kSegments ? (int)chunks() : kSegments; }

  // A reference for every segment to begin with: the maximum of the first chunk.
  float seed() const {
    if (direct()) return max_of(z + begin, chunk_size(0));
    float first[kChunk + kPack];
    gather(0, chunk_size(0), first);
    return max_of(first, chunk_size(0));
  }

  struct Direct {
    const T* data;
    const Row* row;
    const T* chunk(int64_t at, float*, int& n) const {
      n = row->chunk_size(at);
      return data + at * kChunk;
    }
  };
  struct Gathered {
    const Row* row;
    const float* chunk(int64_t at, float* buffer, int& n) const {
      n = row->chunk_size(at);
      row->gather(at * kChunk, n, buffer);
      return buffer;
    }
  };

  // Segment `at` of segments().
  template <Want kWant>
  Segment segment(int at, float seed) const {
    const int64_t from = chunks() * at / segments(), to = chunks() * (at + 1) / segments();
    return direct() ? sum_segment<kWant>(Direct{z + begin, this}, from, to, seed, scale)
                    : sum_segment<kWant>(Gathered{this}, from, to, seed, scale);
  }
  template <Want kWant>
  RowSums sums(const Segment* parts) const {
    return direct() ? merge<kWant>(Direct{z + begin, this}, parts, segments(), scale)
                    : merge<kWant>(Gathered{this}, parts, segments(), scale);
  }

  // No entry of the support is larger than the token's, and none of a lower id is as large.
  bool is_argmax(int64_t id) const {
    const float top = to_float(z[id]);
    if (kept) {
      for (int64_t i = 0; i < num_kept; ++i) {
        const float v = to_float(z[kept[i]]);
        if (v > top || (v == top && kept[i] < id)) return false;
      }
      return true;
    }
    const bool first = id == begin || max_of(z + begin, id - begin) < top;
    return first && max_of(z + id, end - id) == top;
  }
};

template <class T>
static Row<T> row_of(const TokenLogProbsParams& p, int64_t n) {
  Row<T> row;
  row.z = (const T*)p.logits + p.logits_rows.offset(n);
  row.begin = p.support_begin;
  row.end = p.support_end;
  row.kept = nullptr;
  row.num_kept = 0;
  if (p.keep_indptr) {
    row.kept = p.keep_indices + p.keep_indptr[n];
    row.num_kept = p.keep_indptr[n + 1] - p.keep_indptr[n];
  }
  const double temperature = p.temperatures ? (double)p.temperatures[n] : p.temperature;
  row.softcap = {p.softcap, p.logit_scale};
  row.factor = (p.softcap != 0 ? 1.0 : p.logit_scale) / temperature;
  row.scale = (float)(row.factor * kLog2e);
  return row;
}

static void shell_sort(int32_t* values, int64_t n) {
  for (int64_t gap = n / 2; gap > 0; gap = gap == 2 ? 1 : gap * 5 / 11) {
    for (int64_t i = gap; i < n; ++i) {
      const int32_t v = values[i];
      int64_t j = i;
      for (; j >= gap && values[j - gap] > v; j -= gap) values[j] = values[j - gap];
      values[j] = v;
    }
  }
}

static bool has_repeats(const int32_t* kept, int64_t n) {
  bool ascending = true;
  for (int64_t i = 1; i < n; ++i) ascending &= kept[i - 1] < kept[i];
  if (ascending) return false;
  int32_t* copy = (int32_t*)malloc(n * sizeof(int32_t));
  memcpy(copy, kept, n * sizeof(int32_t));
  shell_sort(copy, n);
  bool repeats = false;
  for (int64_t i = 1; i < n; ++i) repeats |= copy[i - 1] == copy[i];
  free(copy);
  return repeats;
}

// What is wrong with an unmasked row, if anything.
static RowError check_row(const TokenLogProbsParams& p, int64_t n) {
  for (int64_t k = 0; k < p.ids_per_row; ++k) {
    const int64_t id = p.token_ids[n * p.ids_per_row + k];
    if (id < 0 || id >= p.vocab_size) return {RowError::token_id, n, (double)id};
  }
  if (p.temperatures) {
    const float t = p.temperatures[n];
    if (!(t > 0 && t < __builtin_inff())) return {RowError::temperature, n, (double)t};
  }
  if (p.keep_indptr) {
    const int64_t from = p.keep_indptr[n], to = p.keep_indptr[n + 1];
    if (from < 0 || to < from || to > p.num_keep_indices) {
      return {RowError::keep_indptr, n, (double)to};
    }
    if (from == to) return {RowError::keep_empty, n, 0};
    for (int64_t i = from; i < to; ++i) {
      const int32_t id = p.keep_indices[i];
      if (id < 0 || id >= p.vocab_size) return {RowError::keep_id, n, (double)id};
    }
    if (has_repeats(p.keep_indices + from, to - from)) return {RowError::keep_repeat, n, 0};
  }
  return {};
}
