"""Sample: choose the next token from the logits, append it to the history, and step the parameter block.

Random numbers are keyed by (seed, position, token id), so a step gives the same token however often, wherever and in
whatever order it is computed.
"""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import UPDATED_PARAMETERS, Op, read, update, write


def reference(logits: Any, history: Any, parameters: Any, sampled: Any, scores: Any = None) -> None:
    """The logits stay as they were; `history[start + length]` and `sampled[0]` get the token; then `start` grows by
    `length` and `length` becomes 1. `scores` is scratch for kernels."""
    del scores
    end = parameters.start + parameters.length
    if parameters.temperature == 0.0 and parameters.repetition_penalty == 1.0:
        token = int(logits[0].argmax())
    else:
        token = choose(logits[0].float().numpy(), history[:end].numpy(), parameters, position=end)
    sampled[0] = token
    history[end] = token
    parameters.start, parameters.length = end, 1


def choose(row: Any, history: Any, parameters: Any, *, position: int) -> int:
    """The token for `position`: penalty, temperature, top-k, top-p, min-p, in that order, then the largest of logit
    plus Gumbel noise (Gumbel, 1954: a draw from the softmax). Ties go to the lower id."""
    import numpy as np

    scores = penalise(row.astype(np.float64), history, parameters.repetition_penalty)
    if parameters.temperature == 0.0:
        return int(scores.argmax())
    scores /= parameters.temperature
    kept = keep(scores, parameters.top_k, parameters.top_p, parameters.min_p)
    uniform = philox_uniform(kept, position, parameters.seed_low, parameters.seed_high)
    return int(kept[(scores[kept] - np.log(-np.log(uniform))).argmax()])


def penalise(scores: Any, history: Any, penalty: float) -> Any:
    """Scores of tokens met before: divided by the penalty if positive, multiplied if not (Keskar et al., 2019)."""
    import numpy as np

    if penalty != 1.0:
        met = np.unique(history)
        scores[met] = np.where(scores[met] > 0, scores[met] / penalty, scores[met] * penalty)
    return scores


def keep(scores: Any, top_k: int, top_p: float, min_p: float) -> Any:
    """The ids that survive, ascending: the top_k best (0: all; ties with the last stay), of these the fewest best
    whose probabilities reach top_p, of these those with at least min_p times the best one's probability."""
    import numpy as np

    ids = np.arange(len(scores))
    if 0 < top_k < len(scores):
        ids = ids[scores >= np.partition(scores, -top_k)[-top_k]]
    if top_p < 1.0:
        order = ids[np.argsort(-scores[ids], kind="stable")]
        weights = np.exp(scores[order] - scores[order[0]])
        reached = np.cumsum(weights / weights.sum())
        ids = np.sort(order[: int(np.searchsorted(reached, top_p)) + 1])
    if min_p > 0.0:
        ids = ids[scores[ids] >= scores[ids].max() + np.log(min_p)]
    return ids


def philox_uniform(ids: Any, position: int, seed_low: int, seed_high: int) -> Any:
    """One number in (0, 1) an id. Counter (id, position, 0, 0), key the seed; the first word w is (w + 0.5) / 2^32."""
    import numpy as np

    words = philox((ids, position, 0, 0), (seed_low, seed_high))
    return (words[0].astype(np.float64) + 0.5) / 4294967296.0


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 (Salmon et al., 2011). The words of the counter, and so of the result, may be arrays."""
    import numpy as np

    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    x0, x1, x2, x3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        product0, product1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (
            (product1 >> shift) ^ x1 ^ np.uint64(k0),
            product1 & mask,
            (product0 >> shift) ^ x3 ^ np.uint64(k1),
            product0 & mask,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x0, x1, x2, x3


OP = Op(
    name="sample",
    summary="token ~ softmax(filtered logits / temperature); history, start and length step on",
    roles=(
        read("logits", "1 V", "logits"),
        update("history", "C", "int32"),
        UPDATED_PARAMETERS,
        write("sampled", "1", "int32"),
        write("scores", "V", "float32", optional=True),
    ),
    attributes={},
    reference=reference,
    flops=lambda d: 2 * d["V"],
    bytes_moved=lambda d, item: d["V"] * item,
)
