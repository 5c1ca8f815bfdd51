// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// CUDA C++ as a C++ compiler takes it: include this, then a .cu file. Every block is a thread of the system, so that
// blocks meet with real atomics, and its threads are fibers that take turns where they wait for each other, in another
// order every time, and now and then at an atomic operation. What a wait depends on and what the real thing leaves
// undefined (threads that wait at different barriers, lanes that are missing, memory nobody wrote) ends the program
// or meets random bytes. What only real hardware has, races within an order of turns among them, is not seen.
#ifndef COLDKV_TESTS_CUDA_EMULATION_HPP
#define COLDKV_TESTS_CUDA_EMULATION_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct emulated_index {
  unsigned x, y, z;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(8) float2 {
  float x, y;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulation {

enum { BLOCKS_PER_PROCESSOR = 2, WARP = 32 };

struct Place {
  emulated_index thread, block;
};
extern thread_local Place place;

/* Of a block: waits for all its threads, and returns in how many `here` is true. `line` tells barriers apart. */
uint32_t barrier(int line, bool here);
/* Of a warp: waits for all its threads, and returns what each of them gave. */
const uint64_t *exchange(int line, uint32_t mask, uint64_t value);
/* Lets other threads of the block go on, now and then. */
void stagger();
/* Lets them, and other blocks, for a while. */
void sleep();

/* Until the grid before in the stream has ended, where this one may begin before that. */
void wait_for_previous();
/* The block no longer keeps the next grid from beginning. */
void admit_next();

/* How a grid runs. */
struct Way {
  bool all_at_a_time; /* its blocks */
  bool overlaps;      /* it may begin when all blocks of the grid before have admitted it or ended */
};

/* Runs `kernel` in every thread of the grid, when the stream comes to it. */
cudaError_t launch(dim3 grid, dim3 block, Way way, cudaStream_t stream, std::function<void()> kernel);

template <typename T> T shuffle(int line, uint32_t mask, T value, uint32_t from) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "what a lane gives");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const uint64_t *all = exchange(line, mask, bits);
  std::memcpy(&value, &all[from % WARP], sizeof value);
  return value;
}

inline uint32_t lane() { return place.thread.x % WARP; }

inline uint32_t ballot(int line, uint32_t mask, bool here) {
  const uint64_t *all = exchange(line, mask, here);
  uint32_t bits = 0;
  for (uint32_t i = 0; i < WARP; i++)
    bits |= mask >> i & 1 ? static_cast<uint32_t>(all[i] & 1) << i : 0;
  return bits;
}

template <typename... A, size_t... I>
cudaError_t launch_with(void (*kernel)(A...), dim3 grid, dim3 block, void **arguments, cudaStream_t stream,
                        std::index_sequence<I...>) {
  std::tuple<A...> copies(*static_cast<A *>(arguments[I])...); /* now, as the real thing does */
  return launch(grid, block, {false, false}, stream, [kernel, copies] { std::apply(kernel, copies); });
}

} // namespace emulation

#define threadIdx (emulation::place.thread)
#define blockIdx (emulation::place.block)
inline thread_local emulated_index blockDim, gridDim; /* no macros: cudaLaunchConfig_t has members of these names */

/* --- within a block ---------------------------------------------------------------------------------------------- */

#define __syncthreads() static_cast<void>(emulation::barrier(__LINE__, false))
#define __syncthreads_count(here) (emulation::barrier(__LINE__, (here)))
#define __syncwarp() static_cast<void>(emulation::exchange(__LINE__, ~0u, 0))
#define __shfl_sync(mask, value, from) (emulation::shuffle(__LINE__, (mask), (value), (from)))
#define __shfl_xor_sync(mask, value, with)                                                                             \
  (emulation::shuffle(__LINE__, (mask), (value), emulation::lane() ^ static_cast<uint32_t>(with)))
#define __shfl_up_sync(mask, value, by)                                                                                \
  (emulation::shuffle(__LINE__, (mask), (value),                                                                       \
                      emulation::lane() >= (by) ? emulation::lane() - (by) : emulation::lane()))
#define __ballot_sync(mask, here) (emulation::ballot(__LINE__, (mask), (here)))

/* --- memory ------------------------------------------------------------------------------------------------------ */

template <typename T> T __ldg(const T *from) { return *from; }
template <typename T> T __ldcs(const T *from) { return *from; }
template <typename T> T __ldcg(const T *from) {
  T value;
  __atomic_load(from, &value, __ATOMIC_ACQUIRE);
  return value;
}

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __threadfence(); }

template <typename T, typename V> T atomicAdd(T *at, V value) {
  emulation::stagger();
  return __atomic_fetch_add(at, static_cast<T>(value), __ATOMIC_RELAXED);
}

template <typename T, typename V> T atomicExch(T *at, V value) {
  emulation::stagger();
  return __atomic_exchange_n(at, static_cast<T>(value), __ATOMIC_RELAXED);
}

inline void __nanosleep(unsigned) { emulation::sleep(); }

/* --- arithmetic -------------------------------------------------------------------------------------------------- */

using std::max;
using std::min;

/* Not the compiler's, which is a call where the processor's instruction may not be used. */
inline int __popc(uint32_t word) {
  word -= word >> 1 & 0x55555555u;
  word = (word & 0x33333333u) + (word >> 2 & 0x33333333u);
  return static_cast<int>(((word + (word >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
}

/* Four of eight bytes, by the nibbles of the selector. */
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned word = 0;
  for (int i = 0; i < 4; i++)
    word |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return word;
}

inline int __clzll(long long word) { return word ? __builtin_clzll(static_cast<unsigned long long>(word)) : 64; }

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline float __fmul_rn(float a, float b) { return a * b; }

/* --- launches ---------------------------------------------------------------------------------------------------- */

template <typename... A>
cudaError_t cudaLaunchKernel(void (*kernel)(A...), dim3 grid, dim3 block, void **arguments, size_t,
                             cudaStream_t stream) {
  return emulation::launch_with(kernel, grid, block, arguments, stream, std::index_sequence_for<A...>());
}

enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    int cooperative, programmaticStreamSerializationAllowed;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute *attrs;
  unsigned numAttrs;
};

template <typename A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(A), const A &argument) {
  emulation::Way way = {false, false};
  for (unsigned i = 0; i < config->numAttrs; i++)
    (config->attrs[i].id == cudaLaunchAttributeCooperative ? way.all_at_a_time : way.overlaps) |=
        config->attrs[i].val.cooperative != 0;
  return emulation::launch(config->gridDim, config->blockDim, way, config->stream,
                           [kernel, argument] { kernel(argument); });
}

inline void cudaGridDependencySynchronize() { emulation::wait_for_previous(); }
inline void cudaTriggerProgrammaticLaunchCompletion() { emulation::admit_next(); }

template <typename A>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*)(A), int, size_t) {
  *blocks = emulation::BLOCKS_PER_PROCESSOR;
  return cudaSuccess;
}

#endif
