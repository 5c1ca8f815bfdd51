// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/filler.h"

#include <ctype.h>
#include <string.h>

#define COUNT(array) ((uint32_t)(sizeof(array) / sizeof *(array)))

static const char *const nouns[] = {
    "account", "archive", "batch",   "border",  "branch",  "buffer",  "bundle",  "cache",   "cell",    "channel",
    "chunk",   "column",  "context", "cursor",  "delta",   "device",  "draft",   "edge",    "entry",   "event",
    "field",   "filter",  "frame",   "graph",   "group",   "handler", "header",  "index",   "item",    "journal",
    "key",     "label",   "layer",   "ledger",  "level",   "limit",   "line",    "link",    "loader",  "margin",
    "marker",  "matrix",  "message", "metric",  "mirror",  "node",    "offset",  "option",  "order",   "packet",
    "page",    "parcel",  "path",    "payload", "peer",    "pixel",   "plan",    "point",   "policy",  "pool",
    "profile", "query",   "queue",   "range",   "reader",  "record",  "region",  "report",  "request", "result",
    "route",   "row",     "sample",  "schema",  "scope",   "section", "sensor",  "session", "shape",   "signal",
    "slot",    "source",  "span",    "stack",   "stage",   "state",   "stream",  "table",   "target",  "task",
    "ticket",  "timer",   "token",   "topic",   "total",   "trace",   "tree",    "value",   "vector",  "worker"};

static const char *const verbs[] = {"apply",  "bind",   "build",  "check",   "clean",  "collect", "compare", "convert",
                                    "count",  "decode", "drain",  "encode",  "expand", "fetch",   "find",    "flush",
                                    "format", "insert", "join",   "load",    "merge",  "move",    "open",    "pack",
                                    "parse",  "push",   "rank",   "read",    "refresh", "remove", "render",  "reset",
                                    "resolve", "save",  "scan",   "send",    "shift",  "sort",    "split",   "store",
                                    "trim",   "update", "validate", "visit", "walk",   "write"};

static const char *const adjectives[] = {"active",  "broken", "closed", "current", "default", "empty",  "final",
                                         "first",   "frozen", "global", "hidden",  "initial", "inner",  "known",
                                         "last",    "local",  "main",   "missing", "nested",  "next",   "open",
                                         "outer",   "partial", "pending", "private", "raw",   "recent", "shared",
                                         "sparse",  "stale",  "strict", "total",   "unique",  "valid",  "visible"};

/* Templates of lines. In them $n is a noun, $v a verb, $N and $V the same with a capital, $a an adjective, $d a small
 * number, $0 and $1 the parameters of the function at hand, $2 its result, $3 a local name; a tab indents by one
 * level. */
static const char *const imports[] = {"import $n_$n",
                                      "from $n import $v_$n",
                                      "from .$n import $N$N, $v_$n",
                                      "from ..$n.$n import ($N, $N$N)",
                                      "import os",
                                      "import sys",
                                      "import itertools",
                                      "from collections import defaultdict"};

static const char *const globals[] = {"_$a_$n = None", "$N_$d = $d * $d", "__all__ = ['$v_$n', '$v_$n', '$N$N']",
                                      "_$n_names = {\n\t'$n': $d,\n\t'$a_$n': $d,\n\t'$n_$n': '$a',\n}",
                                      "# $v the $a $n before any $n is $a\n_$n_limit = $d"};

static const char *const docs[] = {
    "\"\"\"$V the $a $n of one $n.\"\"\"",
    "\"\"\"$V every $n in `$0` and return the $a one.\n\nThe $n must be $a, or a ValueError is raised.\n\"\"\"",
    ("\"\"\"\n$V a $n.\n\nParameters\n----------\n$0 : $n\n\tThe $a $n to $v.\n$1 : int, optional\n\tLargest number of "
     "$a items. Default is $d.\n\nReturns\n-------\n$2 : list\n\"\"\""),
    "\"\"\"Return the $n, or None if the $n is $a.\"\"\"",
    "# The $n may be $a here, so $v it first."};

static const char *const steps[] = {
    "$2 = $v_$n($0, $1=$1)",
    "$2 = self._$n.get($0)\nif $2 is None:\n\traise KeyError(\"no $a $n: %r\" % ($0,))",
    "if not $0:\n\treturn $d",
    "if $1 > $d and $0 is not None:\n\t$2 = $0.$v($1 - $d)\nelse:\n\t$2 = []",
    "for $3 in $0:\n\tif $3.$a:\n\t\tcontinue\n\t$2.append($3)",
    "for i, $3 in enumerate($0[$d:]):\n\t$2[i] = $3.$v_$n($1)",
    "while len($0) > $1:\n\t$0.pop()\n\t$1 += $d",
    "try:\n\t$2 = int($0)\nexcept ValueError:\n\t$2 = $d",
    "try:\n\t$0.$v()\nexcept ($NError, OSError) as error:\n\tlog.warning('could not $v $n: %s', error)\n\treturn None",
    "with open(self.$n_path, 'rb') as $3:\n\t$2 = $3.read($d)",
    "assert isinstance($0, $N), \"expected a $n\"",
    "$2 = sorted($0, key=lambda x: x.$n)[:$1]",
    "$2 = {$3: $d for $3 in $0 if $3 != '$a'}",
    "$2 = [x * $d for x in $0 if x % $d == $d]",
    "self._$a_$n = $0",
    "self.$n += $1 // $d",
    "self.$v_$n($0)",
    "if isinstance($0, (list, tuple)):\n\t$0 = $N($0)",
    "print(\"$a $n: %d of %d\" % (len($0), $1))",
    "# $v what is left of the $a $n\n$2 = $0.$v($1)",
    "$0.$n = max($d, min($1, $d))",
    "if self.$a:\n\treturn self.$v_$n($0, $1)\nelif $1 == $d:\n\t$2 = None",
    "$2 = '$n-%s/$n' % $0.$n.strip().lower()",
    "del self._$n[$0:$1]",
    "$0, $1 = $1, $0",
    "$2 = np.zeros(($d, len($0)))\n$2[:, $d] = $1"};

static const char *const returns[] = {"return $2", "return $2 or $0", "return $N($0, $2)", "return len($2) - $d",
                                      "return self._$n[$1]", "return True", "yield $0, $2"};

static const char *const signatures[] = {"def $v_$n($0, $1=$d):", "def $v_$a_$n($0, $1):", "def _$v_$n($0, $1=None):",
                                         "def $n_$n($0, *$1):", "def $v($0, $1=False, **kwargs):"};

static const char *const methods[] = {"def $v(self, $0, $1=$d):",      "def $v_$n(self, $0, $1):",
                                      "def _$v(self, $0, $1=None):",   "@property\ndef $a_$n(self, $0=None, $1=$d):",
                                      "def __call__(self, $0, $1=$d):", "@classmethod\ndef from_$n(cls, $0, $1='$a'):"};

static const char *const classes[] = {"class $N$N(object):", "class $N($N$N):", "class $NError(ValueError):",
                                      "@register('$n')\nclass $N$N:"};

struct writer {
  char *out;
  size_t size, used;
  uint64_t random;
  const char *names[4]; /* what $0 to $3 stand for */
};

uint64_t random_next(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

uint32_t random_below(uint64_t *state, uint32_t bound) { return (uint32_t)((random_next(state) >> 32) * bound >> 32); }

static void put(struct writer *w, char c) {
  if (w->used < w->size)
    w->out[w->used++] = c;
}

static void put_word(struct writer *w, const char *word, int capital) {
  for (; *word; word++, capital = 0)
    put(w, capital ? (char)toupper((unsigned char)*word) : *word);
}

static const char *pick(struct writer *w, const char *const *words, uint32_t count) {
  return words[random_below(&w->random, count)];
}

static void put_number(struct writer *w) {
  static const uint32_t bounds[] = {3, 10, 10, 64, 300};
  uint32_t n = random_below(&w->random, bounds[random_below(&w->random, COUNT(bounds))]);
  if (n >= 100)
    put(w, (char)('0' + n / 100));
  if (n >= 10)
    put(w, (char)('0' + n / 10 % 10));
  put(w, (char)('0' + n % 10));
}

/* What $x in a template stands for. */
static void put_place(struct writer *w, char kind) {
  if (kind == 'n' || kind == 'N')
    put_word(w, pick(w, nouns, COUNT(nouns)), kind == 'N');
  else if (kind == 'v' || kind == 'V')
    put_word(w, pick(w, verbs, COUNT(verbs)), kind == 'V');
  else if (kind == 'a')
    put_word(w, pick(w, adjectives, COUNT(adjectives)), 0);
  else if (kind == 'd')
    put_number(w);
  else
    put_word(w, w->names[kind - '0'], 0);
}

static void put_indent(struct writer *w, int level) {
  for (int i = 0; i < 4 * level; i++)
    put(w, ' ');
}

/* Writes a template as whole lines. */
static void put_lines(struct writer *w, const char *template, int level) {
  put_indent(w, level);
  for (const char *c = template; *c; c++) {
    if (*c == '$')
      put_place(w, *++c);
    else if (*c == '\t')
      put_indent(w, 1);
    else
      put(w, *c);
    if (*c == '\n' && c[1] != '\n')
      put_indent(w, level);
  }
  put(w, '\n');
}

#define PUT(w, list, level) put_lines((w), pick((w), (list), COUNT(list)), (level))

static void put_function(struct writer *w, const char *const *heads, uint32_t head_count, int level) {
  for (int i = 0; i < 4; i++)
    w->names[i] = pick(w, nouns, COUNT(nouns));
  put_lines(w, pick(w, heads, head_count), level);
  if (random_below(&w->random, 3))
    PUT(w, docs, level + 1);
  for (uint32_t left = 1 + random_below(&w->random, 6); left; left--)
    PUT(w, steps, level + 1);
  PUT(w, returns, level + 1);
  put(w, '\n');
}

static void put_class(struct writer *w) {
  PUT(w, classes, 0);
  w->names[0] = pick(w, nouns, COUNT(nouns));
  w->names[1] = w->names[2] = w->names[3] = "size";
  PUT(w, docs, 1);
  put(w, '\n');
  for (uint32_t left = 1 + random_below(&w->random, 4); left; left--)
    put_function(w, methods, COUNT(methods), 1);
}

void filler_write(uint64_t seed, char *out, size_t size) {
  struct writer w = {.out = out, .size = size, .random = seed, .names = {"item", "size", "result", "x"}};
  for (int i = 0; i < 6; i++)
    PUT(&w, imports, 0);
  put(&w, '\n');
  while (w.used < w.size) {
    uint32_t kind = random_below(&w.random, 8);
    if (kind == 0) {
      PUT(&w, globals, 0);
      put(&w, '\n');
    } else if (kind < 5) {
      put_function(&w, signatures, COUNT(signatures), 0);
    } else {
      put_class(&w);
    }
  }
  if (size)
    out[size - 1] = '\n';
}
