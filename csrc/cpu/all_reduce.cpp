// The sum of all ranks' rows, on every rank: what a product leaves whose columns are shared out.
//
//   for rows, as many at a time as a slot of the group holds
//     own rows -> own slot                      threads share the plane
//     meet                                      one thread waits for all ranks
//     output (+)= slot 0 + slot 1 + ...         in the ranks' order on every rank: the same bits everywhere, whatever came first
//
// Every rank reads all slots. Sharing the sums out and handing them round would read 2 (n - 1) / n planes instead of n - 1, the same for
// two ranks; for more it is a second wait, which is what a decoding step's few rows spend their time on.
#include "kernels.h"
#include "plane.h"
#include "shared_group.h"

namespace octavo::OCTAVO_ISA {

namespace {

void reduce_elsewhere(const AllReduceOp& op, int tokens, Worker& worker) {
    if (worker.id == 0) op.reduce(op.argument, op.input, int64_t(tokens) * op.width);
    worker.barrier();
    share_plane(tokens, op.width, worker, [&](int t, int first, int last) {
        const float* sum = op.input + int64_t(t) * op.width;
        float* output = op.output + t * op.output_stride;
        for (int c = first; c < last; c += LANES) {
            const F32 value = load_at(sum, c, last);
            store_at(output, c, last, op.add ? load_at(output, c, last) + value : value);
        }
    });
}

}  // namespace

void all_reduce(const AllReduceOp& op, const Step& step, Worker& worker) {
    if (!op.group) return reduce_elsewhere(op, step.tokens, worker);
    SharedGroup& group = *op.group;
    const int most = int(group.slot_floats() / size_t(op.width));
    for (int begin = 0; begin < step.tokens; begin += most) {
        const int rows = step.tokens - begin < most ? step.tokens - begin : most;
        float* own = group.slot(group.rank());
        share_plane(rows, op.width, worker, [&](int t, int first, int last) {
            const float* input = op.input + (begin + t) * op.input_stride;
            float* slot = own + int64_t(t) * op.width;
            for (int c = first; c < last; c += LANES) store_at(slot, c, last, load_at(input, c, last));
        });
        worker.barrier();
        if (worker.id == 0) group.meet();
        worker.barrier();
        share_plane(rows, op.width, worker, [&](int t, int first, int last) {
            float* output = op.output + (begin + t) * op.output_stride;
            for (int c = first; c < last; c += LANES) {
                F32 sum = load_at(group.slot(0) + int64_t(t) * op.width, c, last);
                for (int rank = 1; rank < group.size(); rank++) sum = sum + load_at(group.slot(rank) + int64_t(t) * op.width, c, last);
                store_at(output, c, last, op.add ? load_at(output, c, last) + sum : sum);
            }
        });
        worker.barrier();
        if (worker.id == 0) group.leave();
        worker.barrier();
    }
}

}  // namespace octavo::OCTAVO_ISA
