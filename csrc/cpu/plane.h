// A [rows, width] plane of floats shared among the threads of a team: their rows, or, of fewer rows than threads, their columns.
#pragma once

#include "simd.h"
#include "step.h"

namespace octavo::OCTAVO_ISA {

OCTAVO_INLINE F32 load_at(const float* row, int c, int width) { return width - c >= LANES ? load(row + c) : load(row + c, width - c); }

OCTAVO_INLINE void store_at(float* row, int c, int width, F32 value) {
    if (width - c >= LANES) store(row + c, value);
    else store(row + c, value, width - c);
}

// Calls work(row, first column, last column) for this thread's share of a [rows, width] plane.
template <class Work>
OCTAVO_INLINE void share_plane(int rows, int width, const Worker& worker, Work work) {
    if (rows >= worker.count) {
        const Span mine = share_of(rows, worker.id, worker.count);
        for (int t = mine.first; t < mine.last; t++) work(t, 0, width);
    } else {
        const Span mine = share_of((width + LANES - 1) / LANES, worker.id, worker.count);
        const int last = mine.last * LANES < width ? mine.last * LANES : width;
        for (int t = 0; t < rows; t++) work(t, mine.first * LANES, last);
    }
}

}  // namespace octavo::OCTAVO_ISA
