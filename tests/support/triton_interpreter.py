"""Triton's interpreter as the tests need it: what it gets wrong or leaves to the machine's numpy is replaced.

Three things, each in a function of its own below. It stores bfloat16 as unsigned 16-bit integers, which it multiplies, adds and compares as
the integers they are, and rounds to it and to float8 wrongly; its products are numpy's, whose order of sums depends on a row's place in the
tile and on the processor; and Triton 3.6's expects numpy to turn an array of one value into a number, which numpy 2.4 no longer does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter


def mend() -> None:
    """Patch the interpreter of this process; to be called once, before kernels run."""
    _compute_and_round()
    _sum_products_in_one_order()
    _index_by_arrays_of_one_value()


def _widened(handle: Any) -> Any:
    """A bfloat16 operand in float32; any other as it is."""
    if handle.dtype.scalar != tl.bfloat16 or handle.data.dtype == np.float32:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(values: NDArray[Any], dtype: Any) -> Any:
    """To bfloat16 or float8_e4m3fn by torch: to nearest, ties to even; a GPU's float8 numbers end at 448."""
    exact = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    if dtype == tl.bfloat16:
        return interpreter.TensorHandle(exact.bfloat16().view(torch.int16).numpy().view(np.uint16), dtype)
    return interpreter.TensorHandle(exact.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).view(torch.uint8).numpy(), dtype)


def _compute_and_round() -> None:
    """bfloat16 in float32 and rounded, as on a GPU; conversions by torch."""
    builder = interpreter.InterpreterBuilder
    cast, cast_float, binary, unary = builder.cast_impl, builder.create_fp_to_fp, builder.binary_op, builder.unary_op

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source = _widened(src)
        if dst_type.scalar == src.dtype.scalar or dst_type.scalar == source.dtype.scalar:
            return src if dst_type.scalar == src.dtype.scalar else source
        return _rounded(source.data, tl.bfloat16) if dst_type.scalar == tl.bfloat16 else cast(self, source, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if src.dtype.primitive_bitwidth == 8:
            return cast_float(self, src, dst_type, rounding_mode)
        if dst_type.scalar == tl.float8e4nv:
            return _rounded(_widened(src).data, dst_type.scalar)
        return cast_impl(self, src, dst_type)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar != tl.bfloat16:
            return binary(self, lhs, rhs, op)
        output = op(_widened(lhs).data, _widened(rhs).data)
        return interpreter.TensorHandle(output, tl.bfloat16) if output.dtype == np.bool_ else _rounded(output, tl.bfloat16)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return unary(self, arg, op) if arg.dtype.scalar != tl.bfloat16 else _rounded(op(_widened(arg).data), tl.bfloat16)

    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp
    builder.binary_op, builder.unary_op = binary_op, unary_op


def _sum_products_in_one_order() -> None:
    """By ascending k for every element, as one tile of tensor cores treats its rows alike: what a test of equal bits counts on."""
    original = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        if not a.dtype.scalar.is_floating() or a.dtype.scalar.primitive_bitwidth < 16:
            return original(self, a, b, d, input_precision, max_num_imprecise_acc)
        left, right = _widened(a).data.astype(d.data.dtype), _widened(b).data.astype(d.data.dtype)
        # Adding over the first axis is one addition of planes after the other; a plane a row at a time keeps them in the cache.
        sums = [np.add.reduce(row[:, None] * right, axis=0) for row in left]
        return interpreter.TensorHandle(np.stack(sums) + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _index_by_arrays_of_one_value() -> None:
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor
