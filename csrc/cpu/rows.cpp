// Row-wise operations outside of products: norms, sums, gated activations. Each thread takes its share of the rows; of one row, which is
// what a single stream has, its share of the columns where they do not depend on each other.
#include "activation.h"
#include "kernels.h"
#include "simd.h"

namespace octavo::OCTAVO_ISA {

namespace {

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

}  // namespace

void norm(const NormOp& op, const Step& step, Worker& worker) {
    const Span mine = share_of(step.tokens * op.heads, worker.id, worker.count);
    float* normed = reinterpret_cast<float*>(worker.scratch);
    for (int i = mine.first; i < mine.last; i++) {
        const int64_t t = i / op.heads, head = i % op.heads;
        float* output = op.output + t * op.output_stride + head * op.width;
        normalise_row(op.input + t * op.input_stride + head * op.width, op.width, op.norm, op.add ? normed : output);
        if (!op.add) continue;
        for (int c = 0; c < op.width; c += LANES) store_at(output, c, op.width, load_at(output, c, op.width) + load_at(normed, c, op.width));
    }
}

void add(const AddOp& op, const Step& step, Worker& worker) {
    share_plane(step.tokens, op.width, worker, [&](int t, int first, int last) {
        const float* input = op.input + t * op.input_stride;
        float* output = op.output + t * op.output_stride;
        for (int c = first; c < last; c += LANES) store_at(output, c, last, load_at(output, c, last) + load_at(input, c, last));
    });
}

void gated(const GatedOp& op, const Step& step, Worker& worker) {
    share_plane(step.tokens, op.width, worker, [&](int t, int first, int last) {
        const float* gate = op.input + t * op.input_stride;
        const float* up = gate + op.width;
        float* output = op.output + t * op.output_stride;
        for (int c = first; c < last; c += LANES) {
            store_at(output, c, last, activate(op.activation, load_at(gate, c, last)) * load_at(up, c, last));
        }
    });
}

}  // namespace octavo::OCTAVO_ISA
