// A token's loss and its slope, of kDoubles tokens at a time, by objective. Included by the CPU
// body behind core/simd_double.h; python/logpi/ops/policy_loss/objectives.py defines the formulas.
//
// All of it is double: 64k tokens are few, and so an objective's decisions are those of the exact
// ratio. A comparison of vectors is a vlong of 0 or -1; NaN fails every one, and stays.

LOGPI_INLINE vdouble choose(vlong yes, vdouble a, vdouble b) { return yes ? a : b; }
LOGPI_INLINE vdouble only(vlong yes, vdouble a) { return (vdouble)((vlong)a & yes); }
LOGPI_INLINE vdouble zero() { return vdouble{}; }
LOGPI_INLINE vdouble at_most(vdouble x, double high) { return choose(x > high, zero() + high, x); }
LOGPI_INLINE vdouble at_least(vdouble x, double low) { return choose(x < low, zero() + low, x); }
LOGPI_INLINE vdouble magnitude(vdouble x) { return (vdouble)((vlong)x & INT64_MAX); }
LOGPI_INLINE vdouble fma(vdouble a, vdouble b, vdouble c) {
#if defined(__AVX512F__)
  return (vdouble)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  return (vdouble)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__ARM_NEON)
  return (vdouble)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// e^x for x in [-690, 690], to 2e-10: what it is rounded to has seven digits.
LOGPI_INLINE vdouble exp_inside(vdouble x) {
  const vdouble magic = zero() + 0x1.8p52;  // the sum's low bits are round(x log2 e)
  const vdouble shifted = fma(x, zero() + 1.44269504088896340736, magic);
  const vdouble f = fma(shifted - magic, zero() - 0.69314718055994530942, x);
  // By pairs: one after another, eight products would each wait for the one before.
  const vdouble square = f * f, fourth = square * square;
  const vdouble low = fma(fma(f, zero() + 1.0 / 6, zero() + 0.5), square, f + 1.0);
  const vdouble middle = fma(f, zero() + 1.0 / 120, zero() + 1.0 / 24);
  const vdouble high = fma(f, zero() + 1.0 / 5040, zero() + 1.0 / 720);
  const vdouble p = fma(fma(fourth, zero() + 1.0 / 40320, fma(high, square, middle)), fourth, low);
  return choose(x == x, (vdouble)((vlong)p + ((vlong)shifted << 52)), x);
}
// And elsewhere as at the nearer end.
LOGPI_INLINE vdouble exp_of(vdouble x) { return exp_inside(at_most(at_least(x, -690.0), 690.0)); }

// e^x - 1 - x for x in [-20, 20]: near 0 its digits are not those of e^x.
LOGPI_INLINE vdouble exp_rest(vdouble x, vdouble exp_x) {
  const vdouble square = x * x;
  const vdouble low = fma(x, zero() + 1.0 / 6, zero() + 0.5);
  const vdouble middle = fma(x, zero() + 1.0 / 120, zero() + 1.0 / 24);
  const vdouble high =
      fma(x, zero() + 1.0 / 5040, fma(square, zero() + 1.0 / 40320, zero() + 1.0 / 720));
  const vdouble p = fma(fma(high, square, middle), square, low);
  return choose(magnitude(x) < 0.25, p * square, exp_x - 1.0 - x);
}

LOGPI_INLINE vdouble log_of(vdouble x) {
  for (int i = 0; i < kDoubles; ++i) x[i] = __builtin_log(x[i]);
  return x;
}

struct Token {
  vdouble log_prob, old, advantage;
  vdouble log_ratio;  // clamped
  vdouble ratio;
  vlong inside;  // of the clamp, where a gradient flows
  vlong selected;
};
struct Worth {
  vdouble loss, slope;  // d loss / d log_prob
  vlong fractions[3] = {};
};
struct Knobs {
  double a, b, c;
};

LOGPI_INLINE Worth clipped(const Knobs& k, const Token& t) {
  const vdouble free = -t.advantage * t.ratio;
  const vdouble bound = -t.advantage * at_most(at_least(t.ratio, 1 - k.a), 1 + k.b);
  Worth w;
  w.loss = choose(bound > free, bound, free);
  w.slope = only(t.inside & ~(bound > free), free);
  w.fractions[0] = (t.ratio < 1 - k.a) & (t.advantage < 0);
  w.fractions[1] = (t.ratio > 1 + k.b) & (t.advantage > 0);
  return w;
}

// -A weight log p with a weight that has no gradient.
LOGPI_INLINE Worth weighted(const Token& t, vdouble weight) {
  Worth w;
  w.slope = -t.advantage * weight;
  w.loss = w.slope * t.log_prob;
  return w;
}

LOGPI_INLINE Worth stopped(const Knobs& k, const Token& t, vlong below, vlong above) {
  Worth w = weighted(t, at_most(t.ratio, k.c));
  below &= ~(t.advantage > 0);
  above &= t.advantage > 0;
  w.loss = only(~(below | above), w.loss);
  w.slope = only(~(below | above), w.slope);
  w.fractions[0] = below;
  w.fractions[1] = above;
  return w;
}

// -A f(p) with f and d f / d log p.
LOGPI_INLINE Worth shaped(const Token& t, vdouble value, vdouble slope) {
  Worth w;
  w.loss = -t.advantage * value;
  w.slope = -t.advantage * slope;
  return w;
}

template <Objective kObjective>
LOGPI_INLINE Worth worth(const Knobs& k, const Token& t) {
  Worth w;
  if constexpr (kObjective == Objective::ppo_clip) {
    return clipped(k, t);
  } else if constexpr (kObjective == Objective::dual_clip) {
    w = clipped(k, t);
    const vdouble most = -t.advantage * k.c;
    const vlong over = (t.advantage < 0) & (w.loss > most);
    w.loss = choose(over, most, w.loss);
    w.slope = only(~over, w.slope);
    w.fractions[2] = (t.ratio > k.c) & (t.advantage < 0);
  } else if constexpr (kObjective == Objective::cispo) {
    w = weighted(t, at_most(at_least(t.ratio, 1 - k.a), 1 + k.b));
    w.fractions[0] = t.ratio < 1 - k.a;
    w.fractions[1] = t.ratio > 1 + k.b;
  } else if constexpr (kObjective == Objective::sapo) {
    const vdouble tau = choose(t.advantage > 0, zero() + k.a, zero() + k.b);
    const vdouble away = exp_of(-tau * (t.ratio - 1.0));
    const vdouble gate = 1.0 / (1.0 + away);
    w.loss = -t.advantage * gate * (4.0 / tau);
    w.slope = only(t.inside, -t.advantage * t.ratio * 4.0 * gate * (away * gate));
  } else if constexpr (kObjective == Objective::dppo_tv) {
    const vdouble moved = exp_of(t.log_prob) - exp_of(t.old);
    return stopped(k, t, moved<-k.a, moved> k.b);
  } else if constexpr (kObjective == Objective::dppo_kl) {
    const vdouble now = exp_of(t.log_prob), old = exp_of(t.old);
    const vdouble others = log_of((1.0 - old + 1e-8) / (1.0 - now + 1e-8));
    const vdouble moved = old * (t.old - t.log_prob) + (1.0 - old) * others;
    return stopped(k, t, (moved > k.a) & (now < old), (moved > k.b) & (now > old));
  } else if constexpr (kObjective == Objective::dro) {
    const vdouble d = t.log_prob - t.old;
    w.loss = d * d * (k.a / 2) - t.advantage * t.log_prob;
    w.slope = d * k.a - t.advantage;
  } else if constexpr (kObjective == Objective::surrogate) {
    w.loss = -t.advantage * t.ratio;
    w.slope = only(t.inside, w.loss);
  } else if constexpr (kObjective == Objective::reinforce) {
    return weighted(t, zero() + 1.0);
  } else if constexpr (kObjective == Objective::sft) {
    w.loss = -t.log_prob;
    w.slope = zero() - 1.0;
  } else if constexpr (kObjective == Objective::clip_cov) {
    w = clipped(k, t);
    w.loss = only(~t.selected, w.loss);
    w.slope = only(~t.selected, w.slope);
    w.fractions[2] = t.selected;
  } else if constexpr (kObjective == Objective::kl_cov) {
    const vdouble d = t.log_prob - t.old;
    const vdouble sign = choose(d > 0, zero() + k.a, choose(d < 0, zero() - k.a, d * k.a));
    w.loss = -t.advantage * t.ratio;
    w.slope = only(t.inside, w.loss) + only(t.selected, sign);
    w.loss += only(t.selected, magnitude(d) * k.a);
    w.fractions[0] = t.selected;
  } else if constexpr (kObjective == Objective::luffy_ratio) {
    const vdouble p = exp_of(t.log_prob), inverse = 1.0 / (p + k.a);
    return shaped(t, p * inverse, p * inverse * (k.a * inverse));
  } else if constexpr (kObjective == Objective::luffy_power) {
    const vdouble f = exp_of(t.log_prob * k.a);
    return shaped(t, f, f * k.a);
  } else if constexpr (kObjective == Objective::luffy_p) {
    const vdouble p = exp_of(t.log_prob);
    return shaped(t, p, p);
  } else if constexpr (kObjective == Objective::luffy_log) {
    return shaped(t, t.log_prob, zero() + 1.0);
  } else if constexpr (kObjective == Objective::luffy_both) {
    const vdouble p = exp_of(t.log_prob);
    return shaped(t, p + t.log_prob, p + 1.0);
  } else if constexpr (kObjective == Objective::luffy_root) {
    const vdouble f = exp_of(t.log_prob * 0.5);
    return shaped(t, f, f * 0.5);
  }
  return w;
}

// The estimate and its slope; x = ref - log_prob.
LOGPI_INLINE void penalty(KlEstimator estimator, vdouble x, vdouble& value, vdouble& slope) {
  slope = -x;  // of k2, and behind a "+"
  switch (estimator) {
    case KlEstimator::k1:
      slope = zero() + 1.0;
      value = -x;
      return;
    case KlEstimator::k1_plus:
      value = -x;
      return;
    case KlEstimator::k2:
      value = x * x * 0.5;
      return;
    case KlEstimator::abs:
      slope = choose(x > 0, zero() - 1.0, choose(x < 0, zero() + 1.0, x));
      value = magnitude(x);
      return;
    case KlEstimator::abs_plus:
      value = magnitude(x);
      return;
    default:
      break;
  }
  const vdouble bound = at_most(at_least(x, -20.0), 20.0), exp_x = exp_inside(bound);
  value = exp_rest(bound, exp_x);
  const vlong inside = ~(magnitude(x) > 20.0) & ~(value > 10.0);
  value = at_most(value, 10.0);
  // -(e^x - 1), whose digits near 0 are those of x
  if (estimator == KlEstimator::k3) slope = only(inside, -(exp_rest(bound, exp_x) + bound));
}
