// Ranks on one host that exchange rows through shared memory: each writes into a slot of its own, says so, and reads everybody's.
//
//   memory   [size] flags, a cache line each      how many exchanges a rank has written
//            [2 turns][size] slots of `slot_floats` floats
//
// Slots of even and odd exchanges take turns. A rank writes its slot of exchange n + 2 after it has seen that all have written exchange
// n + 1, which they did after they had read exchange n: one wait an exchange is enough, and nobody overwrites what somebody still reads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace octavo {

class SharedGroup {
  public:
    // `memory` is zero, of bytes(...) bytes, and the same for all ranks; whoever made it keeps it.
    SharedGroup(uint8_t* memory, int rank, int size, size_t slot_floats);

    static size_t bytes(int size, size_t slot_floats);

    int rank() const { return rank_; }
    int size() const { return size_; }
    size_t slot_floats() const { return slot_floats_; }

    // The slots of the exchange under way; one begins where the last one's `meet` returned.
    float* slot(int rank) const { return slots_ + (size_t(turn_ & 1) * size_t(size_) + size_t(rank)) * slot_floats_; }
    // Say that this rank's slot is written, and wait until all are. One thread of a rank calls it.
    void meet();
    // End the exchange: all of this rank's threads have read what they wanted. One thread calls it, before anyone writes again.
    void leave() { turn_++; }

    // Rows [rows, widths[r]] of each rank side by side on rank 0: [rows, sum of widths]. Others only give theirs (`output` is null).
    void gather(const float* part, int rows, const int* widths, float* output);

  private:
    struct alignas(64) Flag {
        std::atomic<uint32_t> written;
        std::atomic<uint32_t> sleepers;
    };

    void wait_for(Flag& flag, uint32_t turn);

    int rank_;
    int size_;
    size_t slot_floats_;
    Flag* flags_;
    float* slots_;
    uint32_t turn_ = 0;
};

}  // namespace octavo
