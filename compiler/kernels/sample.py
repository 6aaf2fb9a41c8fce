"""Sample: one program finds the next token, appends it to the history and steps the parameter block.

The highest logit is always looked for: that is all a greedy step needs. Otherwise thresholds on the scores are found
two bits at a time, by counting (top-k) and weighing (top-p) what lies above, and the token is the highest of score plus
noise.
"""

# Triton's language, as its types see it: a loop is no iterator, a constant of the language no Python number.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import DTYPES, Axes, OneOf, Parameter, Template, Whole


@triton.jit
def sample(
    logits, history, sampled, scores, start, length, temperature, top_k, top_p, min_p, repetition_penalty, seed_low,
    seed_high, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    end = tl.load(start) + tl.load(length)
    heat = tl.load(temperature)
    penalty = tl.load(repetition_penalty)
    token = highest(logits, VOCABULARY, BLOCK)
    if penalty != 1.0 or heat != 0.0:
        penalise(logits, history, scores, end, penalty, VOCABULARY, BLOCK)
        token = highest(scores, VOCABULARY, BLOCK)
        if heat != 0.0:
            best = tl.load(scores + token)
            k, p, least = tl.load(top_k), tl.load(top_p), tl.load(min_p)
            cool = tl.div_rn(1.0, heat)
            threshold, cut = keep(scores, best, cool, k, p, VOCABULARY, BLOCK)
            low = tl.load(seed_low).to(tl.uint32, bitcast=True)
            high = tl.load(seed_high).to(tl.uint32, bitcast=True)
            token = draw(scores, best, cool, threshold, cut, least, end, low, high, VOCABULARY, BLOCK)
    tl.debug_barrier()
    tl.store(sampled, token)
    tl.store(history + end, token)
    tl.store(start, end)
    tl.store(length, 1)


@triton.jit
def highest(row, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """The id of the highest number of a row, of equal ones the lowest id."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    found = tl.zeros([BLOCK], tl.int32)
    for first in tl.range(0, VOCABULARY, BLOCK, loop_unroll_factor=4):
        ids = first + tl.arange(0, BLOCK)
        values = tl.load(row + ids, mask=ids < VOCABULARY, other=float("-inf")).to(tl.float32)
        found = tl.where(values > best, ids, found)
        best = tl.maximum(best, values)
    return lowest_of_highest(best, found, VOCABULARY)


@triton.jit
def lowest_of_highest(best, found, VOCABULARY: tl.constexpr):
    top = tl.max(best, 0)
    return tl.min(tl.where(best == top, found, VOCABULARY - 1), 0)


@triton.jit
def penalise(logits, history, scores, end, penalty, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """scores [VOCABULARY] = logits, those of tokens met before divided by the penalty, or multiplied if negative. A
    token met twice is written twice, with the same number."""
    for first in tl.range(0, VOCABULARY, BLOCK, loop_unroll_factor=4):
        ids = first + tl.arange(0, BLOCK)
        inside = ids < VOCABULARY
        values = tl.load(logits + ids, mask=inside, other=0.0).to(tl.float32)
        # Minus zero would sort under zero.
        tl.store(scores + ids, tl.where(values == 0.0, 0.0, values), mask=inside)
    tl.debug_barrier()
    if penalty != 1.0:
        SOME: tl.constexpr = min(BLOCK, 1024)
        for first in tl.range(0, end, SOME):
            places = first + tl.arange(0, SOME)
            inside = places < end
            ids = tl.load(history + places, mask=inside, other=0)
            values = tl.load(logits + ids, mask=inside, other=0.0).to(tl.float32)
            values = tl.where(values > 0.0, tl.div_rn(values, penalty), values * penalty)
            tl.store(scores + ids, tl.where(values == 0.0, 0.0, values), mask=inside)
        tl.debug_barrier()


@triton.jit
def key_of(values):
    """uint32 that sort as the float32 do."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -1, bits ^ -2147483648).to(tl.uint32, bitcast=True)


@triton.jit
def count_above(scores, threshold, step, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """How many scores reach the threshold plus one, two, three steps."""
    one = tl.zeros([BLOCK], tl.int32)
    two = tl.zeros([BLOCK], tl.int32)
    three = tl.zeros([BLOCK], tl.int32)
    for first in tl.range(0, VOCABULARY, BLOCK, loop_unroll_factor=4):
        ids = first + tl.arange(0, BLOCK)
        keys = key_of(tl.load(scores + ids, mask=ids < VOCABULARY, other=float("-inf")))
        one += (keys >= threshold + step).to(tl.int32)
        two += (keys >= threshold + 2 * step).to(tl.int32)
        three += (keys >= threshold + 3 * step).to(tl.int32)
    return tl.sum(one, 0), tl.sum(two, 0), tl.sum(three, 0)


@triton.jit
def masses_above(scores, best, cool, threshold, step, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """What the scores that reach the threshold plus none, one, two, three steps weigh; the best one weighs 1."""
    none = tl.zeros([BLOCK], tl.float32)
    one = tl.zeros([BLOCK], tl.float32)
    two = tl.zeros([BLOCK], tl.float32)
    three = tl.zeros([BLOCK], tl.float32)
    for first in tl.range(0, VOCABULARY, BLOCK, loop_unroll_factor=4):
        ids = first + tl.arange(0, BLOCK)
        values = tl.load(scores + ids, mask=ids < VOCABULARY, other=float("-inf"))
        keys = key_of(values)
        weights = tl.exp((values - best) * cool)
        none += tl.where(keys >= threshold, weights, 0.0)
        one += tl.where(keys >= threshold + step, weights, 0.0)
        two += tl.where(keys >= threshold + 2 * step, weights, 0.0)
        three += tl.where(keys >= threshold + 3 * step, weights, 0.0)
    return tl.sum(none, 0), tl.sum(one, 0), tl.sum(two, 0), tl.sum(three, 0)


@triton.jit
def equal_before(scores, threshold, cut, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """How many scores equal the threshold, at ids under `cut`."""
    counts = tl.zeros([BLOCK], tl.int32)
    for first in tl.range(0, VOCABULARY, BLOCK, loop_unroll_factor=4):
        ids = first + tl.arange(0, BLOCK)
        values = tl.load(scores + ids, mask=ids < VOCABULARY, other=0.0)
        counts += ((key_of(values) == threshold) & (ids < cut) & (ids < VOCABULARY)).to(tl.int32)
    return tl.sum(counts, 0)


@triton.jit
def keep(scores, best, cool, top_k, top_p, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """(threshold, cut): kept are the scores over the threshold, and those equal to it at ids under `cut`."""
    threshold = tl.full([], 0, tl.uint32)
    cut = tl.full([], VOCABULARY, tl.int32)
    if (top_k > 0) & (top_k < VOCABULARY):
        step = tl.full([], 1 << 30, tl.uint32)
        for _ in range(16):
            one, two, three = count_above(scores, threshold, step, VOCABULARY, BLOCK)
            steps = (one >= top_k).to(tl.uint32) + (two >= top_k).to(tl.uint32) + (three >= top_k).to(tl.uint32)
            threshold += steps * step
            step = step >> 2
    if top_p < 1.0:
        all_kept, _, _, _ = masses_above(scores, best, cool, threshold, 0, VOCABULARY, BLOCK)
        wanted = top_p * all_kept
        reached = tl.full([], 0, tl.uint32)
        step = tl.full([], 1 << 30, tl.uint32)
        for _ in range(16):
            _, one, two, three = masses_above(scores, best, cool, reached, step, VOCABULARY, BLOCK)
            steps = (one >= wanted).to(tl.uint32) + (two >= wanted).to(tl.uint32) + (three >= wanted).to(tl.uint32)
            reached += steps * step
            step = step >> 2
        # The best one is kept, whatever little is wanted.
        reached = tl.minimum(reached, key_of(best))
        threshold = tl.maximum(threshold, reached)
        # Of equal scores at the threshold only the first are needed.
        _, above, _, _ = masses_above(scores, best, cool, threshold, 1, VOCABULARY, BLOCK)
        equal = equal_before(scores, threshold, VOCABULARY, VOCABULARY, BLOCK)
        weight = tl.exp((value_of(threshold) - best) * cool)
        needed = tl.maximum(tl.ceil(tl.div_rn(wanted - above, weight)), 1.0)
        if needed < equal.to(tl.float32):
            cut = first_with(scores, threshold, needed.to(tl.int32), VOCABULARY, BLOCK)
    return threshold, cut


@triton.jit
def value_of(key):
    """The float32 that `key_of` made this from."""
    bits = key.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -2147483648, bits ^ -1).to(tl.float32, bitcast=True)


@triton.jit
def first_with(scores, threshold, needed, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """The lowest cut under which `needed` scores equal the threshold."""
    low = tl.full([], 0, tl.int32)
    high = tl.full([], VOCABULARY, tl.int32)
    while low < high:
        middle = (low + high) // 2
        if equal_before(scores, threshold, middle, VOCABULARY, BLOCK) >= needed:
            high = middle
        else:
            low = middle + 1
    return low


@triton.jit
def draw(
    scores, best, cool, threshold, cut, min_p, position, seed_low, seed_high, VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The kept token with the highest score plus Gumbel noise: a draw from the softmax (Gumbel, 1954)."""
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    found = tl.zeros([BLOCK], tl.int32)
    faint = tl.where(min_p > 0.0, tl.log(min_p), float("-inf"))
    for first in tl.range(0, VOCABULARY, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        values = tl.load(scores + ids, mask=ids < VOCABULARY, other=float("-inf"))
        keys = key_of(values)
        apart = (values - best) * cool
        kept = (keys > threshold) | ((keys == threshold) & (ids < cut))
        kept = kept & (ids < VOCABULARY) & (apart >= faint)
        noisy = tl.where(kept, apart + gumbel(ids, position, seed_low, seed_high), float("-inf"))
        found = tl.where(noisy > most, ids, found)
        most = tl.maximum(most, noisy)
    return lowest_of_highest(most, found, VOCABULARY)


@triton.jit
def gumbel(ids, position, seed_low, seed_high):
    """-log(-log(u)), u = (w + 0.5) / 2^32, w the first word of Philox4x32-10 (Salmon et al., 2011) at counter
    (id, position, 0, 0) under the seed."""
    zero = tl.zeros_like(ids).to(tl.uint32, bitcast=True)
    place = zero + position.to(tl.uint32, bitcast=True)
    word, _, _, _ = tl.philox_impl(
        ids.to(tl.uint32, bitcast=True), place, zero, zero, zero + seed_low, zero + seed_high, 10
    )
    # Near 1 a float32 u has lost what log(u) is made of: there take v = 1 - u from the word itself, and
    # -log(1 - v) = 2 artanh(v / (2 - v)) as a series.
    v = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    z = v / (2.0 - v)
    q = z * z
    series = 1.0 / 13 + q * (1.0 / 15)
    series = 1.0 / 9 + q * (1.0 / 11 + q * series)
    series = 1.0 / 5 + q * (1.0 / 7 + q * series)
    near = 2.0 * z * (1.0 + q * (1.0 / 3 + q * series))
    far = -tl.log((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10)
    return -tl.log(tl.where(v < 0.5, near, far))


def constants(axes: Axes) -> dict[str, bool | int | str]:
    return {"VOCABULARY": axes["vocabulary"], "BLOCK": axes["block"], "PDL": axes["pdl"]}


TEMPLATE = Template(
    op="sample",
    function=sample,
    parameters=(
        Parameter("logits", "operand", "logits_dtype"),
        Parameter("history", "operand", "int32"),
        Parameter("sampled", "operand", "int32"),
        Parameter("scores", "operand", "float32"),
        Parameter("start", "field", "int32"),
        Parameter("length", "field", "int32"),
        Parameter("temperature", "field", "float32"),
        Parameter("top_k", "field", "int32"),
        Parameter("top_p", "field", "float32"),
        Parameter("min_p", "field", "float32"),
        Parameter("repetition_penalty", "field", "float32"),
        Parameter("seed_low", "field", "int32"),
        Parameter("seed_high", "field", "int32"),
    ),
    axes={
        "vocabulary": Whole(1, 1 << 24),
        "block": OneOf((256, 512, 1024, 2048, 4096, 8192, 16384)),
        "logits_dtype": OneOf(DTYPES),
        "warps": OneOf((1, 2, 4, 8, 16, 32)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (1, 1, 1),
)
