// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Blocks as threads of the system, their threads as fibers. A fiber runs until it has to wait for others of its block
// or warp, and then the next one that need not wait does.
#include "tests/cuda/fibers.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/cuda/emulation.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

thread_local emulation::Place emulation::place;

namespace {

enum { STACK_BYTES = 1 << 16, STAGGER = 64, SLEEP_US = 30, PAUSES = 16, PAUSE_US = 20000, NOWHERE = -1 };

struct Fiber {
  ucontext_t first;            /* where it begins; with a sanitizer, where it is */
  jmp_buf next;                /* where it goes on */
  const uint64_t *waits = nullptr; /* until this is another number than `number` */
  uint64_t number = 0;
  bool begun = false, done = false;
};

/* A block's barrier, or a warp's. */
struct Meeting {
  uint64_t number = 0; /* of meetings that are over */
  uint32_t live = 0, arrived = 0;
  int line = NOWHERE;
};

struct Warp {
  Meeting meeting;
  uint64_t given[emulation::WARP], taken[emulation::WARP];
};

/* Stacks of blocks that are done, by the number of threads: the system takes long to give new ones. */
std::mutex stacks_lock;
std::map<unsigned, std::vector<char *>> spare_stacks;

char *take_stacks(unsigned threads) {
  std::lock_guard<std::mutex> guard(stacks_lock);
  std::vector<char *> &spare = spare_stacks[threads];
  if (spare.empty()) {
    void *memory = mmap(nullptr, static_cast<size_t>(threads) * STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
      emulation::die("no memory for the stacks of a block");
    return static_cast<char *>(memory);
  }
  char *stacks = spare.back();
  spare.pop_back();
  return stacks;
}

void give_stacks(unsigned threads, char *stacks) {
  std::lock_guard<std::mutex> guard(stacks_lock);
  spare_stacks[threads].push_back(stacks);
}

/* How far a grid is, for the next one. */
struct Progress {
  std::atomic<unsigned> holding{0}; /* blocks that keep that from beginning */
  std::atomic<bool> ended{false};
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  char *stacks;
  Meeting meeting;
  uint32_t here[2] = {0, 0}; /* of this barrier and the next one */
  const std::function<void()> *kernel;
  ucontext_t scheduler;
  jmp_buf scheduler_next;
  uint32_t now; /* the fiber that runs */
  emulation::Place place;
  uint64_t random;
  Progress *progress;
  const Progress *previous; /* of the grid before; none where that has ended */
  bool holding = true;

  explicit Block(unsigned threads) : fibers(threads), warps((threads + 31) / 32), stacks(take_stacks(threads)) {}
  Block(const Block &) = delete;
  Block &operator=(const Block &) = delete;
  ~Block() { give_stacks(static_cast<unsigned>(fibers.size()), stacks); }
};

thread_local Block *block;

uint32_t pick(Block &of, uint32_t below) {
  of.random = of.random * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(of.random >> 33) % below;
}

/* Once for every block, at its end at the latest. */
bool admit(Block &of) {
  bool first = of.holding;
  if (first)
    of.progress->holding--;
  of.holding = false;
  return first;
}

/* --- turns ------------------------------------------------------------------------------------------------------- */

void end_meeting(Meeting &meeting) {
  meeting.arrived = 0;
  meeting.line = NOWHERE;
  meeting.number++;
}

/* One thread less to wait for. True when that ends the meeting of the others. */
bool leave(Meeting &meeting) {
  meeting.live--;
  return meeting.arrived && meeting.arrived == meeting.live;
}

void to_scheduler() {
  Fiber &self = block->fibers[block->now];
  if (SANITIZED)
    swapcontext(&self.first, &block->scheduler);
  else if (!_setjmp(self.next))
    _longjmp(block->scheduler_next, 1);
}

void fiber_main() {
  (*block->kernel)();
  Fiber &self = block->fibers[block->now];
  Warp &warp = block->warps[block->now / emulation::WARP];
  self.done = true;
  if (leave(block->meeting)) {
    block->here[(block->meeting.number + 1) % 2] = 0;
    end_meeting(block->meeting);
  }
  if (warp.meeting.arrived)
    emulation::die("a thread ends while others of its warp wait for it");
  warp.meeting.live--;
  to_scheduler();
}

/* Lets one fiber go on until it waits, gives way or ends. */
void resume(Fiber &fiber, uint32_t number) {
  block->now = number;
  emulation::place = block->place;
  emulation::place.thread.x = number;
  if (SANITIZED)
    swapcontext(&block->scheduler, &fiber.first);
  else if (_setjmp(block->scheduler_next))
    return;
  else if (fiber.begun)
    _longjmp(fiber.next, 1);
  else {
    fiber.begun = true;
    setcontext(&fiber.first);
  }
}

bool may_run(const Fiber &fiber) { return !fiber.done && (!fiber.waits || *fiber.waits != fiber.number); }

void wait_for(const Meeting &meeting) {
  Fiber &self = block->fibers[block->now];
  self.number = meeting.number;
  self.waits = &meeting.number;
  to_scheduler();
  self.waits = nullptr;
}

void run_all_fibers() {
  uint32_t count = static_cast<uint32_t>(block->fibers.size());
  bool backwards = false;
  while (block->meeting.live) {
    uint32_t first = pick(*block, count), ran = 0;
    backwards = pick(*block, 2);
    for (uint32_t i = 0; i < count; i++) {
      uint32_t number = (first + (backwards ? count - i : i)) % count;
      if (!may_run(block->fibers[number]))
        continue;
      resume(block->fibers[number], number);
      ran++;
    }
    if (!ran)
      emulation::die("all threads of a block wait, some at a barrier and others for their warp");
  }
}

/* --- blocks ------------------------------------------------------------------------------------------------------ */

void run_block(unsigned number, const emulation::Grid &of, Progress *progress, const Progress *previous) {
  const dim3 grid = of.blocks;
  const unsigned threads = of.threads;
  Block here(threads);
  ucontext_t blank;
  getcontext(&blank);
  block = &here;
  here.kernel = &of.kernel;
  here.progress = progress;
  here.previous = previous;
  here.random = emulation::chance();
  here.place = {{0, 0, 0},
                {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y}};
  blockDim = {threads, 1, 1};
  gridDim = {grid.x, grid.y, grid.z};
  here.meeting.live = threads;
  for (unsigned i = 0; i < threads; i++) {
    Fiber &fiber = here.fibers[i];
    here.warps[i / emulation::WARP].meeting.live++;
    fiber.first = blank;
    fiber.first.uc_stack.ss_sp = here.stacks + static_cast<size_t>(i) * STACK_BYTES;
    fiber.first.uc_stack.ss_size = STACK_BYTES;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, fiber_main, 0);
  }
  run_all_fibers();
  admit(here);
}

/* Blocks of all grids take the places that there are, in the order in which they are launched. */
std::atomic<unsigned> running_blocks{0};

void take_place() {
  for (unsigned now = running_blocks;; now = running_blocks) {
    if (now == emulation::blocks_at_a_time())
      usleep(SLEEP_US);
    else if (running_blocks.compare_exchange_weak(now, now + 1))
      return;
  }
}

unsigned blocks_of(const emulation::Grid &grid) { return grid.blocks.x * grid.blocks.y * grid.blocks.z; }

void run_grid(const emulation::Grid &grid, Progress *progress, const Progress *previous) {
  unsigned blocks = blocks_of(grid);
  std::atomic<unsigned> next{0};
  unsigned workers = std::min<unsigned>(blocks, emulation::blocks_at_a_time());
  std::vector<std::thread> running;
  for (unsigned i = 0; i < workers; i++)
    running.emplace_back([&] {
      for (unsigned number; (number = next++) < blocks; running_blocks--) {
        take_place();
        run_block(number, grid, progress, previous);
      }
    });
  for (std::thread &thread : running)
    thread.join();
  progress->ended = true;
}

} // namespace

void emulation::run_grids(const std::vector<Grid> &grids) {
  std::deque<Progress> progress;
  std::vector<std::thread> running;
  for (const Grid &grid : grids)
    progress.emplace_back().holding = blocks_of(grid);
  for (size_t i = 0; i < grids.size(); i++) {
    const Progress *previous = i ? &progress[i - 1] : nullptr;
    bool early = chance() % 4;
    while (previous && !(early ? previous->holding == 0 : previous->ended.load()))
      usleep(SLEEP_US);
    running.emplace_back(run_grid, std::cref(grids[i]), &progress[i], previous);
  }
  for (std::thread &thread : running)
    thread.join();
}

uint64_t emulation::chance() {
  static std::atomic<uint64_t> state{static_cast<uint64_t>(time(nullptr)) * 0x9e3779b97f4a7c15u};
  uint64_t z = state.fetch_add(0x9e3779b97f4a7c15u);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

void emulation::die(const char *what) {
  fprintf(stderr, "emulation: %s\n", what);
  abort();
}

/* --- what threads call ------------------------------------------------------------------------------------------- */

static void meet(Meeting &meeting, int line) {
  if (meeting.line != NOWHERE && meeting.line != line) {
    fprintf(stderr, "emulation: threads wait at lines %d and %d\n", meeting.line, line);
    abort();
  }
  meeting.line = line;
  meeting.arrived++;
}

uint32_t emulation::barrier(int line, bool here) {
  Meeting &meeting = block->meeting;
  uint64_t number = meeting.number;
  meet(meeting, line);
  block->here[number % 2] += here;
  if (meeting.arrived == meeting.live) {
    block->here[(number + 1) % 2] = 0;
    end_meeting(meeting);
    to_scheduler();
  } else {
    wait_for(meeting);
  }
  return block->here[number % 2];
}

const uint64_t *emulation::exchange(int line, uint32_t mask, uint64_t value) {
  Warp &warp = block->warps[block->now / WARP];
  if (static_cast<uint32_t>(__builtin_popcount(mask)) != warp.meeting.live)
    die("a warp's operation is not for all of its threads");
  meet(warp.meeting, line);
  warp.given[block->now % WARP] = value;
  if (warp.meeting.arrived == warp.meeting.live) {
    memcpy(warp.taken, warp.given, sizeof warp.taken);
    end_meeting(warp.meeting);
  } else {
    wait_for(warp.meeting);
  }
  return warp.taken;
}

void emulation::wait_for_previous() {
  while (block->previous && !block->previous->ended)
    sleep();
}

void emulation::admit_next() {
  if (admit(*block) && pick(*block, PAUSES) == 0) /* so that the next grid gets ahead of this block */
    usleep(PAUSE_US);
}

void emulation::sleep() {
  to_scheduler();
  usleep(SLEEP_US);
}

void emulation::stagger() {
  if (pick(*block, STAGGER) == 0)
    to_scheduler();
}
