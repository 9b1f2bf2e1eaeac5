#include "shared_group.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octavo {

namespace {

// Turns of the waiting loop before a rank sleeps: about 50 microseconds, more than ranks on cores of their own are apart.
constexpr int SPINS = 2000;

// Without FUTEX_PRIVATE_FLAG: the waiter and the waker are two processes.
long futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
    return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, nullptr, nullptr, 0);
}

}  // namespace

SharedGroup::SharedGroup(uint8_t* memory, int rank, int size, size_t slot_floats)
    : rank_(rank), size_(size), slot_floats_(slot_floats), flags_(reinterpret_cast<Flag*>(memory)),
      slots_(reinterpret_cast<float*>(memory + size_t(size) * sizeof(Flag))) {
    if (size < 1 || rank < 0 || rank >= size || !slot_floats) throw std::invalid_argument("a group needs ranks and room for their rows");
}

size_t SharedGroup::bytes(int size, size_t slot_floats) { return size_t(size) * (sizeof(Flag) + 2 * slot_floats * sizeof(float)); }

void SharedGroup::meet() {
    const uint32_t turn = turn_ + 1;
    Flag& mine = flags_[rank_];
    mine.written.store(turn, std::memory_order_seq_cst);
    if (mine.sleepers.load(std::memory_order_seq_cst)) futex(&mine.written, FUTEX_WAKE, INT_MAX);
    for (int other = 0; other < size_; other++) {
        if (other != rank_) wait_for(flags_[other], turn);
    }
}

void SharedGroup::wait_for(Flag& flag, uint32_t turn) {
    // Counters wrap; a rank is never more than one exchange ahead.
    const auto behind = [&](uint32_t seen) { return int32_t(seen - turn) < 0; };
    for (int i = 0; i < SPINS; i++) {
        if (!behind(flag.written.load(std::memory_order_acquire))) return;
#if defined(__x86_64__)
        _mm_pause();
#endif
    }
    flag.sleepers.fetch_add(1, std::memory_order_seq_cst);
    for (uint32_t seen; behind(seen = flag.written.load(std::memory_order_seq_cst));) futex(&flag.written, FUTEX_WAIT, seen);
    flag.sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

void SharedGroup::gather(const float* part, int rows, const int* widths, float* output) {
    const size_t widest = size_t(*std::max_element(widths, widths + size_));
    if (widest > slot_floats_) throw std::invalid_argument("a row is wider than the group's slots");
    size_t total = 0;
    for (int r = 0; r < size_; r++) total += size_t(widths[r]);
    const int step = int(std::min<size_t>(size_t(rows), slot_floats_ / std::max<size_t>(widest, 1)));
    for (int begin = 0; begin < rows; begin += step) {
        const size_t count = size_t(std::min(step, rows - begin)), own = size_t(widths[rank_]);
        if (!output) std::memcpy(slot(rank_), part + size_t(begin) * own, count * own * sizeof(float));
        meet();
        size_t column = 0;
        for (int r = 0; output && r < size_; column += size_t(widths[r++])) {
            const size_t width = size_t(widths[r]);
            const float* source = r == rank_ ? part + size_t(begin) * own : slot(r);
            for (size_t row = 0; row < count; row++) {
                std::memcpy(output + (size_t(begin) + row) * total + column, source + row * width, width * sizeof(float));
            }
        }
        leave();
    }
}

}  // namespace octavo
