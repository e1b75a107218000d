"""Which chains a batch of images needs, how far each is walked, and where the last call left them.

Image i of C chains is emission i // C of chain i mod C; after `emissions` of them a chain is another one. A chain under
one condition is a lane. The state of lanes that are not at their end is kept, so that the next batch of the same run
goes on from there; a batch that asks for earlier emissions walks its chains again from their beginning, to the same
images.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.noise import Draws
from scoreline.samplers.chains import Chains, Places, Settings
from scoreline.samplers.level_prediction import ExactLevels

__all__ = ["Cost", "Kept", "ModelMark", "bound", "emitted", "lanes_of"]

# Lanes that are kept, for each chain: of several conditions, or of images asked for out of order.
MOST = 4
Lane = tuple[int, bytes]
Plain = (bool, int, float, str, type(None))


class Cost(NamedTuple):
    """Evaluations: before the first emission, between two emissions, and of all chains in this call."""

    startup: int
    block: int
    total: int


class ModelMark:
    """Tells whether a denoiser seen later is the same function: the same objects, weights and settings, the batch's
    conditions aside. It keeps no model alive."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._values, objects = _described(denoiser)
        self._objects = [weakref.ref(thing) for thing in objects]

    def fits(self, denoiser: Denoiser) -> bool:
        values, objects = _described(denoiser)
        alike = len(objects) == len(self._objects) and all(r() is thing for r, thing in zip(self._objects, objects))
        # A tensor made in inference mode counts no changes; nothing is known of it.
        return alike and values == self._values and None not in values


def _described(denoiser: Denoiser) -> tuple[list[Any], list[Any]]:
    values: list[Any] = []
    objects: list[Any] = []
    for module in denoiser.modules():
        if module is not denoiser:
            objects.append(module)
        values.append((type(module).__name__, module.training))
        if not isinstance(module, Denoiser):
            continue
        for name, value in vars(module).items():
            if name == "_given":
                continue
            if isinstance(value, Plain) or (isinstance(value, tuple) and all(isinstance(v, Plain) for v in value)):
                values.append((name, value))
            elif type(value).__weakrefoffset__:
                objects.append(value)
    for tensor in (*denoiser.parameters(), *denoiser.buffers()):
        objects.append(tensor)
        values.append(None if tensor.is_inference() else tensor._version)
    return values, objects


@dataclass
class Kept:
    """Lanes of the calls before, empty before the first.

    Attributes:
        mark, predictor, context: of which model, and of which run: predictor, seed, type, settings.
        startup: evaluations of a chain's start.
        lanes: (next emission, sweeps made, y, place in the table) by lane.
    """

    mark: ModelMark | None = None
    predictor: Any = None
    context: tuple[Any, ...] = ()
    startup: int = 0
    lanes: dict[Lane, tuple[int, int, Tensor, Tensor]] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        # A sampler that is copied or sent to another process goes there with its settings alone.
        return Kept, ()

    def open(self, denoiser: Denoiser, predictor: Any, context: tuple[Any, ...]) -> None:
        """Forget everything unless it is of this model and run."""
        # The exact posterior is made anew for each call; it is the model's own.
        seen = type(predictor) if isinstance(predictor, ExactLevels) else weakref.ref(predictor)
        alike = self.mark is not None and self.predictor == seen and self.context == context
        if not alike or self.mark is None or not self.mark.fits(denoiser):
            self.mark, self.predictor, self.context, self.lanes = ModelMark(denoiser), seen, context, {}

    def store(self, lanes: Iterable[Lane], chains: Chains, emission: int) -> None:
        """Where these lanes, in the order of the chains, go on; those at their end are dropped, and the oldest too."""
        state, settings = chains.state_dict(), chains.settings
        for row, lane in enumerate(lanes):
            self.lanes.pop(lane, None)
            if emission < settings.emissions:
                self.lanes[lane] = (emission, chains.sweeps, state["y"][row].clone(), state["at"][row].clone())
        for lane in list(self.lanes)[: max(len(self.lanes) - MOST * settings.chains, 0)]:
            del self.lanes[lane]


def bound(denoiser: Denoiser) -> Cond | None:
    """The conditions of the batch, whether bound to the model itself or to one inside a view."""
    inner: Any = denoiser
    while inner is not None and inner._given is None:
        inner = getattr(inner, "inner", None)
    return None if inner is None else inner._given


def lanes_of(indices: np.ndarray, cond: Cond | None, chains: int, emissions: int) -> tuple[list[Lane], np.ndarray]:
    """Of each image its lane, (number of the chain, bytes of its condition), and its emission, (B,).

    >>> lanes, emission = lanes_of(np.array([0, 3, 7]), None, 3, 2)
    >>> [number for number, _ in lanes], emission.tolist()
    ([0, 0, 4], [0, 1, 0])
    """
    turn = indices // chains
    numbers = turn // emissions * chains + indices % chains
    columns = [] if cond is None else [value.detach().cpu().numpy() for _, value in cond.items()]
    marks = [b"".join(column[i].tobytes() for column in columns) for i in range(len(indices))]
    return list(zip(numbers.tolist(), marks)), turn % emissions


def emitted(
    denoiser: Denoiser, noise: Draws, predictor: Any, places: Places, settings: Settings, n_skip: int, kept: Kept,
) -> tuple[Tensor, Tensor, Cost]:  # fmt: skip
    """For each image its chain's emission: y (B, ...), its place in the table (B,), and what the chains cost.

    Args:
        denoiser: the model with the batch's conditions.
        noise: seed and numbers of the images.
        predictor: of the level.
        places: the table of levels.
        settings: of the chains.
        n_skip: sweeps between two emissions.
        kept: where the last call left its chains; changed.
    """
    cond = bound(denoiser)
    lane_of, emission = lanes_of(noise.indices, cond, settings.chains, settings.emissions)
    plain = {k: v for k, v in vars(settings).items() if isinstance(v, Plain) and k not in ("steps", "nfe", "grid")}
    context = (
        noise.seed,
        noise.dtype,
        noise.device,
        n_skip,
        tuple(places.table),
        tuple(sorted(plain.items(), key=str)),
    )
    kept.open(denoiser, predictor, context)
    tensors = (*predictor.parameters(), *predictor.buffers()) if isinstance(predictor, nn.Module) else ()
    if any(t.device != noise.device for t in tensors):
        predictor = copy.deepcopy(predictor).to(noise.device)  # the original may be shared with other runs

    wanted: dict[Lane, list[int]] = {}
    for row, lane in enumerate(lane_of):
        wanted.setdefault(lane, []).append(row)
    # Lanes that go on from the same place are walked together; -1 stands for those that begin.
    groups: dict[int, list[Lane]] = {}
    for lane, rows in wanted.items():
        at = kept.lanes[lane][0] if lane in kept.lanes else -1
        groups.setdefault(at if at <= min(emission[rows]) else -1, []).append(lane)
    y = torch.empty((len(noise), *noise.shape), dtype=noise.dtype, device=noise.device)
    place = torch.zeros(len(noise), dtype=torch.long, device=noise.device)
    block = total = 0
    for first, lanes in groups.items():
        rows = [wanted[lane][0] for lane in lanes]
        numbers = np.array([number for number, _ in lanes])
        chains = Chains(denoiser, cond, rows, numbers, noise, settings, predictor, places)
        if first < 0:
            chains.start()
            kept.startup = chains.nfe
            total += chains.nfe * len(lanes)
        else:
            states = [kept.lanes[lane] for lane in lanes]
            stacked = {"y": torch.stack([s[2] for s in states]), "at": torch.stack([s[3] for s in states])}
            chains.load_state_dict({**stacked, "sweeps": torch.tensor([states[0][1], 0])})
        need = [int(emission[wanted[lane]].max()) for lane in lanes]
        for e in range(max(first, 0), max(need) + 1):
            going = [i for i in range(len(lanes)) if need[i] >= e]
            if len(going) < len(chains.lanes):
                kept.store([lanes[i] for i in chains.lanes], chains, e)
            chains.keep(going)
            before = chains.nfe
            out, at_ = chains.emit(n_skip)
            block = chains.nfe - before
            total += block * len(going)
            into = [(r, k) for k, i in enumerate(going) for r in wanted[lanes[i]] if emission[r] == e]
            if into:
                to, source = torch.tensor(into, device=noise.device).T
                y[to], place[to] = out[source], at_[source]
        kept.store([lanes[i] for i in chains.lanes], chains, max(need) + 1)
    return y, place, Cost(kept.startup, block, total)
