// The kernels of one instruction set, declared for the files that are compiled once for each (OCTAVO_ISA, CMakeLists.txt).
#pragma once

#include "ops.h"
#include "packed_weight.h"

#ifndef OCTAVO_ISA
#error "OCTAVO_ISA names the instruction set's namespace"
#endif

namespace octavo::OCTAVO_ISA {

// operand.cpp: row `row` of a group of the weight's left side; `spare` holds `width` floats where a norm is asked for.
void prepare_row(const float* input, int width, const Norm& norm, const PackedWeight& weight, float* spare, uint8_t* group, int row);
void normalise_row(const float* input, int width, const Norm& norm, float* output);

void embedding(const EmbeddingOp&, const Step&, Worker&);      // embedding.cpp
void stage_input(const StageInputOp&, const Step&, Worker&);   // rows.cpp
void linear(const LinearOp&, const Step&, Worker&);            // linear.cpp
void norm(const NormOp&, const Step&, Worker&);                // rows.cpp
void add(const AddOp&, const Step&, Worker&);                  // rows.cpp
void gated(const GatedOp&, const Step&, Worker&);              // rows.cpp
void rotary_cache(const RotaryCacheOp&, const Step&, Worker&); // rotary.cpp
void attention(const AttentionOp&, const Step&, Worker&);      // attention.cpp
void all_reduce(const AllReduceOp&, const Step&, Worker&);     // all_reduce.cpp

}  // namespace octavo::OCTAVO_ISA
