// One team of threads that walks through operations together: the caller is its first member.
//
// Between operations the members wait for each other at a barrier, spinning briefly and then asleep (so that a busy neighbour, or more
// threads than cores, costs time and not standstill). Between runs they wait the same way.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "step.h"

namespace octavo {

// A counter that threads wait on: spin, then sleep (futex).
class WaitWord {
  public:
    uint32_t load() const { return value_.load(std::memory_order_acquire); }
    void advance();                              // add one and wake who sleeps
    void wait_while(uint32_t old, int spins);    // until the value is another than `old`

  private:
    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
};

// Anonymous pages, huge where the system has them; zero.
class Pages {
  public:
    Pages() = default;
    explicit Pages(size_t bytes);
    ~Pages();
    Pages(Pages&& other) noexcept;
    Pages& operator=(Pages&& other) noexcept;
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

class Team {
  public:
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return int(workers_.size()); }
    // Call work(argument, worker) on every thread and return when all have; one run at a time.
    void run(void (*work)(void*, Worker&), void* argument);
    void barrier();
    // Make the threads' own and the shared scratch at least this large; not while a run is under way.
    void reserve(size_t scratch_bytes, size_t shared_bytes);

  private:
    void live(int id);

    std::vector<Worker> workers_;
    std::vector<std::thread> threads_;
    std::vector<Pages> scratch_;
    Pages shared_;
    void (*work_)(void*, Worker&) = nullptr;
    void* argument_ = nullptr;
    bool stop_ = false;
    WaitWord start_;  // advanced when a run begins
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) WaitWord passed_;  // advanced when all have arrived at a barrier
};

}  // namespace octavo
