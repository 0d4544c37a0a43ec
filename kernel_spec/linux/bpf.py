"""Classic BPF programs, which Linux runs for system calls (seccomp(2)) and for packets (socket(7)).

A program is a list of instructions, struct sock_filter of linux/filter.h. A *block* here is a part of a program that is
entered at its top. One that always returns can be put after a comparison that jumps over it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

#: Operation code, jumps when true and when false (numbers of instructions), value.
Instruction = tuple[int, int, int, int]
Block = list[Instruction]

# Operation codes of linux/bpf_common.h, each with the addressing that is used here.
_LOAD_WORD: Final = 0x20
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_AND: Final = 0x54
_SHIFT_RIGHT: Final = 0x74
_JUMP: Final = 0x05
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER_EQUAL: Final = 0x35
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06


def assemble(block: Iterable[Instruction]) -> bytes:
    """Return a program in the binary form of Linux.

    Returns
    -------
    bytes
        8 bytes an instruction.
    """
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in block)


def load(offset: int) -> Instruction:
    """Load a 32-bit word."""
    return (_LOAD_WORD, 0, 0, offset)


def load_half(offset: int) -> Instruction:
    """Load a 16-bit word."""
    return (_LOAD_HALF, 0, 0, offset)


def load_byte(offset: int) -> Instruction:
    """Load one byte."""
    return (_LOAD_BYTE, 0, 0, offset)


def keep_bits(mask: int) -> Instruction:
    """Clear every bit of the loaded value that is not in the mask."""
    return (_AND, 0, 0, mask)


def shift_right(bits: int) -> Instruction:
    """Shift the loaded value."""
    return (_SHIFT_RIGHT, 0, 0, bits)


def end(result: int) -> Instruction:
    """End the program with a result."""
    return (_RETURN, 0, 0, result)


def if_equal(value: int, block: Block) -> Block:
    """Run the block if the loaded value is this one, else continue after it."""
    return [(_JUMP_EQUAL, 0, len(block), value), *block]


def unless_equal(value: int, block: Block) -> Block:
    """Run the block if the loaded value is another one, else continue after it."""
    return [(_JUMP_EQUAL, len(block), 0, value), *block]


def if_at_least(value: int, block: Block) -> Block:
    """Run the block if the loaded value is this one or larger, else continue after it."""
    return [(_JUMP_GREATER_EQUAL, 0, len(block), value), *block]


def if_any_bit(mask: int, block: Block) -> Block:
    """Run the block if the loaded value has a bit of the mask, else continue after it."""
    return [(_JUMP_ANY_BIT, 0, len(block), mask), *block]


def if_one_of(values: Sequence[int], block: Block) -> Block:
    """Run the block if the loaded value is one of these, at most 255, else continue after it."""
    if len(values) == 1:
        return if_equal(values[0], block)
    # A hit jumps over the remaining comparisons and over the jump that follows them.
    compare = [(_JUMP_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [*compare, (_JUMP, 0, 0, len(block)), *block]


def by_value(cases: Mapping[int, int], otherwise: int) -> Block:
    """End with the result for the loaded value."""
    block: Block = []
    for value, result in cases.items():
        block += if_equal(value, [end(result)])
    return [*block, end(otherwise)]
