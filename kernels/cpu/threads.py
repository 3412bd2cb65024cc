"""How threads share a job: stages, tasks, and who waits for whom.

A job is a row of stages, and a stage a row of tasks; all tasks of the job are numbered from 0.
Every thread goes through all stages in order, and takes the next task's number from a counter:

    thread = enter(job, slot)
    next_stage(thread, how_many)
    while next_task(job, thread):
        ...                         # do task number `task_number(thread)` of this stage
    next_stage(thread, how_many)
    ...
    leave(job, thread, slot)

A task may need all tasks of the stages before, so `next_task` waits until those are done; and a
thread that took a task of a later stage goes on to that stage with it.  A thread that comes late,
or is held up by something else on its core, does fewer tasks; the others wait at most for the one
in its hands.

A thread that waits spins for some microseconds, then offers its core to whoever needs it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .pointers import address_of, at
from .records import THREAD
from .simd import I64, jit

SPINS = 2000  # turns of waiting before the core is offered to another thread; some 20 microseconds

thread_at = at(THREAD)


@jit
def enter(job, slot):
    """What the thread of this slot has for itself, with its first task taken."""
    thread = thread_at(job.threads, slot)
    thread.stage_end = 0
    thread.begun = 0
    thread.task = count_up(address_of(job, "taken"))
    return thread


@jit
def next_stage(thread, count):
    """Go on to the next stage, which has so many tasks."""
    thread.stage_begin = thread.stage_end
    thread.stage_end += count


@jit
def next_task(job, thread):
    """Have a task of this stage in hand, which may begin; False if there is none left.

    The task before counts as done.
    """
    if thread.begun:
        count_up(address_of(job, "done"))
        thread.begun = 0
        thread.task = count_up(address_of(job, "taken"))
    if thread.task >= thread.stage_end:
        return False
    wait_for(address_of(job, "done"), thread.stage_begin, job.yield_function)
    thread.begun = 1
    return True


@jit
def task_number(thread):
    """Number of the task in hand, in its stage."""
    return thread.task - thread.stage_begin


@jit
def leave(job, thread, slot):
    """Slot 0 returns to the caller, so it waits until all is done."""
    if slot == 0:
        wait_for(address_of(job, "done"), thread.stage_end, job.yield_function)


# ---------------------------------------------------------------- atomic instructions


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
