/* Words of a text and their token ids, remembered in a hash table. words.py says why a text may be cut into them.

   Text is UTF-8 in parts by turns: text, which is cut into words, and an added token, which is one word. A word is cut where the
   pattern of GPT-2 always cuts, whatever stands on either side:
     before a space, tab or line break that follows a visible character
     between letters or digits and the marks before or after them, but for an apostrophe before a letter, as in "don't"
   Characters on which Unicode versions may disagree are OTHER, and never give a reason to cut. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 1 << 21 };
enum kind { SPACE, RARE_SPACE, LETTER, MARK, APOSTROPHE, OTHER };

typedef struct { uint64_t hash; uint32_t word, n_bytes, ids, n_ids; } entry;

typedef struct {
    uint32_t slots[SLOTS]; /* entry + 1; 0 is free */
    entry *entries;
    uint8_t *bytes;  /* of all words */
    uint32_t *ids;   /* of all words */
    int64_t n, n_bytes, n_ids, n_learned, room, bytes_room, ids_room, most;
} table;

void words_free(table *t) {
    if (!t) return;
    free(t->entries), free(t->bytes), free(t->ids), free(t);
}

/* A table for `most` words; the text of one call may add more. NULL where there is no memory. */
table *words_make(int64_t most) {
    table *t = calloc(1, sizeof(table));
    if (t) t->most = most;
    return t;
}

/* Room for n things of this size; 0 where there is no memory. */
static int grow(void **data, int64_t *room, int64_t n, size_t size) {
    if (n <= *room) return 1;
    int64_t wanted = n > 2 * *room ? n : 2 * *room;
    void *more = realloc(*data, wanted * size);
    if (!more) return 0;
    *data = more, *room = wanted;
    return 1;
}

/* ---- cutting */

static int between(uint32_t c, uint32_t first, uint32_t last) { return first <= c && c <= last; }

static enum kind kind_of(uint32_t c) {
    if (c < 0x80) {
        if (between(c | 32, 'a', 'z') || between(c, '0', '9')) return LETTER;
        if (c == ' ' || c == '\t' || c == '\n' || c == '\r') return SPACE;
        if (c == '\'') return APOSTROPHE;
        if (between(c, 0x0b, 0x0c) || between(c, 0x1c, 0x1f)) return RARE_SPACE;
        return between(c, '!', '~') ? MARK : OTHER;
    }
    if (c == 0x85 || c == 0xa0 || c == 0x1680 || c == 0x180e || between(c, 0x2000, 0x200b) || between(c, 0x2028, 0x2029) || c == 0x202f ||
        c == 0x205f || c == 0x3000)
        return RARE_SPACE;
    if (between(c, 0xc0, 0x24f)) return c == 0xd7 || c == 0xf7 ? OTHER : LETTER;                          /* Latin */
    if (between(c, 0x391, 0x3a1) || between(c, 0x3a3, 0x3ce) || between(c, 0x400, 0x481)) return LETTER; /* Greek, Cyrillic */
    if (between(c, 0x4e00, 0x9fa5)) return LETTER;                                                        /* Chinese */
    if (c == 0x3001 || c == 0x3002 || c == 0xff01 || c == 0xff0c || c == 0xff1a || c == 0xff1b || c == 0xff1f) return MARK; /* 、。！，：；？ */
    return OTHER;
}

/* The kind of the character at `at`, and where the next begins. */
static enum kind next(const uint8_t *text, int64_t at, int64_t end, int64_t *after) {
    uint32_t c = text[at];
    int more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    *after = at + more + 1;
    if (*after > end) return *after = end, OTHER;
    if (more) c &= 0x3f >> more;
    for (int i = 1; i <= more; i++) c = c << 6 | (text[at + i] & 0x3f);
    return kind_of(c);
}

/* Where the word that begins at `at` ends. */
static int64_t word_end(const uint8_t *text, int64_t at, int64_t end) {
    int64_t after;
    enum kind kind = SPACE, before;
    while (at < end && (kind = next(text, at, end, &after)) == SPACE) at = after;
    if (at == end) return end;
    if (kind == LETTER || kind == MARK) {
        enum kind run = kind;
        while (at < end && (kind = next(text, at, end, &after)) == run) at = after;
        if (at == end || kind == SPACE || (run == LETTER && kind == APOSTROPHE) || kind == (run == LETTER ? MARK : LETTER)) return at;
        before = run;
    } else
        before = RARE_SPACE; /* nothing to cut after yet */
    while (at < end) { /* not certain where it is cut: up to a space after something visible */
        kind = next(text, at, end, &after);
        if (kind == SPACE && before != SPACE && before != RARE_SPACE) return at;
        before = kind, at = after;
    }
    return end;
}

/* ---- remembering */

static uint64_t hash_of(const uint8_t *word, int64_t n) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (int64_t i = 0; i < n; i++) hash = (hash ^ word[i]) * 0x100000001b3u;
    return hash ^ hash >> 29;
}

/* The slot of a word: its own, or the free one where it belongs. */
static uint32_t *slot_of(table *t, const uint8_t *word, int64_t n, uint64_t hash) {
    for (uint64_t i = hash;; i++) {
        uint32_t *slot = &t->slots[i & (SLOTS - 1)];
        if (!*slot) return slot;
        entry *e = &t->entries[*slot - 1];
        if (e->hash == hash && e->n_bytes == n && !memcmp(t->bytes + e->word, word, n)) return slot;
    }
}

/* Enter the words that are not known, and note where each stands in the text. How many there are; -1 where memory or the table is full.
   ends (n_parts,): of each part. starts, lengths: room for as many as the text has bytes. */
int64_t words_missing(table *t, const uint8_t *text, const int64_t *ends, int64_t n_parts, int64_t *starts, int64_t *lengths) {
    if (t->n > t->most || t->n_bytes > 32 * t->most) { /* begin anew: what occurs often comes back soon */
        memset(t->slots, 0, sizeof t->slots);
        t->n = t->n_bytes = t->n_ids = t->n_learned = 0;
    }
    int64_t found = 0, at = 0;
    for (int64_t part = 0; part < n_parts; part++)
        while (at < ends[part]) {
            int64_t end = part % 2 ? ends[part] : word_end(text, at, ends[part]), n = end - at;
            uint64_t hash = hash_of(text + at, n);
            uint32_t *slot = slot_of(t, text + at, n, hash);
            if (!*slot) {
                if (t->n + 1 >= SLOTS * 3 / 4 || !grow((void **)&t->entries, &t->room, t->n + 1, sizeof(entry)) ||
                    !grow((void **)&t->bytes, &t->bytes_room, t->n_bytes + n, 1))
                    return -1;
                memcpy(t->bytes + t->n_bytes, text + at, n);
                t->entries[t->n++] = (entry){hash, t->n_bytes, n, 0, 0};
                t->n_bytes += n, *slot = t->n, starts[found] = at, lengths[found++] = n;
            }
            at = end;
        }
    return found;
}

/* The ids of the words that words_missing entered, one after the other, and how many each has. 0, or -1 where there is no memory. */
int64_t words_learn(table *t, const uint32_t *ids, const int64_t *counts, int64_t n_words) {
    int64_t total = 0;
    for (int64_t i = 0; i < n_words; i++) total += counts[i];
    if (!grow((void **)&t->ids, &t->ids_room, t->n_ids + total, sizeof(uint32_t))) return -1;
    memcpy(t->ids + t->n_ids, ids, total * sizeof(uint32_t));
    for (int64_t i = 0; i < n_words; i++) {
        entry *e = &t->entries[t->n_learned++];
        e->ids = t->n_ids, e->n_ids = counts[i];
        t->n_ids += counts[i];
    }
    return 0;
}

/* The ids of a text whose words are known, of which `out` has room for as many as it has bytes; how many there are. */
int64_t words_encode(table *t, const uint8_t *text, const int64_t *ends, int64_t n_parts, uint32_t *out) {
    int64_t n = 0, at = 0;
    for (int64_t part = 0; part < n_parts; part++)
        while (at < ends[part]) {
            int64_t end = part % 2 ? ends[part] : word_end(text, at, ends[part]);
            uint32_t slot = *slot_of(t, text + at, end - at, hash_of(text + at, end - at));
            if (!slot) return -1;
            const entry *e = &t->entries[slot - 1];
            for (uint32_t i = 0; i < e->n_ids; i++) out[n + i] = t->ids[e->ids + i];
            n += e->n_ids, at = end;
        }
    return n;
}
