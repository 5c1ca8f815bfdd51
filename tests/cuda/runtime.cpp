// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The runtime's side of the stand-in for CUDA: memory and one stream. What is enqueued is done at once or only when
// somebody waits, as chance has it, so that host memory that is used again too early shows. New memory holds random
// bytes, and so does what is given back.
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>

#include "tests/cuda/emulation.hpp"
#include "tests/cuda/fibers.hpp"

namespace {

enum { PROCESSORS = 7, ALIGNMENT = 256 };

enum class Kind { DEVICE, PINNED };

struct Memory {
  Kind kind;
  size_t size;
};

std::recursive_mutex lock;
std::map<const char *, Memory> memories;
std::deque<std::function<void()>> stream;

void fill(void *memory, size_t size) {
  uint64_t state = emulation::chance();
  for (size_t i = 0; i < size; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    static_cast<char *>(memory)[i] = static_cast<char>(state >> 56);
  }
}

cudaError_t allocate(void **memory, size_t size, Kind kind) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (posix_memalign(memory, ALIGNMENT, size ? size : 1))
    return cudaErrorMemoryAllocation;
  fill(*memory, size);
  memories[static_cast<const char *>(*memory)] = {kind, size};
  return cudaSuccess;
}

void give_back(void *memory, Kind kind) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  auto at = memories.find(static_cast<const char *>(memory));
  if (at == memories.end() || at->second.kind != kind)
    emulation::die("memory is given back that is not there, or of another kind");
  fill(memory, at->second.size);
  memories.erase(at);
  free(memory);
}

bool is_pinned(const void *address) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  auto at = memories.upper_bound(static_cast<const char *>(address));
  if (at == memories.begin())
    return false;
  --at;
  return at->second.kind == Kind::PINNED && static_cast<const char *>(address) < at->first + at->second.size;
}

cudaError_t wait() {
  std::lock_guard<std::recursive_mutex> guard(lock);
  while (!stream.empty()) {
    std::function<void()> next = std::move(stream.front());
    stream.pop_front();
    next();
  }
  return cudaSuccess;
}

cudaError_t enqueue(std::function<void()> work) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  stream.push_back(std::move(work));
  return emulation::chance() % 4 ? cudaSuccess : wait();
}

} // namespace

cudaError_t emulation::launch(dim3 grid, dim3 block, bool all_at_a_time, std::function<void()> kernel) {
  if (grid.x == 0 || block.x == 0 || (all_at_a_time && grid.x > PROCESSORS * BLOCKS_PER_PROCESSOR))
    return cudaErrorInvalidValue;
  return enqueue([=] { emulation::run_grid(grid.x, block.x, all_at_a_time, kernel); });
}

extern "C" {

struct emulated_event {
  unsigned flags;
};

struct emulated_pool {
  int device;
};

cudaError_t cudaGetLastError(void) { return cudaSuccess; }

const char *cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess                 ? "no error"
         : status == cudaErrorMemoryAllocation ? "out of memory"
                                               : "not as it should be";
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int) {
  *properties = {};
  snprintf(properties->name, sizeof properties->name, "emulation");
  properties->major = 8;
  properties->multiProcessorCount = PROCESSORS;
  properties->cooperativeLaunch = 1;
  properties->l2CacheSize = 1 << 20;
  properties->totalGlobalMem = 1 << 30;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return wait(); }

cudaError_t cudaMalloc(void **memory, size_t size) { return allocate(memory, size, Kind::DEVICE); }
cudaError_t cudaMallocHost(void **memory, size_t size) { return allocate(memory, size, Kind::PINNED); }

cudaError_t cudaFree(void *memory) {
  wait();
  if (memory)
    give_back(memory, Kind::DEVICE);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory) {
  wait();
  if (memory)
    give_back(memory, Kind::PINNED);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t size, cudaStream_t) {
  return enqueue([=] { memset(memory, value, size); });
}

cudaError_t cudaMemset(void *memory, int value, size_t size) { return cudaMemsetAsync(memory, value, size, nullptr); }

/* What is not pinned is copied now, as the real thing does. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t) {
  if (kind != cudaMemcpyHostToDevice || is_pinned(from))
    return enqueue([=] { memcpy(to, from, size); });
  std::string bytes(static_cast<const char *>(from), size);
  return enqueue([=] { memcpy(to, bytes.data(), size); });
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) {
  *pool = new emulated_pool{properties->location.id};
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, enum cudaMemPoolAttr, void *) { return cudaSuccess; }

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  delete pool;
  return cudaSuccess;
}

cudaError_t cudaMallocFromPoolAsync(void **memory, size_t size, cudaMemPool_t, cudaStream_t) {
  return allocate(memory, size, Kind::DEVICE);
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t) {
  return enqueue([=] { give_back(memory, Kind::DEVICE); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = new emulated_event{flags};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait(); }

} // extern "C"
