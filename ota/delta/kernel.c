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

static inline double number_of(const Terms *t, int64_t i) {
    switch (t->kind) {
    case F16: {
        uint16_t bits;
        memcpy(&bits, t->old + 2 * i, 2);
        return t->halves[bits];
    }
    case BF16: {
        uint16_t bits;
        memcpy(&bits, t->old + 2 * i, 2);
        uint32_t wide = (uint32_t)bits << 16;
        float number;
        memcpy(&number, &wide, 4);
        return number;
    }
    case F32: {
        float number;
        memcpy(&number, t->old + 4 * i, 4);
        return number;
    }
    case I32: {
        int32_t number;
        memcpy(&number, t->old + 4 * i, 4);
        return number;
    }
    case I8: return (int8_t)t->old[i];
    case U8: return t->old[i];
    case I4: return (int32_t)((t->old[i >> 1] >> (i & 1) * 4 & 15) ^ 8) - 8;
    default: return t->old[i >> 1] >> (i & 1) * 4 & 15;
    }
}

static inline uint8_t table_of(const Terms *t, int32_t expected, uint32_t fraction) {
    int32_t class = expected < LOWEST ? 0 : expected > LOWEST + CLASSES - 1 ? CLASSES - 1 : expected - LOWEST;
    return t->tables[class << 8 | fraction];
}

#define PLACE(NAME, REAL, BITS, UNSIGNED, MANTISSA, BIAS, LARGEST, MAGIC)                                              \
    static inline REAL NAME##_predicted(const Terms *t, int64_t i, int64_t g) {                                        \
        if (!t->old) return 0;                                                                                         \
        REAL p = (REAL)number_of(t, i);                                                                                \
        if (t->old_zero) p = p - (REAL)t->old_zero[g];                                                                 \
        if (t->factor) p = p * (REAL)t->factor[g];                                                                     \
        if (t->change) p = p + (REAL)(t->change[i] * t->lift[g]);                                                      \
        if (t->new_zero) p = p + (REAL)t->new_zero[g];                                                                 \
        return p;                                                                                                      \
    }                                                                                                                  \
    static inline void NAME##_one(const Terms *t, int64_t i, int64_t g, int32_t expected) {                            \
        REAL p = NAME##_predicted(t, i, g);                                                                            \
        REAL size = p < 0 ? -p : p;                                                                                    \
        int32_t negative = 0;                                                                                          \
        if (!(size < LARGEST)) p = size = 0;                                                                           \
        if (t->mantissa) {                                                                                             \
            BITS bits;                                                                                                 \
            memcpy(&bits, &p, sizeof bits);                                                                            \
            negative = bits < 0;                                                                                       \
            bits &= (BITS)(~(UNSIGNED)0 >> 1);                                                                         \
            memcpy(&size, &bits, sizeof bits);                                                                         \
            int32_t exponent = (int32_t)(bits >> MANTISSA) - BIAS;                                                     \
            exponent = exponent < t->emin ? t->emin : exponent > t->top ? t->top : exponent;                           \
            BITS raised = (BITS)(BIAS + t->mantissa - exponent) << MANTISSA;                                           \
            REAL scale, most = (REAL)(2 << t->mantissa);                                                               \
            memcpy(&scale, &raised, sizeof scale);                                                                     \
            p = size * scale;                                                                                          \
            p = p < most ? p : most;                                                                                   \
            expected -= 2 * (exponent - t->mantissa);                                                                  \
            t->numbers[i] = (exponent - t->emin) << t->mantissa;                                                       \
        } else {                                                                                                       \
            p = p < (REAL)t->low ? (REAL)t->low : p;                                                                   \
            p = p > (REAL)t->high ? (REAL)t->high : p;                                                                 \
            t->numbers[i] = 0;                                                                                         \
        }                                                                                                              \
        REAL rounded = (p + (REAL)MAGIC) - (REAL)MAGIC;                                                                \
        REAL rest = p - rounded, off = rest < 0 ? -rest : rest;                                                        \
        int32_t number = t->numbers[i] + (int32_t)rounded;                                                             \
        t->numbers[i] = negative ? ~number : number;                                                                   \
        t->toward[i] = (rest < 0) != negative ? -1 : 1;                                                                \
        t->chosen[i] = table_of(t, expected, (uint32_t)(off * (REAL)(2 * FRACTIONS)));                                 \
    }                                                                                                                  \
    static inline void NAME##_all(const Terms *t) {                                                                    \
        int64_t wide = t->columns / t->groups;                                                                         \
        for (int64_t r = 0, i = 0; r < t->rows; r++)                                                                   \
            for (int64_t group = 0, c = 0; group < t->groups; group++) {                                               \
                int64_t g = t->shared ? 0 : r * t->groups + group;                                                     \
                for (int64_t end = c + wide; c < end; c++, i++)                                                        \
                    NAME##_one(t, i, g, t->row_classes[r] + (t->column_classes ? t->column_classes[c] : 0));           \
            }                                                                                                          \
    }

PLACE(narrow, float, int32_t, uint32_t, 23, 127, 3e38f, 12582912.0)
PLACE(wide, double, int64_t, uint64_t, 52, 1023, 1e300, 6755399441055744.0)

/* Predictions: the ordered integer, the way to the nearer neighbour and the table of every number. */
void millwright_place(const Terms *terms) {
    Terms t = *terms;
    if (t.kind == F16) {
        t.kind = F16, t.mantissa = 10, t.emin = -14, t.top = 15;
        narrow_all(&t);
    } else if (t.kind == BF16) {
        t.kind = BF16, t.mantissa = 7, t.emin = -126, t.top = 127;
        wide_all(&t);
    } else if (t.kind == F32) {
        t.kind = F32, t.mantissa = 23, t.emin = -126, t.top = 127;
        wide_all(&t);
    } else {
        t.mantissa = 0;
        if (t.kind == I32) wide_all(&t);
        else if (t.kind == I8) t.kind = I8, narrow_all(&t);
        else if (t.kind == U8) t.kind = U8, narrow_all(&t);
        else if (t.kind == I4) t.kind = I4, narrow_all(&t);
        else t.kind = U4, narrow_all(&t);
    }
}
