"""The work of each launch of a call, derived from the kernels' tiles: a function for each stage.

Tiles, splits and grids are those of the launches themselves. Padding of a tile counts as operations but not as bytes,
since it repeats a row that is read anyhow. Tables of a few bytes a token are left out where a stage also reads
megabytes. So is work that depends on the tokens' values: settling near ties of float32 similarities, and sums that are
not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.model.scenario import Scenario, Segment
from benchmarks.model.work import Access, Work

Arguments = dict[str, Any]


def frame(s: Scenario, arguments: Arguments, launches: int) -> Work:
    """A program reads the features of its frame and the next one, in every SPLITS-th block of channels.

    Without features, all tokens of both frames are read, 16 at a time. Attention is compared pair by pair.
    """
    n, splits = s.tokens_per_frame, arguments["SPLITS"]
    channels = s.feature_channels or s.channels
    rows = 1 if s.feature_channels else n
    distinct = s.frames * rows * channels * (s.row_bytes // s.channels)
    rounds = _tiles(channels, splits * arguments["BLOCK_D"])
    return Work(
        "frame",
        launches,
        blocks=s.frames * splits,
        accesses=(Access(distinct, 2 * distinct, span=2 * distinct / s.frames),),
        trips=3 + rounds * (1 if s.feature_channels else 2 * _tiles(n, arguments["BLOCK_N"])),
        vector_flops=6 * s.frames * n**2,
        double_flops=s.frames * channels * (6 if s.feature_channels else 6 + 2 * n),
    )


def plan(s: Scenario, arguments: Arguments, launches: int) -> Work:
    """One block reads the partial sums, orders the transitions, and labels frames.

    A video of up to SHORT frames stays in registers, and exchanges between threads take about as long as a load. Of a
    longer one, the smallest transition is taken `min_segments - 1` times, and every pass goes through memory.
    """
    passes = min(arguments["min_segments"] - 1, s.frames - 1) + 4 if s.frames > arguments["SHORT"] else 1
    partial = s.frames * arguments["SPLITS"] * 3 * 8
    return Work(
        "plan",
        launches,
        blocks=1,
        accesses=(Access(partial, partial, seen=partial),),
        trips=3 + passes * _tiles(s.frames, arguments["BLOCK"]),
    )


def gram(s: Scenario, arguments: Arguments, launches: int) -> Work:
    """Tiles on and above the diagonal of each anchor frame, each over all channels in SPLITS parts.

    A tile reads its rows and its columns; on the diagonal, where they are the same, once in half precision and twice in
    float32. So each token is read as often as there are tiles along its frame, or once more. A tile is written with its
    mirror image.
    """
    n, block, splits = s.tokens_per_frame, arguments["BLOCK"], arguments["SPLITS"]
    along = _tiles(n, block)
    tiles = _anchor_frames(s) * along * (along + 1) // 2
    steps = _tiles(_tiles(s.channels, splits), arguments["BLOCK_D"])
    distinct = _anchor_frames(s) * s.frame_bytes
    scratch = _gram_bytes(s, splits)
    return Work(
        "gram",
        launches,
        blocks=tiles * splits,
        accesses=(
            Access(
                distinct,
                (along + (arguments["PRECISION"] != "ieee")) * distinct,
                # Without features, `frame` has read the tokens for their mean.
                seen=0 if s.feature_channels else distinct,
                age=s.token_bytes,
                span=distinct / launches,
            ),
            Access(scratch, scratch, seen=scratch, age=scratch / launches),
        ),
        trips=3 + steps / _in_flight(arguments),
        matrix_flops=tiles * 2 * block**2 * steps * splits * arguments["BLOCK_D"],
    )


def density(s: Scenario, arguments: Arguments, launches: int) -> Work:
    """A block computes all distances of ROWS tokens from the Gram matrix and its diagonal, and k times the smallest."""
    neighbours = arguments["num_neighbors"]
    return _over_distances("density", s, arguments, launches, operations=8 + 5 * neighbours)


def delta(s: Scenario, arguments: Arguments, launches: int) -> Work:
    """A block computes all distances of ROWS tokens once more, and the smallest to a denser token."""
    return _over_distances("delta", s, arguments, launches, operations=14)


def select(s: Scenario, arguments: Arguments, launches: int) -> Work:
    """A block compares the scores of an anchor frame pair by pair, COLUMNS at a time, and writes the kept indices."""
    n = s.tokens_per_frame
    indices = s.frames * s.kept * 8
    # Key, rank and state of every token.
    tables = s.frames * n * 8
    return Work(
        "select",
        launches,
        blocks=s.frames,
        accesses=(Access(indices, indices), Access(tables, tables, seen=tables, age=tables)),
        trips=5 * launches,
        vector_flops=5 * _anchor_frames(s) * n**2,
    )


def assign(s: Scenario, arguments: Arguments, launches: int) -> Work:
    """Products of all tokens of a segment with the anchors of each of its anchor frames, BLOCK_SLOTS of each at a time.

    A pass over the tokens serves one anchor frame or a group of them. LANES passes run side by side and read the same
    tokens, which come from memory once. The anchors are read for every tile of tokens.
    """
    n, slots, lanes = s.tokens_per_frame, arguments["BLOCK_SLOTS"], arguments["LANES"]
    token_reads, first_reads, anchor_reads, flops, blocks = 0, 0, 0, 0, 0
    trips = [0.0]
    busy = [one for one in s.segments if one.anchors]
    for segment in busy:
        of_lane: list[list[tuple[int, ...]]] = [[] for _ in range(lanes)]
        for number, counts in enumerate(_passes(segment, arguments)):
            of_lane[number % lanes].append(counts)
            rows, depth = _assign_tile(counts, arguments)
            tiles, turns = _tiles(segment.length * n, rows), _tiles(counts[0], slots)
            token_reads += turns * segment.length * s.frame_bytes
            anchor_reads += sum(counts) * tiles * s.row_bytes
            columns = turns * len(counts) * slots
            flops += tiles * 2 * rows * columns * _tiles(s.channels, depth) * depth
        turns_of_lane = [sum(_tiles(counts[0], slots) for counts in lane) for lane in of_lane]
        first_reads += max(turns_of_lane) * segment.length * s.frame_bytes
        for lane in filter(None, of_lane):
            blocks += max(_tiles(segment.length * n, _assign_tile(counts, arguments)[0]) for counts in lane)
            steps = [
                2 + _tiles(counts[0], slots) * _tiles(s.channels, _assign_tile(counts, arguments)[1])
                / _in_flight(arguments) for counts in lane
            ]  # fmt: skip
            trips.append(sum(steps))
    tokens = sum(one.length for one in busy) * s.frame_bytes
    anchors = sum(sum(one.anchors) for one in busy) * s.row_bytes
    seen = _anchor_frames(s) * s.frame_bytes if s.feature_channels else tokens
    return Work(
        "assign",
        launches,
        blocks=blocks,
        accesses=(
            Access(tokens, first_reads, seen=seen, age=s.token_bytes, span=tokens),
            Access(0, token_reads - first_reads),
            Access(anchors, anchor_reads, seen=anchors, age=s.token_bytes, span=anchors),
            _nearest(s, repeats=1),
        ),
        trips=3 + max(trips),
        matrix_flops=flops,
    )


def emit(s: Scenario, arguments: Arguments, launches: int) -> Work:
    """A block copies rows of a frame, or adds up its segment's tokens by anchor in BLOCK_D channels, or GROUP_D.

    For every BLOCK_SLOTS anchors of the anchor frames that share a pass, all tokens of their segment are read. The
    product has rows for a whole group or a whole pair, even if a pass is for one anchor frame. The blocks of a channel
    range run side by side and read the tokens in step.
    """
    n, slots = s.tokens_per_frame, arguments["BLOCK_SLOTS"]
    merges = not arguments["BETA_IS_ONE"]
    merged = [one for one in s.segments if one.anchors and merges]
    distinct, copied = sum(one.length for one in merged) * s.frame_bytes, s.output_bytes
    # What is copied from segments that are merged is read there as well.
    only_copied = copied - sum(one.salient + sum(one.anchors) for one in merged) * s.row_bytes
    copies = Access(only_copied, copied, age=s.token_bytes)
    blocks, flops, read, joined, longest = 0, 0, 0, 0, 0
    for segment in merged:
        for counts in _passes_in_pairs(segment, arguments):
            tile, channels, rows = _emit_tile(counts, arguments)
            tiles, turns, ranges = (
                _tiles(segment.length * n, tile),
                _tiles(counts[0], slots),
                _tiles(s.channels, channels),
            )
            blocks += turns * ranges
            read += turns * segment.length * s.frame_bytes
            joined += turns * ranges * segment.length * n * len(counts) * 2
            flops += turns * ranges * tiles * 2 * rows * tile * channels
            longest = max(longest, tiles)
    accesses = [copies, Access(s.output_bytes, s.output_bytes)]
    if merged:
        span = s.token_bytes / _tiles(s.channels, arguments["BLOCK_D"])
        accesses.append(Access(distinct, read, seen=distinct, age=s.token_bytes, span=span))
        size = _nearest(s, repeats=1).distinct
        accesses.append(Access(size, joined, seen=size, age=size, span=size))
    return Work(
        "emit",
        launches,
        # Programs that copy take hardly any time beside those that merge.
        blocks=blocks or s.frames * _tiles(s.channels, arguments["COPY_D"]),
        accesses=tuple(accesses),
        # Programs that merge, and programs that copy.
        trips=max(5 + longest / _in_flight(arguments), 2 + 4 * _tiles(max(2 * s.kept, 1), arguments["BLOCK_ROWS"])),
        matrix_flops=flops,
    )


def gradient(s: Scenario, arguments: Arguments, launches: int) -> Work:
    """A block gathers BLOCK_D channels of the gradient of BLOCK_TOKENS tokens, from the rows they were merged into.

    A row is read once for its own token and once for each token that joined it, a term for each anchor frame of a
    segment. Partial sums between launches are float32.
    """
    n, width, tokens = s.tokens_per_frame, arguments["BLOCK_D"], arguments["BLOCK_TOKENS"]
    ranges = _tiles(s.channels, width)
    own = s.frames * s.kept
    merges = arguments["beta"] < 1
    joined = merges * sum(one.length * n - one.salient - count for one in s.segments for count in one.anchors)
    waiting = (launches - 1) * 4 * s.frames * n * s.channels
    longest = max((len(one.anchors) for one in s.segments), default=0)
    return Work(
        "gradient",
        launches,
        blocks=s.frames * _tiles(n, tokens) * ranges,
        accesses=(
            Access(s.output_bytes, (own + joined) * s.row_bytes, span=s.output_bytes / ranges),
            Access(s.token_bytes, s.token_bytes),
            Access(waiting, 2 * waiting, span=waiting),
            _nearest(s, repeats=ranges),
        ),
        # A token's slot, its anchor's output row, and that row's gradient; and a count of the rows before its own.
        trips=4 * launches + 3 * longest + _tiles(n, tokens),
        vector_flops=2 * (own + joined) * s.channels,
    )


STAGES: dict[str, Callable[[Scenario, Arguments, int], Work]] = {
    one.__name__: one for one in (frame, plan, gram, density, delta, select, assign, emit, gradient)
}


def works(scenario: Scenario) -> Iterator[Work]:
    """The work of every stage that is launched, in order."""
    return (STAGES[stage](scenario, arguments[0], len(arguments)) for stage, arguments in scenario.launches.items())


def _over_distances(stage: str, s: Scenario, arguments: Arguments, launches: int, operations: int) -> Work:
    n, rows, splits = s.tokens_per_frame, arguments["ROWS"], arguments["SPLITS"]
    scratch = _gram_bytes(s, splits)
    blocks = _anchor_frames(s) * _tiles(n, rows)
    diagonal = blocks * (n + rows) * splits * 4
    return Work(
        stage,
        launches,
        blocks=blocks,
        accesses=(Access(scratch, scratch + diagonal, seen=scratch, age=scratch / launches),),
        trips=4 * launches,
        vector_flops=_anchor_frames(s) * n**2 * operations,
    )


def _passes(segment: Segment, arguments: Arguments) -> Iterator[tuple[int, ...]]:
    """For each pass over a segment's tokens, the anchors of its anchor frames: groups, then a pair, then single."""
    anchors, size = list(segment.anchors), arguments["GROUP"]
    alone: list[int] = []
    while len(anchors) > 1:
        together = anchors[: size if len(anchors) >= size else 2]
        del anchors[: len(together)]
        if _is_alike(together, arguments):
            yield tuple(together)
        else:
            alone += together
    yield from ((count,) for count in alone + anchors)


def _passes_in_pairs(segment: Segment, arguments: Arguments) -> Iterator[tuple[int, ...]]:
    """As `_passes`, but what is no group goes in pairs, where both have equally many tiles of anchors."""
    anchors, size = segment.anchors, arguments["GROUP"]
    for first in range(0, len(anchors), size):
        group = anchors[first : first + size]
        if len(group) == size and _is_alike(group, arguments):
            yield tuple(group)
            continue
        for pair in (group[:2], group[2:]):
            yield from (tuple(pair),) if pair and _is_alike(pair, arguments) else ((count,) for count in pair)


def _is_alike(counts: Sequence[int], arguments: Arguments) -> bool:
    return len({_tiles(count, arguments["BLOCK_SLOTS"]) for count in counts}) == 1


def _emit_tile(counts: tuple[int, ...], arguments: Arguments) -> tuple[int, int, int]:
    """Tokens, channels and rows of the product of a pass."""
    if len(counts) == arguments["GROUP"]:
        return arguments["GROUP_TOKENS"], arguments["GROUP_D"], len(counts) * arguments["BLOCK_SLOTS"]
    return arguments["BLOCK_TOKENS"], arguments["BLOCK_D"], 2 * arguments["BLOCK_SLOTS"]


def _assign_tile(counts: tuple[int, ...], arguments: Arguments) -> tuple[int, int]:
    """Tokens and channels of a tile of a pass."""
    names = ("GROUP_ROWS", "GROUP_D") if len(counts) == arguments["GROUP"] else ("ROWS", "BLOCK_D")
    return arguments[names[0]], arguments[names[1]]


def _nearest(s: Scenario, repeats: int) -> Access:
    """The slot, int16, that each token of a segment joins in each of its anchor frames."""
    size = sum(one.length * len(one.anchors) for one in s.segments) * s.tokens_per_frame * 2
    return Access(size, repeats * size, seen=size, age=size, span=size)


def _anchor_frames(s: Scenario) -> int:
    return sum(len(one.anchors) for one in s.segments)


def _gram_bytes(s: Scenario, splits: int) -> int:
    return _anchor_frames(s) * splits * s.tokens_per_frame**2 * 4


def _in_flight(arguments: Arguments) -> int:
    return int(max(1, arguments["num_stages"] - 1))


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)
