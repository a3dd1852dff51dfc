"""Several streams as one: in every window of positions each source has its share, in a keyed order."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.damage import DamagedSampleError
from data_tools.decode.sample import Sample
from data_tools.errors import UserError
from data_tools.order.mixture import LONGEST_WINDOW, WINDOW, MixingOrder, choose_window, largest_remainder
from data_tools.order.sharing import FREE
from data_tools.storage.prefetch import Needs, ReadAhead, positions_ahead
from data_tools.stream.mixing_plan import MixingPlan, plan_shares
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream

log = logging.getLogger(__name__)

Int64Array = NDArray[np.int64]

BLOCK = 1 << 20  # lengths read at a time

History = list[tuple[int, dict[str, float], int]]
"""(from this position on, weights, positions within which each source has its share)."""


class Mixture:
    """Streams mixed by weight; a sample says where it is from in ``__source__`` and in its key.

    ``by``: "sample", or "token" to make the weights shares of tokens (needs lengths, or packed rows).
    """

    def __init__(
        self,
        streams: Mapping[str, Stream | PackedStream],
        weights: Mapping[str, float],
        seed: int = 0,
        by: str = "sample",
    ) -> None:
        if not streams:
            raise UserError("a mixture needs at least one stream")
        if by not in ("sample", "token"):
            raise UserError(f"by={by!r}: must be 'sample' or 'token'")
        self.streams, self.seed, self.by = dict(streams), seed, by
        self._measure()
        self.history: History = []
        self.plan: MixingPlan | None = None
        """What the weights in force were planned from; None where they were given as they are."""
        self.set_weights(weights, 0)

    def __copy__(self) -> Mixture:
        """With streams of its own: what it adopts is not adopted by these."""
        other = object.__new__(Mixture)
        vars(other).update(vars(self), streams={name: copy.copy(s) for name, s in self.streams.items()})
        return other

    def _measure(self) -> None:
        """Take over from the streams what depends on their rows, which may change with the order that they adopt."""
        tokens = [_mean_tokens(name, s) if self.by == "token" else 1.0 for name, s in self.streams.items()]
        self._tokens = np.array(tokens)
        self.samples_per_epoch = sum(stream.samples_per_epoch for stream in self.streams.values())

    def set_weights(self, weights: Mapping[str, float], position: int) -> None:
        """Mix by ``weights`` from ``position`` on; what was before stays as it was."""
        if (
            set(weights) != set(self.streams)
            or not all(w >= 0 for w in weights.values())
            or not 0 < sum(weights.values()) < math.inf
        ):
            raise UserError(
                f"weights {dict(weights)}: must be finite, ≥ 0, not all 0, for {', '.join(self.streams)}"
            )
        if self.history and position < self.history[-1][0]:
            raise UserError(
                f"weights were set at position {self.history[-1][0]} already; {position} is before that"
            )
        chosen = {name: float(weights[name]) for name in self.streams}
        shares = self._shares(chosen)
        window = choose_window(shares)
        if window is None:
            rarest = min((share, name) for share, name in zip(shares, chosen, strict=True) if share)[1]
            raise UserError(
                f"weights: {rarest}={chosen[rarest]:g} comes to less than one sample in {LONGEST_WINDOW:,}; give it "
                "more, or 0"
            )
        kept = [entry for entry in self.history if entry[0] < position]
        self.plan = None
        self._use_history([*kept, (position, chosen, window)])

    def plan_weights(self, plan: MixingPlan, position: int) -> None:
        """Mix from ``position`` on as a plan for the whole run says; what was taken before counts as repeated.

        Raises:
            UserError: the plan allows too few repeats.
        """
        sizes = np.array([stream.samples_per_epoch for stream in self.streams.values()], dtype=np.float64)
        taken = self.order.taken(position)
        named = dataclasses.replace(plan, weights={name: float(plan.weights[name]) for name in self.streams})
        weights = plan_shares(named, sizes, self._tokens, taken) * self._tokens
        shares = (weights / weights.sum()).tolist()
        self.set_weights(dict(zip(self.streams, shares, strict=True)), position)
        self.plan = named

    def _shares(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """What the positions are shared by, shape (sources,); sums to anything."""
        return np.array(list(weights.values())) / self._tokens

    def _use_history(self, history: History) -> None:
        self.history = history
        shares = [(start, self._shares(weights)) for start, weights, _ in history]
        self.order = MixingOrder(shares, self.seed, [window for *_, window in history])

    def sample(self, position: int) -> Sample:
        """The sample or row at a position ≥ 0, with ``__source__`` and its key behind the name of that."""
        return next(self.samples(np.array([position], dtype=np.int64)))

    def samples(self, positions: Int64Array) -> Iterator[Sample]:
        """Those at ``positions`` ≥ 0, shape (n,), in their order; each source is asked once for all of its own."""
        sources, inner = self.order.locate(positions)
        names = list(self.streams)
        readers = [self.streams[name].samples(inner[sources == s]) for s, name in enumerate(names)]
        for position, source in zip(positions.tolist(), sources.tolist(), strict=True):
            yield _label(next(readers[source]), names[source], position)

    def stand_ins(self, position: int, error: DamagedSampleError) -> Iterator[Sample]:
        """Other samples of the same source for the place of a damaged or incomplete one; see ``Stream.stand_ins``."""
        sources, inner = self.order.locate(np.array([position], dtype=np.int64))
        name = list(self.streams)[int(sources[0])]
        for sample in self.streams[name].stand_ins(int(inner[0]), error):
            yield _label(sample, name, position)

    def share_among(self, nodes: int, node: int) -> None:
        """As of a Stream."""
        for stream in self.streams.values():
            stream.share_among(nodes, node)

    def homes(self, positions: Int64Array, nodes: int) -> Int64Array | None:
        """Which of ``nodes`` best takes each position, shape (n,); FREE, or None, where it makes no difference."""
        sources, inner = self.order.locate(positions)
        found = [stream.homes(inner[sources == s], nodes) for s, stream in enumerate(self.streams.values())]
        if all(homes is None for homes in found):
            return None
        home = np.full_like(positions, FREE)
        for s, homes in enumerate(found):
            if homes is not None:
                home[sources == s] = homes
        return home

    def read_ahead(self) -> ReadAhead | None:
        """As of a Stream, for the sources that lie elsewhere."""
        remote = [stream for stream in self.streams.values() if stream.dataset.remote]
        if not remote:
            return None
        smallest = min(stream.row_bytes if isinstance(stream, PackedStream) else stream.dataset.sample_bytes
                       for stream in remote)  # fmt: skip
        return ReadAhead(
            self.needs, self.samples_per_epoch, positions_ahead(smallest, self.samples_per_epoch)
        )

    def needs(self, positions: Int64Array) -> Needs:
        """What is fetched for ``positions`` ≥ 0, shape (n,), ascending: (cache, segment, position that needs it)."""
        sources, inner = self.order.locate(positions)
        found = []
        for s, stream in enumerate(self.streams.values()):
            if stream.dataset.remote:
                outer = dict(zip(inner[sources == s].tolist(), positions[sources == s].tolist(), strict=True))
                found += [
                    (cache, segment, outer[at]) for cache, segment, at in stream.needs(inner[sources == s])
                ]
        yield from sorted(found, key=lambda need: need[2])

    def shards(self, positions: Int64Array) -> list[list[str]]:
        """The shards of each sample or row at ``positions``, each behind its source's name."""
        sources, inner = self.order.locate(positions)
        found: list[list[str]] = [[] for _ in positions]
        for s, (name, stream) in enumerate(self.streams.items()):
            here = np.flatnonzero(sources == s)
            for place, shards in zip(here.tolist(), stream.shards(inner[here]), strict=True):
                found[place] = [f"{name}/{shard}" for shard in shards]
        return found

    def state(self) -> dict[str, Any]:
        """As of a Stream: the history of weights, and the state of each source."""
        history = [
            [start, weights] if window == WINDOW else [start, weights, window]
            for start, weights, window in self.history
        ]
        planned = {"plan": self.plan.state()} if self.plan else {}
        return {
            "mixing": {"by": self.by, "seed": self.seed, "window": WINDOW, "history": history, **planned},
            "sources": {name: stream.state() for name, stream in self.streams.items()},
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over the history of weights of a saved state, if it is one of these sources, and what they adopt."""
        for name, stream in self.streams.items():
            stream.adopt(state.get("sources", {}).get(name, {}))
        self._measure()
        history = state.get("mixing", {}).get("history", [])
        if not history or any(set(entry[1]) != set(self.streams) for entry in history):
            return
        self._use_history(
            [
                (
                    int(start),
                    {name: weights[name] for name in self.streams},
                    int(window[0]) if window else WINDOW,
                )
                for start, weights, *window in history
            ]
        )
        plan = state["mixing"].get("plan")
        self.plan = MixingPlan(**plan) if plan else None
        shares, window = self._shares(self.history[-1][1]), self.history[-1][2]
        for name, share, count in zip(self.streams, shares, largest_remainder(shares, window), strict=True):
            if share and not count:
                log.warning(
                    "%s: its share rounds to none in windows of %d, as the saved state has them; set the weights anew",
                    name,
                    window,
                )


def _label(sample: Sample, source: str, position: int) -> Sample:
    """The sample of one stream as the mixture's: its source, its key behind that, positions in the mixture."""
    sample["__source__"] = source
    sample["__key__"] = f"{source}/{sample['__key__']}"
    if "__drawn_by__" in sample:
        sample["__drawn_by__"] = f"{source}/{sample['__drawn_by__']}"
    if "__damage__" in sample:
        sample["__damage__"] = [dataclasses.replace(d, position=position) for d in sample["__damage__"]]
    return sample


def _mean_tokens(name: str, stream: Stream | PackedStream) -> float:
    if isinstance(stream, PackedStream):
        return stream.length * stream.efficiency
    if not stream.dataset.manifest.has_length:
        raise UserError(f"{name}: mixing by token needs lengths; tokenize the data, or mix by sample")
    samples = len(stream.dataset)
    blocks = (stream.dataset.read_lengths(i, min(i + BLOCK, samples)) for i in range(0, samples, BLOCK))
    return sum(int(block.sum(dtype=np.int64)) for block in blocks) / samples
