// The Python binding of the C++ side: octavo.ops._cpu. Addresses come as integers (torch's data_ptr); whoever calls keeps them alive.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <stdexcept>

#include "cpu_features.h"
#include "dispatch.h"
#include "operand.h"
#include "pack.h"
#include "program.h"
#include "shared_group.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Format format_named(const std::string& name) {
    static const std::map<std::string, Format> formats = {
        {"f32", Format::F32},           {"bf16", Format::BF16},       {"u8_row", Format::U8_ROW},           {"u8_block", Format::U8_BLOCK},
        {"u8_block_min", Format::U8_BLOCK_MIN}, {"u4_block", Format::U4_BLOCK}, {"u4_block_min", Format::U4_BLOCK_MIN},
        {"u4_table", Format::U4_TABLE}, {"u4_table_min", Format::U4_TABLE_MIN}, {"u8_wide", Format::U8_WIDE}};
    const auto found = formats.find(name);
    if (found == formats.end()) throw std::invalid_argument("no packed format is named '" + name + "'");
    return found->second;
}

Activation activation_named(const std::string& name) {
    if (name == "silu") return Activation::SILU;
    if (name == "gelu_tanh") return Activation::GELU_TANH;
    throw std::invalid_argument("activation '" + name + "' is not one of silu, gelu_tanh");
}

int64_t byte_stride(const Array& array, size_t axis) { return array.stride(axis) * int64_t(array.itemsize()); }

// A PackedWeight and its memory.
class Packed {
  public:
    Packed(const std::string& format, int n, int k, int zero, bool paired) {
        if (n < 1 || k < 1 || (paired && n % 2)) throw std::invalid_argument("a weight needs rows and columns, a paired one an even number of rows");
        weight_.format = format_named(format);
        weight_.n = n;
        weight_.k = k;
        weight_.zero = zero;
        weight_.paired = paired;
        weight_.panels = panels_of(n, paired);
        weight_.panel_bytes = panel_bytes_of(weight_.format, k);
        pages_ = Pages(weight_.bytes());
        weight_.data = pages_.data();
    }

    void dense(int first, int rows, uintptr_t values, int64_t row_stride, bool bf16, Team& team) {
        check_rows(first, rows);
        if (!is_dense(weight_.format)) throw std::invalid_argument("dense rows do not go into a quantised weight");
        const DenseRows source{at<uint8_t>(values), row_stride, bf16};
        nb::gil_scoped_release release;
        pack_dense(weight_, source, first, rows, team);
    }

    void blocks(int first, const Array& values, const Array& scales, const std::optional<Array>& minima, int bits, bool is_signed, Team& team) {
        if (values.ndim() != 3 || scales.ndim() != 2 || values.shape(2) != size_t(bits * BLOCK / 8) || values.itemsize() != 1 || values.stride(2) != 1) {
            throw std::invalid_argument("values must be bytes [rows, blocks, bytes a block], scales [rows, blocks or 1]");
        }
        const int rows = int(values.shape(0));
        check_rows(first, rows);
        const bool by_row = is_by_row(weight_.format);
        const size_t scale_columns = by_row ? 1 : values.shape(1);
        if (is_dense(weight_.format) || int(values.shape(1)) != weight_.blocks() || scales.shape(0) != values.shape(0) ||
            scales.shape(1) != scale_columns || scales.itemsize() != (by_row ? 4u : 2u) || (bits == 8 && is_four_bit(weight_.format)) ||
            minima.has_value() != has_minimum(weight_.format)) {
            throw std::invalid_argument("the blocks do not fit the packed format");
        }
        BlockRows source{static_cast<const uint8_t*>(values.data()), byte_stride(values, 0), byte_stride(values, 1),
                         static_cast<const uint8_t*>(scales.data()), byte_stride(scales, 0), byte_stride(scales, 1),
                         nullptr, 0, 0, bits, is_signed};
        if (minima) {
            if (minima->ndim() != 2 || minima->shape(0) != values.shape(0) || minima->shape(1) != values.shape(1) || minima->itemsize() != 2) {
                throw std::invalid_argument("minima must be half [rows, blocks]");
            }
            source.minima = static_cast<const uint8_t*>(minima->data());
            source.minimum_row = byte_stride(*minima, 0);
            source.minimum_block = byte_stride(*minima, 1);
        }
        nb::gil_scoped_release release;
        pack_blocks(weight_, source, first, rows, team);
    }

    void set_bias(uintptr_t values) {  // float [n]
        bias_.assign(size_t(weight_.panels) * PANEL, 0.0f);
        for (int row = 0; row < weight_.n; row++) bias_[size_t(weight_.column_of(row))] = at<float>(values)[row];
        weight_.bias = bias_.data();
    }

    const PackedWeight& weight() const { return weight_; }

  private:
    void check_rows(int first, int rows) const {
        if (first < 0 || rows < 0 || first + rows > weight_.n) throw std::invalid_argument("rows outside the weight");
    }

    PackedWeight weight_;
    Pages pages_;
    std::vector<float> bias_;
};

// Ranks that are not all on this host: a Python function sums their rows in place.
class ElsewhereGroup {
  public:
    explicit ElsewhereGroup(nb::callable reduce) : reduce_(std::move(reduce)) {}

    // On the program's first thread, which holds no GIL. The function may not raise: the team's other threads wait for its end.
    static void reduce(void* self, float* rows, int64_t floats) noexcept {
        nb::gil_scoped_acquire acquired;
        static_cast<ElsewhereGroup*>(self)->reduce_(reinterpret_cast<uintptr_t>(rows), floats);
    }

  private:
    nb::callable reduce_;
};

Norm norm_of(uintptr_t weight, float eps, bool plus_one) { return {at<const float>(weight), eps, plus_one ? 1.0f : 0.0f}; }

LayerCache cache_of(const std::vector<int64_t>& addresses, const std::string& type, int kv_heads, int head_dim, int block_size) {
    LayerCache cache;
    cache.keys = at<uint8_t>(uintptr_t(addresses.at(0)));
    cache.values = at<uint8_t>(uintptr_t(addresses.at(1)));
    cache.key_scales = at<uint8_t>(uintptr_t(addresses.at(2)));
    cache.value_scales = at<uint8_t>(uintptr_t(addresses.at(3)));
    cache.block_stride = addresses.at(4);
    cache.type = type == "bf16" ? CacheType::BF16 : type == "f32" ? CacheType::F32 : CacheType::INT8;
    cache.kv_heads = kv_heads;
    cache.head_dim = head_dim;
    cache.block_size = block_size;
    return cache;
}

const char* const OP_NAMES[] = {"embedding", "linear", "norm", "add", "gated", "rotary_cache", "attention", "stage_input", "all_reduce"};

}  // namespace

NB_MODULE(_cpu, m) {
    m.doc() = "Octavo's C++ side for CPUs.";
    nb::set_leak_warnings(false);  // what a module-level variable holds at exit is no leak
    m.def("cpu_features", &cpu_features, "Instruction sets of this processor that may be used, in the spelling of /proc/cpuinfo.");
    m.def("kernel_sets", &kernel_sets, "Kernels that are compiled in and run here, best first.");

    nb::class_<Team>(m, "Team", "Threads that run programs together; the caller is the first.")
        .def(nb::init<int>(), "threads"_a)
        .def_prop_ro("size", &Team::size);

    nb::class_<Packed>(m, "PackedWeight", "A weight [n, k] in the products' layout.")
        .def(nb::init<const std::string&, int, int, int, bool>(), "format"_a, "n"_a, "k"_a, "zero"_a = 0, "paired"_a = false)
        .def("dense", &Packed::dense, "first"_a, "rows"_a, "values"_a, "row_stride"_a, "bf16"_a, "team"_a)
        .def("blocks", &Packed::blocks, "first"_a, "values"_a, "scales"_a, "minima"_a.none(), "bits"_a, "signed"_a, "team"_a)
        .def("set_bias", &Packed::set_bias, "values"_a)
        .def_prop_ro("columns", [](const Packed& p) { return p.weight().k; })
        .def_prop_ro("bytes", [](const Packed& p) { return p.weight().bytes(); });

    nb::class_<SharedGroup>(m, "SharedGroup", "Ranks on this host that exchange rows through shared memory.")
        .def("__init__", [](SharedGroup* self, uintptr_t memory, int rank, int size, size_t slot_floats) {
            new (self) SharedGroup(at<uint8_t>(memory), rank, size, slot_floats);
        }, "memory"_a, "rank"_a, "size"_a, "slot_floats"_a)
        .def_static("bytes", &SharedGroup::bytes, "size"_a, "slot_floats"_a, "Of zeroed memory that the ranks share.")
        .def("gather", [](SharedGroup& group, uintptr_t part, int rows, const std::vector<int>& widths, uintptr_t output) {
            if (int(widths.size()) != group.size()) throw std::invalid_argument("a gathering needs one width a rank");
            nb::gil_scoped_release release;
            group.gather(at<const float>(part), rows, widths.data(), at<float>(output));
        }, "part"_a, "rows"_a, "widths"_a, "output"_a, "Rows of all ranks side by side on rank 0; output is 0 elsewhere.");

    nb::class_<ElsewhereGroup>(m, "ElsewhereGroup", "Ranks that are not all on this host: reduce(address, floats) sums their rows in place.")
        .def(nb::init<nb::callable>(), "reduce"_a);

    nb::class_<Program>(m, "Program", "Operations in order, run for any number of rows.")
        .def("__init__", [](Program* self, Team& team, const std::string& kernels, int max_rows) {
            new (self) Program(team, kernels_named(kernels), max_rows);
        }, "team"_a, "kernels"_a, "max_rows"_a, nb::keep_alive<1, 2>())
        .def("embedding", [](Program& p, const Packed& table, int first, float scale, uintptr_t output, int64_t output_stride) {
            p.append(EmbeddingOp{&table.weight(), first, scale, at<float>(output), output_stride});
        }, "table"_a, "first"_a, "scale"_a, "output"_a, "output_stride"_a, nb::keep_alive<1, 2>())
        .def("linear", [](Program& p, uintptr_t input, int64_t input_stride, uintptr_t norm, float eps, bool plus_one, const Packed& weight,
                          const std::string& activation, bool add, uintptr_t output, int64_t output_stride, float softcap) {
            if (needs_amx(weight.weight().format) && !p.has_amx()) throw std::invalid_argument("only the kernels for AMX take weights of this format");
            const Activation kind = activation.empty() ? Activation::NONE : activation_named(activation);
            if ((kind != Activation::NONE) != weight.weight().paired) throw std::invalid_argument("a paired weight needs an activation, no other has one");
            p.append(LinearOp{at<const float>(input), input_stride, norm_of(norm, eps, plus_one), &weight.weight(), kind, add, at<float>(output), output_stride, softcap});
        }, "input"_a, "input_stride"_a, "norm"_a, "eps"_a, "plus_one"_a, "weight"_a, "activation"_a, "add"_a, "output"_a, "output_stride"_a,
           "softcap"_a, nb::keep_alive<1, 7>())
        .def("norm", [](Program& p, uintptr_t input, int64_t input_stride, uintptr_t weight, float eps, bool plus_one, int heads, int width,
                        uintptr_t output, int64_t output_stride, bool add) {
            p.append(NormOp{at<const float>(input), input_stride, norm_of(weight, eps, plus_one), heads, width, at<float>(output), output_stride, add});
        }, "input"_a, "input_stride"_a, "weight"_a, "eps"_a, "plus_one"_a, "heads"_a, "width"_a, "output"_a, "output_stride"_a, "add"_a)
        .def("add", [](Program& p, uintptr_t input, int64_t input_stride, uintptr_t output, int64_t output_stride, int width) {
            p.append(AddOp{at<const float>(input), input_stride, at<float>(output), output_stride, width});
        }, "input"_a, "input_stride"_a, "output"_a, "output_stride"_a, "width"_a)
        .def("gated", [](Program& p, uintptr_t input, int64_t input_stride, const std::string& activation, uintptr_t output, int64_t output_stride, int width) {
            p.append(GatedOp{at<const float>(input), input_stride, activation_named(activation), at<float>(output), output_stride, width});
        }, "input"_a, "input_stride"_a, "activation"_a, "output"_a, "output_stride"_a, "width"_a)
        .def("rotary_cache", [](Program& p, uintptr_t q, int64_t q_stride, uintptr_t k, int64_t k_stride, uintptr_t v, int64_t v_stride,
                                uintptr_t cos_sin, int rotary_dim, int heads, uintptr_t q_norm, uintptr_t k_norm, float eps, bool plus_one,
                                const std::vector<int64_t>& cache, const std::string& type, int kv_heads, int head_dim, int block_size) {
            p.append(RotaryCacheOp{at<float>(q), q_stride, at<float>(k), k_stride, at<const float>(v), v_stride, at<const float>(cos_sin), rotary_dim,
                                   heads, norm_of(q_norm, eps, plus_one), norm_of(k_norm, eps, plus_one), cache_of(cache, type, kv_heads, head_dim, block_size)});
        }, "q"_a, "q_stride"_a, "k"_a, "k_stride"_a, "v"_a, "v_stride"_a, "cos_sin"_a, "rotary_dim"_a, "heads"_a, "q_norm"_a, "k_norm"_a, "eps"_a,
           "plus_one"_a, "cache"_a, "cache_type"_a, "kv_heads"_a, "head_dim"_a, "block_size"_a)
        .def("attention", [](Program& p, uintptr_t q, int64_t q_stride, uintptr_t output, int64_t output_stride, int heads, float scale, int window,
                             float softcap, const std::vector<int64_t>& cache, const std::string& type, int kv_heads, int head_dim, int block_size) {
            p.append(AttentionOp{at<const float>(q), q_stride, at<float>(output), output_stride, heads, scale, window, softcap,
                                 cache_of(cache, type, kv_heads, head_dim, block_size)});
        }, "q"_a, "q_stride"_a, "output"_a, "output_stride"_a, "heads"_a, "scale"_a, "window"_a, "softcap"_a, "cache"_a, "cache_type"_a, "kv_heads"_a,
           "head_dim"_a, "block_size"_a)
        .def("stage_input", [](Program& p, uintptr_t output, int64_t output_stride, int width) {
            p.append(StageInputOp{at<float>(output), output_stride, width});
        }, "output"_a, "output_stride"_a, "width"_a)
        .def("all_reduce", [](Program& p, uintptr_t input, int64_t input_stride, uintptr_t output, int64_t output_stride, int width, bool add,
                              SharedGroup& group) {
            if (size_t(width) > group.slot_floats()) throw std::invalid_argument("rows are wider than the group's slots");
            p.append(AllReduceOp{at<float>(input), input_stride, at<float>(output), output_stride, width, add, &group, nullptr, nullptr});
        }, "input"_a, "input_stride"_a, "output"_a, "output_stride"_a, "width"_a, "add"_a, "group"_a, nb::keep_alive<1, 8>())
        .def("all_reduce", [](Program& p, uintptr_t input, int64_t input_stride, uintptr_t output, int64_t output_stride, int width, bool add,
                              ElsewhereGroup& group) {
            if (input_stride != width) throw std::invalid_argument("rows that are summed elsewhere must lie side by side");
            p.append(AllReduceOp{at<float>(input), input_stride, at<float>(output), output_stride, width, add, nullptr, ElsewhereGroup::reduce, &group});
        }, "input"_a, "input_stride"_a, "output"_a, "output_stride"_a, "width"_a, "add"_a, "group"_a, nb::keep_alive<1, 8>())
        .def("set_result", [](Program& p, uintptr_t rows, int width) { p.set_result(at<const float>(rows), width); }, "rows"_a, "width"_a)
        .def("run", [](Program& p, int tokens, uintptr_t token_ids, uintptr_t input, int64_t input_width, uintptr_t positions, uintptr_t slots, int sequences, uintptr_t query_starts,
                       uintptr_t context_lens, uintptr_t block_tables, int64_t table_stride, int block_size, uintptr_t output) {
            Step step;
            step.tokens = tokens;
            step.sequences = sequences;
            step.token_ids = at<const int64_t>(token_ids);
            step.input = at<const float>(input);
            step.input_width = input_width;
            step.positions = at<const int64_t>(positions);
            step.slots = at<const int64_t>(slots);
            step.query_starts = at<const int32_t>(query_starts);
            step.context_lens = at<const int32_t>(context_lens);
            step.block_tables = at<const int32_t>(block_tables);
            step.table_stride = table_stride;
            step.block_size = block_size;
            nb::gil_scoped_release release;
            p.run(step, at<float>(output));
        }, "tokens"_a, "token_ids"_a = 0, "input"_a = 0, "input_width"_a = 0, "positions"_a = 0, "slots"_a = 0, "sequences"_a = 0, "query_starts"_a = 0, "context_lens"_a = 0,
           "block_tables"_a = 0, "table_stride"_a = 0, "block_size"_a = 16, "output"_a = 0)
        .def("profile", [](Program& p, bool on) {
            const Profile taken = p.take_profile();
            p.set_profiling(on);
            std::map<std::string, double> seconds;
            for (size_t i = 0; i < std::size(OP_NAMES); i++) seconds[OP_NAMES[i]] = taken.seconds[i];
            return seconds;
        }, "on"_a, "Seconds by kind of operation since the last call; measures on while `on`.");
}
