// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The runtime's side of the stand-in for CUDA: memory, streams and events. What is enqueued is done at once or only when
// somebody waits, and streams go on in any order that their events allow, as chance has it: so memory that is used again
// too early shows, and a stream that does not wait for another. New memory holds random bytes, and so does what is given
// back.
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/cuda/emulation.hpp"
#include "tests/cuda/fibers.hpp"

using Happened = std::shared_ptr<bool>;

struct emulated_event {
  Happened last; /* of its newest record */
};

/* Something to do, after something has happened: a grid, or anything else. */
struct Work {
  std::function<void()> run;
  Happened after;
  std::shared_ptr<const emulation::Grid> grid;
};

struct emulated_stream {
  unsigned flags;
  std::deque<Work> work;
};

namespace {

enum { PROCESSORS_MAX = 7, ALIGNMENT = 256 };

enum class Kind { DEVICE, PINNED };

struct Memory {
  Kind kind;
  size_t size;
};

std::recursive_mutex lock;
std::map<const char *, Memory> memories;
void fill(void *memory, size_t size) {
  uint64_t state = emulation::chance();
  for (size_t i = 0; i < size; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    static_cast<char *>(memory)[i] = static_cast<char>(state >> 56);
  }
}

/* As many in every run as chance has it: in half of them one, which has to do everything. */
unsigned processors() {
  static const unsigned more = emulation::chance() % 2 ? static_cast<unsigned>(emulation::chance() % PROCESSORS_MAX) : 0;
  return 1 + more;
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

emulated_stream default_stream = {0, {}};
std::vector<emulated_stream *> streams = {&default_stream};

/* A grid, and with it those behind that may overlap with the one before each. */
void run_grids(emulated_stream *stream, const emulation::Grid &first) {
  std::vector<emulation::Grid> grids = {first};
  while (!stream->work.empty() && stream->work.front().grid && stream->work.front().grid->way.overlaps) {
    grids.push_back(*stream->work.front().grid);
    stream->work.pop_front();
  }
  emulation::run_grids(grids);
}

/* Lets one stream take a step; false when none can. */
bool step() {
  size_t first = emulation::chance() % streams.size();
  for (size_t i = 0; i < streams.size(); i++) {
    emulated_stream *stream = streams[(first + i) % streams.size()];
    if (stream->work.empty())
      continue;
    Work &next = stream->work.front();
    if (next.after && !*next.after)
      continue;
    Work work = std::move(next);
    stream->work.pop_front();
    if (work.grid)
      run_grids(stream, *work.grid);
    else
      work.run();
    return true;
  }
  return false;
}

template <typename Done> cudaError_t wait_until(Done done) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  while (!done())
    if (!step())
      emulation::die("streams wait for an event that nobody records");
  return cudaSuccess;
}

cudaError_t wait() {
  return wait_until([] {
    for (const emulated_stream *stream : streams)
      if (!stream->work.empty())
        return false;
    return true;
  });
}

/* The default stream waits for all that are not "non-blocking", and these for it. */
cudaError_t enqueue(cudaStream_t given, Work work) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  emulated_stream *stream = given ? given : &default_stream;
  if (!given || !(given->flags & cudaStreamNonBlocking))
    wait_until([stream] {
      bool clear = stream == &default_stream || default_stream.work.empty();
      for (const emulated_stream *other : streams)
        clear &= stream != &default_stream || other == stream || (other->flags & cudaStreamNonBlocking) ||
                 other->work.empty();
      return clear;
    });
  stream->work.push_back(std::move(work));
  if (emulation::chance() % 4 == 0)
    for (uint64_t steps = emulation::chance() % 8; steps && step(); steps--)
      continue;
  return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> run) {
  return enqueue(stream, Work{std::move(run), nullptr, nullptr});
}

} // namespace

unsigned emulation::blocks_at_a_time() { return processors() * BLOCKS_PER_PROCESSOR; }

cudaError_t emulation::launch(dim3 grid, dim3 block, Way way, cudaStream_t stream, std::function<void()> kernel) {
  unsigned blocks = grid.x * grid.y * grid.z;
  if (blocks == 0 || block.x == 0 || (way.all_at_a_time && blocks > blocks_at_a_time()))
    return cudaErrorInvalidValue;
  return enqueue(stream, Work{nullptr, nullptr, std::make_shared<Grid>(Grid{grid, block.x, way, std::move(kernel)})});
}

extern "C" {

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
  properties->major = 9;
  properties->multiProcessorCount = static_cast<int>(processors());
  properties->cooperativeLaunch = 1;
  properties->l2CacheSize = 1 << 20;
  properties->totalGlobalMem = 1 << 30;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr, int) {
  *value = emulation::chance() % 4 == 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) { return wait(); }

cudaError_t cudaMalloc(void **memory, size_t size) { return allocate(memory, size, Kind::DEVICE); }
cudaError_t cudaMallocHost(void **memory, size_t size) { return allocate(memory, size, Kind::PINNED); }
cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned) { return allocate(memory, size, Kind::PINNED); }

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

cudaError_t cudaMemsetAsync(void *memory, int value, size_t size, cudaStream_t stream) {
  return enqueue(stream, [=] { memset(memory, value, size); });
}

cudaError_t cudaMemset(void *memory, int value, size_t size) { return cudaMemsetAsync(memory, value, size, nullptr); }

/* Where the host's memory is not pinned, the real thing is done with it when it returns. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind == cudaMemcpyHostToDevice && !is_pinned(from)) {
    std::string bytes(static_cast<const char *>(from), size);
    return enqueue(stream, [=] { memcpy(to, bytes.data(), size); });
  }
  cudaError_t status = enqueue(stream, [=] { memcpy(to, from, size); });
  return kind == cudaMemcpyDeviceToHost && !is_pinned(to) ? cudaStreamSynchronize(stream) : status;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  cudaMemcpyAsync(to, from, size, kind, nullptr);
  return cudaStreamSynchronize(nullptr);
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

cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream) {
  return enqueue(stream, [=] { give_back(memory, Kind::DEVICE); });
}

/* --- events and streams ------------------------------------------------------------------------------------------ */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = new emulated_event{std::make_shared<bool>(true)};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  Happened happened = event->last = std::make_shared<bool>(false);
  return enqueue(stream, [happened] { *happened = true; });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return wait_until([event] { return *event->last; });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (*event->last)
    return cudaSuccess;
  step();
  return cudaErrorNotReady;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  *stream = new emulated_stream{flags, {}};
  streams.push_back(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, 0); }

cudaError_t cudaStreamSynchronize(cudaStream_t given) {
  const emulated_stream *stream = given ? given : &default_stream;
  return wait_until([stream] { return stream->work.empty(); });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  cudaStreamSynchronize(stream);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  return enqueue(stream, Work{[] {}, event->last, nullptr});
}

} // extern "C"
