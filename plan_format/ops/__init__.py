"""Which ops exist? Every module of this folder that defines `OP`; adding one is adding its file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from hjgc.plan_format.ops.declaration import Op


@cache
def all_ops() -> dict[str, Op]:
    """Every op by name."""
    found: dict[str, Op] = {}
    for module in pkgutil.iter_modules(__path__):
        op = getattr(importlib.import_module(f"{__name__}.{module.name}"), "OP", None)
        if isinstance(op, Op):
            found[op.name] = op
    return found
