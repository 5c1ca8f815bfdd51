#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Times FAISS IndexBinaryFlat: faiss_compare.py SIGNATURES QUERIES K, files of 16 bytes a signature.

Prints the version, then answers every line on its input. "time I": the seconds of processor time of one search for
query I, one number for each of the index's two ways to select. "check I": the distances found, ascending."""
import sys
import time

import faiss
import numpy


def main():
    faiss.omp_set_num_threads(1)
    base = numpy.fromfile(sys.argv[1], dtype=numpy.uint8).reshape(-1, 16)
    queries = numpy.fromfile(sys.argv[2], dtype=numpy.uint8).reshape(-1, 16)
    k = int(sys.argv[3])
    index = faiss.IndexBinaryFlat(128)
    index.add(base)
    del base
    print(faiss.__version__, flush=True)
    for line in sys.stdin:
        words = line.split()
        query = queries[int(words[-1])].reshape(1, 16)
        if words[0] == "check":
            distances, _ = index.search(query, k)
            print(*sorted(distances[0]), flush=True)
            continue
        times = []
        for index.use_heap in (True, False):
            start = time.thread_time()
            index.search(query, k)
            times.append(time.thread_time() - start)
        print(*times, flush=True)


main()
