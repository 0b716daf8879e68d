"""Triton's interpreter, repaired: what it gets silently wrong is made right, or made an error.

It keeps bfloat16 and fp8 numbers as integers of their width, and forgets that in places: products
and sums of them work on the integers, a narrowing store truncates or drops a carry, and the bound
of a loop must not be an array in recent numpy. `repair` mends these. What has no meaning on a GPU
either, summing bfloat16 without widening it first, raises instead of giving a number.

Still not seen here: races, alignment, shared memory, and the TF32 rounding of fp32 products.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle

FP8 = {tl.float8e4nv: (torch.float8_e4m3fn, 448.0), tl.float8e5: (torch.float8_e5m2, 57344.0)}


def repair():
    """Change the interpreter of this process. Call once, before the first kernel runs."""
    builder = InterpreterBuilder
    builder.create_dot = dot
    builder.cast_impl = replace_cast(builder.cast_impl)
    builder.create_fp_to_fp = replace_narrowing(builder.create_fp_to_fp)
    builder.binary_op = replace_binary(builder.binary_op)
    builder.unary_op = refuse_bf16(builder.unary_op, lambda self, arg, op: arg.dtype)
    ReduceOps.sum = refuse_bf16(ReduceOps.sum, lambda self, input: input.dtype)
    interpreter._patch_lang_tensor = replace_index(interpreter._patch_lang_tensor)


def widened(handle):
    """The numbers of a handle in an array that computes: fp32 where they are stored as integers."""
    kind = handle.dtype.scalar
    if kind == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    if kind in FP8:
        raw = torch.from_numpy(np.ascontiguousarray(handle.data).view(np.uint8))
        return raw.view(FP8[kind][0]).float().numpy()
    return handle.data


def to_bf16(x):
    """The bits of fp32 numbers rounded to the nearest bfloat16, ties to even."""
    narrow = torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(torch.bfloat16)
    return narrow.view(torch.uint16).numpy().reshape(np.shape(x))


def to_fp8(x, kind):
    """The bits of fp32 numbers rounded to fp8; too large ones become the largest, as on a GPU."""
    dtype, top = FP8[kind]
    narrow = torch.from_numpy(np.ascontiguousarray(np.clip(x, -top, top), np.float32)).to(dtype)
    return narrow.view(torch.uint8).numpy().reshape(np.shape(x))


def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    product = np.matmul(widened(a), widened(b), dtype=d.data.dtype)
    return TensorHandle(product + d.data, d.dtype.scalar)


def dot_by_rows(self, a, b, d, input_precision, max_num_imprecise_acc):
    """`dot` for tests of bits: a row's sums are the same wherever it is in its tile.

    So they are taken to be in a GPU's matrix units. A BLAS groups rows, and sums some otherwise.
    """
    product = np.matmul(widened(a)[:, None], widened(b), dtype=d.data.dtype)[:, 0]
    return TensorHandle(product + d.data, d.dtype.scalar)


def replace_cast(stock):
    def cast(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.bfloat16 and target == tl.float32:
            return TensorHandle(widened(src), target)
        if source == tl.float32 and target == tl.bfloat16:
            return TensorHandle(to_bf16(src.data), target)
        return stock(self, src, dst_type)

    return cast


def replace_narrowing(stock):
    def fp_to_fp(self, src, dst_type, rounding_mode):
        source, target = src.dtype.scalar, dst_type.scalar
        if target in FP8 and source in (tl.float32, tl.float16, tl.bfloat16):
            return TensorHandle(to_fp8(widened(src).astype(np.float32), target), target)
        if source in FP8 and target == tl.bfloat16:
            return TensorHandle(to_bf16(widened(src)), target)
        return stock(self, src, dst_type, rounding_mode)

    return fp_to_fp


def replace_binary(stock):
    def binary(self, lhs, rhs, op):
        if lhs.dtype.scalar != tl.bfloat16 or rhs.dtype.scalar != tl.bfloat16:
            return stock(self, lhs, rhs, op)
        result = op(widened(lhs), widened(rhs))
        if result.dtype == bool:
            return TensorHandle(result, tl.int1)
        return TensorHandle(to_bf16(result), tl.bfloat16)

    return binary


def refuse_bf16(stock, dtype_of):
    def refuse(self, *args):
        if dtype_of(self, *args).scalar == tl.bfloat16:
            raise TypeError("widen bfloat16 to fp32 first: the interpreter computes on its bits")
        return stock(self, *args)

    return refuse


def replace_index(stock):
    def patch(tensor, scope):
        stock(tensor, scope)
        # int() of an array with one element is an error in numpy 2.4
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch
