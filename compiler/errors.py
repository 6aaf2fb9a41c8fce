"""What kinds of models cannot be compiled as decoders, and must, or need not, be?"""

from __future__ import annotations

from hjgc.plan_format.errors import CompileError


class NoDecoder(CompileError):
    """The model takes no token ids or gives no logits: nobody means it to be a decoder."""


class CallerError(CompileError):
    """The model names a function of the caller's, which only decoders have, and is wrong about it."""
