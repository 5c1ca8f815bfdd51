// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The kernels of attend.h once more for every instruction set: included by attend.c with NAME(x), TARGET, KERNEL_NAME,
// LANES (4 or 8: floats of one register) and the types vec, ivec and vec_anywhere of that size. Sums are kept in
// independent lanes, because the compiler may not reorder one.

TARGET static inline float NAME(sum_of)(const vec *v) {
  float sum = 0;
  for (uint32_t i = 0; i < LANES; i++)
    sum += (*v)[i];
  return sum;
}

TARGET static void NAME(scores)(const float *const q[ATTEND_ROWS], const float *tile, uint32_t d,
                                float *const scores[ATTEND_ROWS]) {
  const float *q0 = q[0], *q1 = q[1], *q2 = q[2], *q3 = q[3];
  for (uint32_t j = 0; j < ATTEND_TILE; j += 2 * LANES) {
    vec a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0}, b0 = {0}, b1 = {0}, b2 = {0}, b3 = {0};
    for (uint32_t c = 0; c < d; c++) {
      vec a = LOAD(tile + (size_t)c * ATTEND_TILE + j), b = LOAD(tile + (size_t)c * ATTEND_TILE + j + LANES);
      a0 += q0[c] * a;
      b0 += q0[c] * b;
      a1 += q1[c] * a;
      b1 += q1[c] * b;
      a2 += q2[c] * a;
      b2 += q2[c] * b;
      a3 += q3[c] * a;
      b3 += q3[c] * b;
    }
    STORE(scores[0] + j, a0);
    STORE(scores[0] + j + LANES, b0);
    STORE(scores[1] + j, a1);
    STORE(scores[1] + j + LANES, b1);
    STORE(scores[2] + j, a2);
    STORE(scores[2] + j + LANES, b2);
    STORE(scores[3] + j, a3);
    STORE(scores[3] + j + LANES, b3);
  }
}

TARGET static void NAME(accumulate)(const float *const p[ATTEND_ROWS], const float *values, uint32_t count, uint32_t d,
                                    float *const out[ATTEND_ROWS]) {
  const float *p0 = p[0], *p1 = p[1], *p2 = p[2], *p3 = p[3];
  for (uint32_t c = 0; c < d; c += 2 * LANES) {
    uint32_t next = c + LANES < d ? c + LANES : c; /* the odd one at the end is computed twice */
    vec a0 = LOAD(out[0] + c), a1 = LOAD(out[1] + c), a2 = LOAD(out[2] + c), a3 = LOAD(out[3] + c);
    vec b0 = LOAD(out[0] + next), b1 = LOAD(out[1] + next), b2 = LOAD(out[2] + next), b3 = LOAD(out[3] + next);
    for (uint32_t j = 0; j < count; j++) {
      vec a = LOAD(values + (size_t)j * d + c), b = LOAD(values + (size_t)j * d + next);
      a0 += p0[j] * a;
      b0 += p0[j] * b;
      a1 += p1[j] * a;
      b1 += p1[j] * b;
      a2 += p2[j] * a;
      b2 += p2[j] * b;
      a3 += p3[j] * a;
      b3 += p3[j] * b;
    }
    STORE(out[0] + c, a0);
    STORE(out[1] + c, a1);
    STORE(out[2] + c, a2);
    STORE(out[3] + c, a3);
    STORE(out[0] + next, b0);
    STORE(out[1] + next, b1);
    STORE(out[2] + next, b2);
    STORE(out[3] + next, b3);
  }
}

TARGET static void NAME(dots)(const float *q, const float *keys, uint32_t count, uint32_t d, float *out) {
  for (uint32_t j = 0; j < count; j++) {
    const float *key = keys + (size_t)j * d;
    vec sum = {0};
    for (uint32_t c = 0; c < d; c += LANES)
      sum += LOAD(q + c) * LOAD(key + c);
    out[j] = NAME(sum_of)(&sum);
  }
}

TARGET static void NAME(add)(float p, const float *v, uint32_t d, float *out) {
  for (uint32_t c = 0; c < d; c += LANES)
    STORE(out + c, LOAD(out + c) + p * LOAD(v + c));
}

TARGET static float NAME(largest)(const float *s, uint32_t count, float least) {
  vec top = least - (vec){0};
  uint32_t j = 0;
  for (; j + LANES <= count; j += LANES) {
    vec x = LOAD(s + j);
    ivec more = x > top;
    top = (vec)((more & (ivec)x) | (~more & (ivec)top));
  }
  float best = least;
  for (; j < count; j++)
    best = s[j] > best ? s[j] : best;
  for (uint32_t i = 0; i < LANES; i++)
    best = top[i] > best ? top[i] : best;
  return best;
}

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; the polynomial is Taylor's to the 6th power: error 2e-7.
 * Below -87 the result is 1e-38 instead of a subnormal. */
TARGET static float NAME(exponentials)(float *s, uint32_t count, float top) {
  const float shift = 12582912.0f; /* 1.5 * 2^23: adding it leaves an integer in the low bits */
  vec sum = {0};
  float total = 0;
  for (uint32_t j = 0; j < count; j += LANES) {
    vec x = (vec){0} - 88;
    uint32_t n = count - j < LANES ? count - j : LANES;
    if (n == LANES)
      x = LOAD(s + j) - top;
    else
      for (uint32_t i = 0; i < n; i++)
        x[i] = s[j + i] - top;
    ivec low = x < -87.0f;
    x = (vec)((~low & (ivec)x) | (low & (ivec)(-87.0f - (vec){0})));
    vec t = x * 1.44269504f + shift;
    ivec power = ((ivec)t - (ivec)(shift - (vec){0}) + 127) << 23;
    t -= shift;
    vec r = x - t * 0.693145752f - t * 1.42860677e-6f;
    vec e = 1.38888889e-3f * r + 8.33333333e-3f;
    e = e * r + 4.16666667e-2f;
    e = e * r + 1.66666667e-1f;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = (e * r + 1.0f) * (vec)power;
    if (n == LANES) {
      STORE(s + j, e);
      sum += e;
    } else {
      for (uint32_t i = 0; i < n; i++) {
        s[j + i] = e[i];
        total += e[i];
      }
    }
  }
  return total + NAME(sum_of)(&sum);
}

static const struct attend_kernels NAME(kernels) = {
    .name = KERNEL_NAME,
    .scores = NAME(scores),
    .accumulate = NAME(accumulate),
    .dots = NAME(dots),
    .add = NAME(add),
    .largest = NAME(largest),
    .exponentials = NAME(exponentials),
};
