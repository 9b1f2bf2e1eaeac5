#include "team.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <new>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octavo {

namespace {

// Turns of the waiting loop before a thread sleeps: about 50 microseconds. Waking costs as much, and so does a slow neighbour's gain.
constexpr int BARRIER_SPINS = 2000;
constexpr int IDLE_SPINS = 4000;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

long futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
    static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is a plain word");
    return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

}  // namespace

void WaitWord::advance() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst)) futex(&value_, FUTEX_WAKE, INT_MAX);
}

void WaitWord::wait_while(uint32_t old, int spins) {
    for (int i = 0; i < spins; i++) {
        if (value_.load(std::memory_order_acquire) != old) return;
        relax();
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == old) futex(&value_, FUTEX_WAIT, old);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

Pages::Pages(size_t bytes) : size_((bytes + 4095) / 4096 * 4096) {
    if (!size_) return;
    constexpr size_t huge = size_t(2) << 20;
    // Where it pays, start at a huge page's boundary: map one more and give back both ends.
    const size_t slack = size_ >= huge ? huge : 0;
    void* mapped = mmap(nullptr, size_ + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    uint8_t* begin = static_cast<uint8_t*>(mapped);
    if (slack) {
        uint8_t* aligned = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(begin) + huge - 1) / huge * huge);
        if (aligned > begin) munmap(begin, size_t(aligned - begin));
        uint8_t* end = begin + size_ + slack;
        if (end > aligned + size_) munmap(aligned + size_, size_t(end - (aligned + size_)));
        begin = aligned;
        madvise(begin, size_, MADV_HUGEPAGE);
    }
    data_ = begin;
}

Pages::~Pages() {
    if (data_) munmap(data_, size_);
}

Pages::Pages(Pages&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Pages& Pages::operator=(Pages&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

void Worker::barrier() const { team->barrier(); }

Team::Team(int threads) : workers_(size_t(threads)), scratch_(size_t(threads)) {
    for (int id = 0; id < threads; id++) {
        workers_[size_t(id)].id = id;
        workers_[size_t(id)].count = threads;
        workers_[size_t(id)].team = this;
    }
    for (int id = 1; id < threads; id++) threads_.emplace_back(&Team::live, this, id);
}

Team::~Team() {
    stop_ = true;
    start_.advance();
    for (std::thread& thread : threads_) thread.join();
}

void Team::live(int id) {
    uint32_t seen = 0;
    while (true) {
        start_.wait_while(seen, IDLE_SPINS);
        seen++;
        if (stop_) return;
        work_(argument_, workers_[size_t(id)]);
        barrier();
    }
}

void Team::run(void (*work)(void*, Worker&), void* argument) {
    work_ = work;
    argument_ = argument;
    if (size() > 1) start_.advance();
    work(argument, workers_[0]);
    barrier();
}

void Team::barrier() {
    const int count = size();
    if (count == 1) return;
    const uint32_t round = passed_.load();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        arrived_.store(0, std::memory_order_relaxed);
        passed_.advance();
    } else {
        passed_.wait_while(round, BARRIER_SPINS);
    }
}

void Team::reserve(size_t scratch_bytes, size_t shared_bytes) {
    if (shared_bytes > shared_.size()) shared_ = Pages(shared_bytes);
    for (size_t id = 0; id < workers_.size(); id++) {
        if (scratch_bytes > scratch_[id].size()) scratch_[id] = Pages(scratch_bytes);
        workers_[id].scratch = scratch_[id].data();
        workers_[id].scratch_bytes = scratch_[id].size();
        workers_[id].shared = shared_.data();
        workers_[id].shared_bytes = shared_.size();
    }
}

}  // namespace octavo
