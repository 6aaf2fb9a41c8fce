"""Which layer of the model does a launch belong to, by its name?"""

from __future__ import annotations

import re

LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def layer_of(name: str) -> tuple[int, str]:
    """The layer's number and the name behind it; -1 and the whole name for a launch of no layer."""
    found = LAYER.search(name)
    return (-1, name) if found is None else (int(found[1]), name[found.end() :])
