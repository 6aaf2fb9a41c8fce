"""How does Google's Model Explorer open a plan?

`model-explorer plan.hjg --extensions=hjgc.tools.model_explorer` imports the module `main` of the package that it is
given, and registers each class in it that derives from `Adapter`. Nothing else of hjgc imports this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from hjgc.plan_format import load
from hjgc.tools.model_explorer.graphs import Graph, graphs


def _model_explorer() -> Any:
    """The package. Raises ImportError where it is not installed."""
    try:
        return import_module("model_explorer")
    except ModuleNotFoundError as error:
        if error.name != "model_explorer":
            raise
        problem = "expected the package ai-edge-model-explorer, found it not installed: pip install 'hjgc[explorer]'"
        raise ImportError(problem) from None


EXPLORER = _model_explorer()


class PlanAdapter(EXPLORER.Adapter):
    """Shows files that end in `.hjg`."""

    metadata = EXPLORER.AdapterMetadata(
        id="hjgc", name="hjgc plan", description="Phases, segments and launches of a plan of hjgc.", fileExts=["hjg"]
    )

    def convert(self, model_path: str, settings: Mapping[str, Any]) -> dict[str, list[Graph]]:
        """Verifies the plan first; raises PlanError, which Model Explorer shows, for a file that is none."""
        with load(model_path) as file:
            return {"graphs": graphs(file)}
