// The sums of many rows over threads, each row's bits the same however they are spread. Included
// where row.h is.

// f(constant) with the wanted sums as a compile-time constant.
template <Want kWant>
struct Wanted {
  static constexpr Want value = kWant;
};
template <class F>
auto with(Want want, const F& f) {
  switch (want) {
    case Want::lse:
      return f(Wanted<Want::lse>());
    case Want::entropy:
      return f(Wanted<Want::entropy>());
    default:
      return f(Wanted<Want::all>());
  }
}
template <class T>
Segment segment(Want want, const Row<T>& row, int at, float seed) {
  return with(want, [&](auto w) { return row.template segment<decltype(w)::value>(at, seed); });
}
template <class T>
RowSums merged(Want want, const Row<T>& row, const Segment* parts) {
  return with(want, [&](auto w) { return row.template sums<decltype(w)::value>(parts); });
}

// Keeps the bad row of the lowest index, so that the message does not depend on the threads.
void report(RowError& first, const RowError& error) {
#pragma omp critical(logpi_row_error)
  if (first.kind == RowError::none || error.row < first.row) first = error;
}

// masked(n) for the rows that loss_mask leaves out; done(n, row, sums) for the others, unless they
// are bad: the first of those is returned.
template <class T, class Masked, class Done>
RowError sum_rows(const TokenLogProbsParams& p, Want want, const Masked& masked, const Done& done) {
  RowError first;
  const int64_t width = p.keep_indptr ? p.vocab_size : p.support_end - p.support_begin;
  const int threads = threads_for(p.num_rows * width, p.num_threads);
  const auto live = [&](int64_t n) {
    if (p.loss_mask && !p.loss_mask[n]) {
      masked(n);
      return false;
    }
    const RowError error = check_row(p, n);
    if (error.kind != RowError::none) report(first, error);
    return error.kind == RowError::none;
  };

  if (p.num_rows >= threads) {
    const int64_t block = rows_at_a_time(width), blocks = (p.num_rows + block - 1) / block;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t n = b * block; n < (b + 1) * block && n < p.num_rows; ++n) {
        if (!live(n)) continue;
        const Row<T> row = row_of<T>(p, n);
        const float seed = row.seed();
        Segment segments[kSegments];
        for (int at = 0; at < row.segments(); ++at) segments[at] = segment(want, row, at, seed);
        done(n, row, merged(want, row, segments));
      }
    }
    return first;
  }

  // Few rows: each row's segments are spread over the threads; the bits are the same.
  for (int64_t n = 0; n < p.num_rows; ++n) {
    if (!live(n)) continue;
    const Row<T> row = row_of<T>(p, n);
    const float seed = row.seed();
    Segment segments[kSegments];
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int at = 0; at < row.segments(); ++at) segments[at] = segment(want, row, at, seed);
    done(n, row, merged(want, row, segments));
  }
  return first;
}
