/* The inner loops of the delta decoder, compiled where a compiler is at hand. `terms.py`, `rans.py` and `tokens.py` are
 * the reference: every line here does what they do, one IEEE operation after the other, so the bits are the same. To be
 * built without contraction of products and sums (-ffp-contract=off) and without -ffast-math.
 */
#include <stdint.h>
#include <string.h>

enum { PRECISION = 13, LOW = 1 << 16, FRACTIONS = 128, CLASSES = 64, LOWEST = -12, ALL_TOKENS = 247 };
enum { F16, BF16, F32, I32, I8, U8, I4, U4 };

/* Symbols of one call; the place in `words` after it, or -1 where they run out. */
int64_t millwright_symbols(const uint8_t *slots, const uint32_t *packed, uint32_t *states, int64_t lanes,
                           const uint16_t *words, int64_t count, int64_t place, const uint8_t *chosen, int64_t size,
                           uint8_t *symbols) {
    for (int64_t begin = 0; begin < size; begin += lanes) {
        int64_t here = size - begin < lanes ? size - begin : lanes;
        if (count - place < here) { /* near the end: every word is looked for before it is taken */
            for (int64_t i = 0; i < here; i++) {
                uint32_t state = states[i], table = chosen[begin + i], slot = state & ((1u << PRECISION) - 1);
                uint8_t symbol = slots[table << PRECISION | slot];
                uint32_t entry = packed[table << 8 | symbol];
                state = (state >> PRECISION) * (entry >> 16) + slot - (entry & 0xFFFF);
                if (state < LOW) {
                    if (place >= count) return -1;
                    state = state << 16 | words[place++];
                }
                states[i] = state;
                symbols[begin + i] = symbol;
            }
            continue;
        }
        for (int64_t i = 0; i < here; i++) {
            uint32_t state = states[i], table = chosen[begin + i], slot = state & ((1u << PRECISION) - 1);
            uint8_t symbol = slots[table << PRECISION | slot];
            uint32_t entry = packed[table << 8 | symbol];
            state = (state >> PRECISION) * (entry >> 16) + slot - (entry & 0xFFFF);
            uint32_t renewed = state << 16 | words[place < count ? place : count - 1];
            uint32_t is_short = state < LOW;
            states[i] = is_short ? renewed : state;
            place += is_short;
            symbols[begin + i] = symbol;
        }
    }
    return place;
}

/* Adds what tokens and raw bits say to the predictions; the bit after it, or -1 where the bits run out.
 * `raw` has at least eight bytes beyond `limit` bits. */
int64_t millwright_join(const uint8_t *symbols, int64_t size, const int32_t *base, const int32_t *sign,
                        const uint8_t *widths, const uint8_t *raw, int64_t limit, int64_t bit, const int8_t *toward,
                        int32_t *numbers) {
    for (int64_t i = 0; i < size; i++) {
        uint8_t symbol = symbols[i], width = widths[symbol];
        uint32_t residual = (uint32_t)base[symbol];
        if (width) {
            uint64_t window;
            if (limit - bit < width) return -1;
            memcpy(&window, raw + (bit >> 3), 8);
            residual += (uint32_t)(window >> (bit & 7) & ((1ull << width) - 1));
            bit += width;
        }
        numbers[i] = (int32_t)((uint32_t)numbers[i] + residual * (uint32_t)(sign[symbol] * toward[i]));
    }
    return bit;
}

/* The bytes of ordered integers that may have wrapped around. */
void millwright_store(int32_t kind, const int32_t *numbers, int64_t size, uint8_t *bytes) {
    for (int64_t i = 0; i < size; i++) {
        uint32_t number = (uint32_t)numbers[i], lower = 0;
        if (kind == F16 || kind == BF16) {
            int32_t narrow = (int16_t)number;
            uint16_t stored = (uint16_t)(narrow < 0 ? ~narrow | 0x8000 : narrow);
            memcpy(bytes + 2 * i, &stored, 2);
        } else if (kind == F32) {
            number = (int32_t)number < 0 ? ~number | 0x80000000u : number;
            memcpy(bytes + 4 * i, &number, 4);
        } else if (kind == I32) {
            memcpy(bytes + 4 * i, &number, 4);
        } else if (kind == I8 || kind == U8) {
            bytes[i] = (uint8_t)number;
        } else {
            lower = number & 15;
            i++;
            bytes[i >> 1] = (uint8_t)(lower | ((uint32_t)numbers[i] & 15) << 4);
        }
    }
}

/* One row of one group after the other. Absent terms are null. */
typedef struct {
    int64_t rows, columns, groups, shared; /* shared: one factor for all rows */
    const uint8_t *old;
    const double *factor, *old_zero, *new_zero, *change, *lift;
    const int32_t *row_classes, *column_classes;
    const float *halves;
    const uint8_t *tables; /* by class and fraction */
    int32_t kind, mantissa, emin, top, low, high;
    int32_t *numbers;
    int8_t *toward;
    uint8_t *chosen;
} Terms;

enum { TILE = 1024 };

static inline uint8_t table_of(const uint8_t *restrict tables, int32_t expected, int32_t fraction) {
    int32_t class = expected < LOWEST ? 0 : expected > LOWEST + CLASSES - 1 ? CLASSES - 1 : expected - LOWEST;
    return tables[class << 8 | fraction];
}

/* The loops over a tile are apart, each of one kind of work and over buffers of its own, so that compilers can widen
 * them. `first` is the number of the tile's first element. */
#define PLACE(NAME, REAL, BITS, UNSIGNED, MANTISSA, BIAS, LARGEST, MAGIC)                                              \
    static void NAME##_load(const Terms *t, int64_t first, int64_t size, REAL *restrict p) {                           \
        const uint8_t *restrict old = t->old;                                                                          \
        int64_t i;                                                                                                     \
        if (t->kind == F16) {                                                                                          \
            for (i = 0; i < size; i++) {                                                                               \
                uint16_t bits;                                                                                         \
                memcpy(&bits, old + 2 * (first + i), 2);                                                               \
                p[i] = (REAL)t->halves[bits];                                                                          \
            }                                                                                                          \
        } else if (t->kind == BF16) {                                                                                  \
            for (i = 0; i < size; i++) {                                                                               \
                uint16_t bits;                                                                                         \
                memcpy(&bits, old + 2 * (first + i), 2);                                                               \
                uint32_t wide = (uint32_t)bits << 16;                                                                  \
                float number;                                                                                          \
                memcpy(&number, &wide, 4);                                                                             \
                p[i] = (REAL)number;                                                                                   \
            }                                                                                                          \
        } else if (t->kind == F32) {                                                                                   \
            for (i = 0; i < size; i++) {                                                                               \
                float number;                                                                                          \
                memcpy(&number, old + 4 * (first + i), 4);                                                             \
                p[i] = (REAL)number;                                                                                   \
            }                                                                                                          \
        } else if (t->kind == I32) {                                                                                   \
            for (i = 0; i < size; i++) {                                                                               \
                int32_t number;                                                                                        \
                memcpy(&number, old + 4 * (first + i), 4);                                                             \
                p[i] = (REAL)number;                                                                                   \
            }                                                                                                          \
        } else if (t->kind == I8) {                                                                                    \
            for (i = 0; i < size; i++) p[i] = (REAL)(int8_t)old[first + i];                                            \
        } else if (t->kind == U8) {                                                                                    \
            for (i = 0; i < size; i++) p[i] = (REAL)old[first + i];                                                    \
        } else {                                                                                                       \
            int32_t flip = t->kind == I4 ? 8 : 0;                                                                      \
            for (i = 0; i < size; i++) {                                                                               \
                int64_t at = first + i;                                                                                \
                p[i] = (REAL)(((old[at >> 1] >> (at & 1) * 4 & 15) ^ flip) - flip);                                    \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void NAME##_predict(const Terms *t, int64_t first, int64_t size, int64_t g, REAL *restrict p) {             \
        if (!t->old) {                                                                                                 \
            for (int64_t i = 0; i < size; i++) p[i] = 0;                                                               \
            return;                                                                                                    \
        }                                                                                                              \
        NAME##_load(t, first, size, p);                                                                                \
        if (t->old_zero) {                                                                                             \
            REAL zero = (REAL)t->old_zero[g];                                                                          \
            for (int64_t i = 0; i < size; i++) p[i] = p[i] - zero;                                                     \
        }                                                                                                              \
        if (t->factor) {                                                                                               \
            REAL factor = (REAL)t->factor[g];                                                                          \
            for (int64_t i = 0; i < size; i++) p[i] = p[i] * factor;                                                   \
        }                                                                                                              \
        if (t->change) {                                                                                               \
            const double *restrict change = t->change + first;                                                         \
            double lift = t->lift[g];                                                                                  \
            for (int64_t i = 0; i < size; i++) p[i] = p[i] + (REAL)(change[i] * lift);                                 \
        }                                                                                                              \
        if (t->new_zero) {                                                                                             \
            REAL zero = (REAL)t->new_zero[g];                                                                          \
            for (int64_t i = 0; i < size; i++) p[i] = p[i] + zero;                                                     \
        }                                                                                                              \
        for (int64_t i = 0; i < size; i++) p[i] = p[i] < LARGEST && p[i] > -LARGEST ? p[i] : 0;                        \
    }                                                                                                                  \
    static void NAME##_integers(const Terms *t, int64_t size, const REAL *restrict p, int32_t *restrict numbers,       \
                                int8_t *restrict toward, int32_t *restrict fraction) {                                 \
        REAL low = (REAL)t->low, high = (REAL)t->high;                                                                 \
        for (int64_t i = 0; i < size; i++) {                                                                           \
            REAL q = p[i] < low ? low : p[i];                                                                          \
            q = q > high ? high : q;                                                                                   \
            REAL rounded = (q + (REAL)MAGIC) - (REAL)MAGIC;                                                            \
            REAL rest = q - rounded, off = rest < 0 ? -rest : rest;                                                    \
            numbers[i] = (int32_t)rounded;                                                                             \
            toward[i] = rest < 0 ? -1 : 1;                                                                             \
            fraction[i] = (int32_t)(off * (REAL)(2 * FRACTIONS));                                                      \
        }                                                                                                              \
    }                                                                                                                  \
    static void NAME##_floats(const Terms *t, int64_t size, const REAL *restrict p, int32_t *restrict numbers,         \
                              int8_t *restrict toward, int32_t *restrict fraction, int32_t *restrict octave) {         \
        int32_t mantissa = t->mantissa, emin = t->emin, top = t->top;                                                  \
        REAL most = (REAL)(2 << mantissa);                                                                             \
        for (int64_t i = 0; i < size; i++) {                                                                           \
            BITS bits;                                                                                                 \
            REAL magnitude, scale;                                                                                     \
            memcpy(&bits, &p[i], sizeof bits);                                                                         \
            int32_t negative = -(int32_t)((UNSIGNED)bits >> (8 * sizeof bits - 1));                                    \
            bits &= (BITS)(~(UNSIGNED)0 >> 1);                                                                         \
            memcpy(&magnitude, &bits, sizeof bits);                                                                    \
            int32_t exponent = (int32_t)(bits >> MANTISSA) - BIAS;                                                     \
            exponent = exponent < emin ? emin : exponent;                                                              \
            exponent = exponent > top ? top : exponent;                                                                \
            BITS raised = (BITS)(BIAS + mantissa - exponent) << MANTISSA;                                              \
            memcpy(&scale, &raised, sizeof scale);                                                                     \
            REAL q = magnitude * scale;                                                                                \
            q = q < most ? q : most;                                                                                   \
            REAL rounded = (q + (REAL)MAGIC) - (REAL)MAGIC;                                                            \
            REAL rest = q - rounded, off = rest < 0 ? -rest : rest;                                                    \
            numbers[i] = (((exponent - emin) << mantissa) + (int32_t)rounded) ^ negative;                              \
            toward[i] = (int8_t)(((rest < 0 ? -1 : 1) ^ negative) - negative);                                         \
            fraction[i] = (int32_t)(off * (REAL)(2 * FRACTIONS));                                                      \
            octave[i] = exponent - mantissa;                                                                           \
        }                                                                                                              \
    }                                                                                                                  \
    static void NAME##_tile(const Terms *t, int64_t first, int64_t size, int64_t g, int64_t r, int64_t c) {            \
        REAL p[TILE];                                                                                                  \
        int32_t fraction[TILE], expected[TILE];                                                                        \
        uint8_t *restrict chosen = t->chosen + first;                                                                  \
        const uint8_t *restrict tables = t->tables;                                                                    \
        int32_t row = t->row_classes[r];                                                                               \
        NAME##_predict(t, first, size, g, p);                                                                          \
        if (t->mantissa) {                                                                                             \
            NAME##_floats(t, size, p, t->numbers + first, t->toward + first, fraction, expected);                      \
            for (int64_t i = 0; i < size; i++) expected[i] = row - 2 * expected[i];                                    \
        } else {                                                                                                       \
            NAME##_integers(t, size, p, t->numbers + first, t->toward + first, fraction);                              \
            for (int64_t i = 0; i < size; i++) expected[i] = row;                                                      \
        }                                                                                                              \
        if (t->column_classes)                                                                                         \
            for (int64_t i = 0; i < size; i++) expected[i] += t->column_classes[c + i];                                \
        for (int64_t i = 0; i < size; i++) chosen[i] = table_of(tables, expected[i], fraction[i]);                     \
    }                                                                                                                  \
    static void NAME##_all(const Terms *t) {                                                                           \
        int64_t wide = t->columns / t->groups;                                                                         \
        for (int64_t r = 0, i = 0; r < t->rows; r++)                                                                   \
            for (int64_t group = 0, c = 0; group < t->groups; group++) {                                               \
                int64_t g = t->shared ? 0 : r * t->groups + group;                                                     \
                for (int64_t end = c + wide; c < end;) {                                                               \
                    int64_t size = end - c < TILE ? end - c : TILE;                                                    \
                    NAME##_tile(t, i, size, g, r, c);                                                                  \
                    c += size, i += size;                                                                              \
                }                                                                                                      \
            }                                                                                                          \
    }

PLACE(narrow, float, int32_t, uint32_t, 23, 127, 3e38f, 12582912.0)
PLACE(wide, double, int64_t, uint64_t, 52, 1023, 1e300, 6755399441055744.0)

/* Predictions: the ordered integer, the way to the nearer neighbour and the table of every number. */
void millwright_place(const Terms *t) {
    if (t->kind == BF16 || t->kind == F32 || t->kind == I32) wide_all(t);
    else narrow_all(t);
}
