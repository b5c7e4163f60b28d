# mypy: allow-untyped-decorators
"""Numbers at addresses, for kernels that numba compiles: loads, stores and prefetches without an array around them."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def load_i64(_context: Any, _address: Any) -> Any:
    """The int64 at an address."""
    return types.int64(types.int64), _loading(_I64)


@intrinsic
def load_i32(_context: Any, _address: Any) -> Any:
    """The int32 at an address."""
    return types.int32(types.int64), _loading(_I32)


@intrinsic
def store_i64(_context: Any, _address: Any, _value: Any) -> Any:
    """Write an int64 to an address."""
    return types.void(types.int64, types.int64), _storing(_I64)


@intrinsic
def store_i32(_context: Any, _address: Any, _value: Any) -> Any:
    """Write an int32 to an address."""
    return types.void(types.int64, types.int32), _storing(_I32)


@intrinsic
def prefetch(_context: Any, _address: Any) -> Any:
    """Ask for the cache line at an address, to read it."""
    return types.void(types.int64), _prefetching(is_written=0)


@intrinsic
def prefetch_to_write(_context: Any, _address: Any) -> Any:
    """Ask for the cache line at an address, to write it: it is taken from the other cores now, not at the store."""
    return types.void(types.int64), _prefetching(is_written=1)


@intrinsic
def matches(_context: Any, _address: Any, _key: Any) -> Any:
    """Which of the eight int64 at an address, a multiple of 64, equal the key: a bit each, the first one lowest."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        eight = ir.VectorType(_I64, 8)
        line = builder.load(_pointer(builder, given[0], eight), align=64)
        one = builder.insert_element(ir.Constant(eight, ir.Undefined), given[1], ir.Constant(_I32, 0))
        keys = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, 8), [0] * 8))
        bits = builder.bitcast(builder.icmp_signed("==", line, keys), ir.IntType(8))
        return builder.zext(bits, _I64)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def zeros(_context: Any, _address: Any) -> Any:
    """Which of the eight int32 at an address, a multiple of 32, are 0: a bit each, the first one lowest."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        eight = ir.VectorType(_I32, 8)
        line = builder.load(_pointer(builder, given[0], eight), align=32)
        bits = builder.bitcast(builder.icmp_signed("==", line, ir.Constant(eight, [0] * 8)), ir.IntType(8))
        return builder.zext(bits, _I64)

    return types.int64(types.int64), generate


@intrinsic
def lowest_bit(_context: Any, _bits: Any) -> Any:
    """Number of the lowest bit of a number that is not 0."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.cttz(given[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@intrinsic
def pointer(_context: Any, _address: Any) -> Any:
    """An address as a pointer, for `carray`."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def _prefetching(is_written: int) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        is_for_writing, near, data = (ir.Constant(_I32, value) for value in (is_written, 3, 1))
        builder.call(fetch, [builder.inttoptr(given[0], cgutils.voidptr_t), is_for_writing, near, data])
        return context.get_dummy_value()

    return generate


def _loading(kind: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.load(_pointer(builder, given[0], kind))

    return generate


def _storing(kind: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        builder.store(given[1], _pointer(builder, given[0], kind))
        return context.get_dummy_value()

    return generate


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())
