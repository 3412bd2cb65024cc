"""How compiled code reads a job, and how the threads that share it keep out of each other's way.

Each function is one or a few instructions.  Tasks are handed out by an atomic counter; a thread
that has to wait for others spins for some microseconds, then offers its core to whoever needs it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .records import PLACES
from .simd import I64

SPINS = 2000  # turns of waiting before the core is offered to another thread; some 20 microseconds


@intrinsic
def read(context: Any, address: Any) -> Any:
    """The int64 at an address."""

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(builder.inttoptr(values[0], I64.as_pointer()))

    return types.intp(types.intp), generate


@intrinsic(prefer_literal=True)
def field(context: Any, record: Any, name: Any) -> Any:
    """What a record holds under a name: one load, since the name is known to the compiler."""
    place = 8 * PLACES[name.literal_value]

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = builder.add(values[0], I64(place))
        return builder.load(builder.inttoptr(address, I64.as_pointer()))

    return types.intp(types.intp, name), generate


@intrinsic
def count_up(context: Any, address: Any) -> Any:
    """Add 1 to the int64 at an address, undisturbed by other threads, and return what it was.

    What this thread wrote before is seen by whoever sees the new count.
    """

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, I64(1), "acq_rel")

    return types.intp(types.intp), generate


@intrinsic
def wait_for(context: Any, address: Any, least: Any, yield_function: Any) -> Any:
    """Wait until the int64 at an address is at least `least`."""

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, least, yield_function = values
        pointer = builder.inttoptr(address, I64.as_pointer())
        before = builder.block
        look, again, offer, done = (
            builder.append_basic_block(name) for name in ("look", "again", "offer", "done")
        )
        builder.branch(look)
        builder.position_at_end(look)
        turn = builder.phi(I64)
        turn.add_incoming(I64(1), before)
        count = builder.load_atomic(pointer, "acquire", 8)
        builder.cbranch(builder.icmp_signed(">=", count, least), done, again)
        builder.position_at_end(again)
        late = builder.icmp_signed(">=", turn, I64(SPINS))
        more = builder.add(turn, I64(1))
        turn.add_incoming(more, again)
        builder.cbranch(late, offer, look)
        builder.position_at_end(offer)
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(yield_function, kind.as_pointer()), [])
        turn.add_incoming(I64(1), offer)
        builder.branch(look)
        builder.position_at_end(done)
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(types.intp, types.intp, types.intp), generate
