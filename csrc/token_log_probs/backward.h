// The gradient of a row of logits. Included by token_log_probs-inl.h.
//
//     dx_v = sum_k g_k [v = id_k] - p_v (sum_k g_k + h (log p_v + entropy))
//
// with g, h the upstream gradients of log_probs and entropy. With t_v = log2(e) (x_v - ref) and
// mean_shifted = sum_v p_v (x_v - ref), log p_v + entropy = ln2 t_v - mean_shifted: two small
// numbers, where log p_v and the entropy themselves would cancel.

// Scratch of one thread; grows, never shrinks.
template <class U>
struct Memory {
  U* data = nullptr;
  int64_t size = 0;
  Memory() = default;
  explicit Memory(int64_t n) { need(n); }
  Memory(const Memory&) = delete;
  ~Memory() { free(data); }
  void need(int64_t n) {
    if (n <= size) return;
    free(data);
    data = (U*)malloc(n * sizeof(U));
    size = n;
  }
};

template <class T>
class BackwardRow {
 public:
  explicit BackwardRow(const TokenLogProbsBackward& params)
      : p(params),
        tokens(params.ids_per_row),
        chosen(params.ids_per_row),
        order(params.ids_per_row) {}

  template <bool kStream>
  void write(int64_t n) {
    T* const out = (T*)p.grad_logits + p.grad_rows.offset(n);
    double total = 0;
    bool any = false;
    for (int64_t k = 0; p.grad_log_probs && k < p.ids_per_row; ++k) {
      const float g = p.grad_log_probs[n * p.ids_per_row + k];
      total += (double)g;
      any |= g != 0;
    }
    const float h = p.grad_entropy ? p.grad_entropy[n] : 0.0f;
    if ((p.loss_mask && !p.loss_mask[n]) || !(any || h != 0)) {  // nothing flows: read nothing
      memset(out + p.first_column, 0, p.row_length * sizeof(T));
      return;
    }
    const Row<T> row = row_of<T>(p, n);
    const RowStats stats = p.stats[n];
    const double weight = (double)stats.inv_sum * row.factor;
    coefficients.ref = stats.ref;
    coefficients.constant = (float)(weight * ((double)h * (double)stats.mean_shifted - total));
    coefficients.slope = (float)(-weight * (double)h * kLn2);

    token_gradients(n, row, total, h);  // before the logits may be overwritten
    if (row.kept) {
      scatter_kept(row, out);
    } else {
      memset(out + p.first_column, 0, (row.begin - p.first_column) * sizeof(T));
      contiguous<kStream>(row, out);
      memset(out + row.end, 0, (p.first_column + p.row_length - row.end) * sizeof(T));
    }
    for (int64_t i = 0; i < num_chosen; ++i) out[chosen.data[i]] = from_float<T>(tokens.data[i]);
  }

 private:
  struct Coefficients {
    float ref, constant, slope;
  } coefficients;
  const TokenLogProbsBackward& p;
  Memory<float> tokens;  // gradients of the chosen ids
  Memory<int64_t> chosen;
  int64_t num_chosen = 0;
  Memory<int64_t> order;
  Memory<float> gathered;

  // p_v times what multiplies it, in units of the logits; -inf logits give exactly 0.
  template <bool kSoftcap>
  __attribute__((always_inline)) vfloat element(const Row<T>& row, vfloat z) const {
    vfloat slope{};
    if (kSoftcap) squash(row.softcap, z, z, slope);
    const vfloat t = exp2_range((z - coefficients.ref) * row.scale);
    const vfloat e = kExp2TakesAny ? exp2(t) : (t <= kExp2Low ? vfloat{} : exp2(t));
    const vfloat dx = e * fma(splat(coefficients.slope), t, splat(coefficients.constant));
    return kSoftcap ? dx * slope : dx;
  }

  template <bool kStream>
  void contiguous(const Row<T>& row, T* out) const {
    !row.has_softcap() ? contiguous_body<kStream, false>(row, out)
                       : contiguous_body<kStream, true>(row, out);
  }
  template <bool kStream, bool kSoftcap>
  void contiguous_body(const Row<T>& row, T* out) const {
    int64_t i = row.begin;
    if (kStream) {  // streaming stores want aligned addresses
      const int64_t head = (int64_t)(-(uintptr_t)(out + i) % kBytes / sizeof(T));
      const int64_t stop = i + head < row.end ? i + head : row.end;
      partial_pack<kSoftcap>(row, out, i, stop);
      i = stop;
    }
    for (; i + kPack <= row.end; i += kPack) {
      prefetch(row.z + i, kPack * sizeof(T));
      const Pack z = load_pack(row.z + i);
      store_pack<kStream>(out + i, Pack{element<kSoftcap>(row, z.a), element<kSoftcap>(row, z.b)});
    }
    partial_pack<kSoftcap>(row, out, i, row.end);
  }
  template <bool kSoftcap>
  void partial_pack(const Row<T>& row, T* out, int64_t from, int64_t to) const {
    if (from >= to) return;
    T pack[kPack];
    pad_pack(pack, row.z + from, (int)(to - from), row.z[from]);
    const Pack z = load_pack(pack);
    store_pack<false>(pack, Pack{element<kSoftcap>(row, z.a), element<kSoftcap>(row, z.b)});
    memcpy(out + from, pack, (to - from) * sizeof(T));
  }

  void scatter_kept(const Row<T>& row, T* out) {
    const int64_t n = row.num_kept;
    gathered.need(n + kLanes);
    for (int64_t i = 0; i < n; ++i) gathered.data[i] = to_float(row.z[row.kept[i]]);
    for (int64_t i = n; i < n + kLanes; ++i) gathered.data[i] = 0;
    for (int64_t i = 0; i < n; i += kLanes) {
      const vfloat z = load<vfloat>(gathered.data + i);
      store(gathered.data + i, !row.has_softcap() ? element<false>(row, z) : element<true>(row, z));
    }
    memset(out, 0, p.row_length * sizeof(T));
    for (int64_t i = 0; i < n; ++i) out[row.kept[i]] = from_float<T>(gathered.data[i]);
  }

  // The gradients of the tokens that log-prob gradients reach, in double: g (1 - p) as
  // -g expm1(log p), which keeps its digits where p rounds to 1. Ids may repeat in a row, so they
  // are taken in groups.
  void token_gradients(int64_t n, const Row<T>& row, double total, float h) {
    num_chosen = 0;
    if (!p.grad_log_probs) return;
    const int64_t count = p.ids_per_row, first = n * count;
    const int64_t* ids = p.token_ids + first;
    sort_by_id(ids, count);
    for (int64_t i = 0; i < count;) {
      const int64_t at = first + order.data[i], id = p.token_ids[at];
      double g = 0;
      for (; i < count && ids[order.data[i]] == id; ++i) {
        g += (double)p.grad_log_probs[first + order.data[i]];
      }
      if (g == 0 || !row.supports(id)) continue;
      const double log_p = (double)p.log_probs[at], prob = __builtin_exp(log_p);
      double dx = -g * __builtin_expm1(log_p);
      if (prob > 0) {
        const double x = row.factor * (row.value(id) - (double)coefficients.ref);
        dx -= prob * (total - g) + (double)h * prob * (x - (double)p.stats[n].mean_shifted);
      }
      double dz = dx * row.factor;
      if (row.has_softcap()) {
        vfloat y, slope;
        squash(row.softcap, splat(to_float(row.z[id])), y, slope);
        dz *= (double)slope[0];
      }
      chosen.data[num_chosen] = id;
      tokens.data[num_chosen++] = (float)dz;
    }
  }
  void sort_by_id(const int64_t* ids, int64_t count) {
    for (int64_t i = 0; i < count; ++i) order.data[i] = i;
    for (int64_t gap = count / 2; gap > 0; gap = gap == 2 ? 1 : gap * 5 / 11) {
      for (int64_t i = gap; i < count; ++i) {
        const int64_t v = order.data[i];
        int64_t j = i;
        for (; j >= gap && ids[order.data[j - gap]] > ids[v]; j -= gap) {
          order.data[j] = order.data[j - gap];
        }
        order.data[j] = v;
      }
    }
  }
};
