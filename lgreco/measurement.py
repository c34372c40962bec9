"""Measuring layers over all ranks: the error of every choice that they are offered, and of the one in force.

Sampled elements of a layer meet on one rank, which then knows the exact mean there and plays both rounds of an exchange
under every choice. Low rank needs no element but a sketch, summed over ranks. What a rank has found is summed up over
the group, so that every rank holds the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lgreco import _C, sketch
from lgreco.candidates import Offers
from lgreco.choice import LowRank
from lgreco.factor_coding import FactorCoding
from lgreco.masks import LayerMask
from lgreco.peers import Peers
from lgreco.sampling import Sample, deal, sample_of

Array = npt.NDArray[np.float64]
_Sketched = tuple[sketch.Spectrum | sketch.MaskedSpectrum, torch.Tensor, torch.Tensor]  # with C and V


@dataclass(frozen=True)
class Gradients:
    """What a rank has of the layers that are measured in one step; tensors are fp32, flat, on the CPU.

    Of a masked layer they hold what is kept.

    Attributes:
        step: committed steps before it.
        rows: ids of the layers.
        values: gradient + residual of this rank, [sent_numel] each.
        delivered: what the exchange made of them, [sent_numel] each.
        owed: (offset, residual) of the part of the layer whose average this rank owns; None where there is none.
    """

    step: int
    rows: Sequence[int]
    values: Sequence[torch.Tensor]
    delivered: Sequence[torch.Tensor]
    owed: Sequence[tuple[int, torch.Tensor] | None]


@dataclass(frozen=True, eq=False)
class Row:
    """One layer's measurement, the same on every rank; NaN where it could not be measured.

    Attributes:
        errors: float64 [C], squared; NaN where a choice is not offered.
        squared_norm: of the exact mean.
        realised: squared error of what was delivered.
    """

    errors: Array
    squared_norm: float
    realised: float

    @property
    def sound(self) -> bool:
        """Whether it can be used: a layer with an inf or NaN cannot."""
        return bool(np.isfinite(self.squared_norm))


@dataclass(frozen=True)
class Rail:
    """Of a hierarchical exchange: the ranks with which this one exchanges, and the ids of the layers that they do."""

    peers: Peers
    rows: frozenset[int]


class Meter:
    """Measures layers together with its peers; calls are collective.

    Args:
        offers: layers and choices.
        peers: talked to by this object's thread alone.
        seed: of all draws.
        masks: of the layers that have one; the same as on every peer.
        rail: measures its layers among its own ranks; None: all ranks measure all layers.
    """

    def __init__(
        self,
        offers: Offers,
        peers: Peers,
        seed: int,
        masks: Mapping[str, LayerMask] | None = None,
        rail: Rail | None = None,
    ) -> None:
        self._offers = offers
        self._everyone = peers
        self._rail_rows = None if rail is None else rail.rows
        self._peers = peers if rail is None else rail.peers
        self._rank, self._world_size = self._peers.rank, self._peers.world_size
        self._seed = seed
        self._masks = masks or {}
        self._native = [choice.to_native() for choice in offers.choices]

    def measure(self, gradients: Gradients) -> dict[int, Row]:
        """Rows of the layers, by id."""
        everything = gradients.rows
        found = np.zeros((len(everything), len(self._offers.choices) + 2))
        if self._rail_rows is not None:
            gradients = _only(gradients, self._rail_rows)
        if gradients.rows:
            found[[row in set(gradients.rows) for row in everything]] = self._found(gradients)
        total = torch.from_numpy(found)
        self._everyone.sum(total)  # every row is zero but on one rank: sums are exact
        return {
            row: Row(found[i, :-2].copy(), float(found[i, -2]), float(found[i, -1])) for i, row in enumerate(everything)
        }

    def _found(self, gradients: Gradients) -> Array:
        """float64 [rows, C + 2]: what this rank finds, zero for the layers that meet on another one."""
        rows, offers = gradients.rows, self._offers
        samples = [sample_of(offers.layers[row].sent_numel, self._seed, gradients.step, row) for row in rows]
        turn = gradients.step  # a slice of few layers must not always fall to the first ranks
        dealt = deal([sample.numel for sample in samples], self._world_size)
        owners = [(owner + turn) % self._world_size for owner in dealt]
        found = np.zeros((len(rows), len(offers.choices) + 2))
        meetings = self._meet(gradients, samples, owners)
        spectra = self._spectra(gradients, samples, owners, meetings)
        for i, meeting in meetings.items():
            delivered = samples[i].take(gradients.delivered[i]).double().numpy()
            found[i] = self._judge(rows[i], samples[i], meeting, delivered, spectra.get(i), gradients.step)
        return found

    def _meet(self, gradients: Gradients, samples: Sequence[Sample], owners: Sequence[int]) -> dict[int, _Meeting]:
        """Sends every sample to the rank that owns its layer; what this rank owns, by position in `rows`."""
        owed = torch.tensor([[part[0], part[1].numel()] if part else [0, 0] for part in gradients.owed])
        all_owed = self._peers.gather(owed)
        lists = range(len(samples))
        overlap = [[_overlap(samples[i], int(ranges[i, 0]), int(ranges[i, 1])) for i in lists] for ranges in all_owed]
        sizes = [[samples[i].numel + _length(overlap[rank][i]) for i in lists] for rank in range(self._world_size)]
        send: list[torch.Tensor] = []
        for owner in range(self._world_size):
            for i in (i for i in lists if owners[i] == owner):
                send.append(samples[i].take(gradients.values[i]))
                part = gradients.owed[i]
                if part is not None:
                    send += [part[1][begin - part[0] : end - part[0]] for begin, end, _ in overlap[self._rank][i]]
        mine = [i for i in lists if owners[i] == self._rank]
        send_sizes = [
            sum(sizes[self._rank][i] for i in lists if owners[i] == owner) for owner in range(self._world_size)
        ]
        receive_sizes = [sum(sizes[rank][i] for i in mine) for rank in range(self._world_size)]
        outbox = torch.cat([part.float() for part in send]) if send else torch.empty(0, dtype=torch.float32)
        meetings = {i: _Meeting([], None) for i in mine}
        for rank, received in enumerate(self._peers.exchange(outbox, send_sizes, receive_sizes)):
            for i, part in zip(mine, received.split([sizes[rank][i] for i in mine]), strict=True):
                meetings[i].add(part, samples[i].numel, overlap[rank][i])
        return meetings

    def _spectra(
        self,
        gradients: Gradients,
        samples: Sequence[Sample],
        owners: Sequence[int],
        meetings: dict[int, _Meeting],
    ) -> dict[int, _Sketched]:
        """Spectrum, C and V of the layers that this rank owns and that are offered some rank."""
        ranks = {i: self._largest_rank(row) for i, row in enumerate(gradients.rows)}
        wanted = [i for i, rank in ranks.items() if rank > 0]
        if not wanted:
            return {}
        matrices, sketches = {}, {}
        for i in wanted:
            row = gradients.rows[i]
            rows, cols = self._offers.layers[row].matrix
            matrices[i] = self._whole(row, gradients.values[i]).view(rows, cols)
            sketches[i] = sketch.omega(rows, cols, ranks[i], self._seed, gradients.step, row)
        y = self._peers.mean([matrices[i] @ sketches[i] for i in wanted])
        u = [sketch.range_of(each) for each in y]
        b = self._peers.mean([matrices[i].T @ each for i, each in zip(wanted, u, strict=True)])
        v = [sketch.range_of(each) for each in b]
        own = [matrices[i] @ each for i, each in zip(wanted, v, strict=True)]
        energies = torch.stack([each.square().sum() for each in own])
        *c, energy = self._peers.mean([*own, energies])
        return {
            i: (
                self._spectrum(gradients.rows[i], c[j], v[j], float(energy[j]), samples[i], meetings[i].mean),
                c[j],
                v[j],
            )
            for j, i in enumerate(wanted)
            if owners[i] == self._rank and bool(torch.isfinite(c[j]).all())
        }

    def _whole(self, row: int, values: torch.Tensor) -> torch.Tensor:
        """The elements of the matrix that would be factored: zeros where they are pruned and it holds them."""
        mask = self._scattering(row)
        if mask is None:
            return values
        whole = torch.zeros(mask.numel, dtype=values.dtype)
        whole[mask.tensor()] = values
        return whole

    def _scattering(self, row: int) -> LayerMask | None:
        """The layer's mask, where what it keeps is no matrix of its own."""
        layer = self._offers.layers[row]
        return self._masks.get(layer.name) if layer.kept_matrix is None else None

    def _spectrum(
        self, row: int, c: torch.Tensor, v: torch.Tensor, own_energy: float, sample: Sample, mean: Array
    ) -> sketch.Spectrum | sketch.MaskedSpectrum:
        mask = self._scattering(row)
        if mask is None:
            return sketch.spectrum_of(c, v, own_energy, sample, mean)
        places = sample.take(mask.tensor().nonzero().reshape(-1)).numpy()
        return sketch.masked_spectrum_of(c, v, own_energy, sample.scale, mean, places)

    def _largest_rank(self, row: int) -> int:
        offered = np.flatnonzero(self._offers.offered[row])
        choices = [self._offers.choices[column] for column in offered]
        return max((choice.rank for choice in choices if isinstance(choice, LowRank)), default=0)

    def _judge(
        self,
        row: int,
        sample: Sample,
        meeting: _Meeting,
        delivered: Array,
        spectrum: _Sketched | None,
        step: int,
    ) -> Array:
        """float64 [C + 2]: a layer's errors, squared norm and realised error."""
        judged = np.full(len(self._offers.choices) + 2, np.nan)
        exact = meeting.mean
        norm = float(np.square(exact).sum()) * sample.scale
        if not np.isfinite(norm):
            return judged
        owed = 0.0 if meeting.owed is None else meeting.owed.double().numpy()
        judged[-2] = norm if spectrum is None else spectrum[0].squared_norm
        judged[-1] = float(np.square(exact + owed - delivered).sum()) * sample.scale
        coding = FactorCoding(spectrum[1], spectrum[2], self._seed) if spectrum is not None else None
        for column in np.flatnonzero(self._offers.offered[row]):
            choice = self._offers.choices[column]
            if self._offers.exact(row, int(column)):
                judged[column] = 0.0
            elif isinstance(choice, LowRank):
                if spectrum is None or coding is None:
                    return np.full_like(judged, np.nan)
                judged[column] = spectrum[0].error(choice.rank, coding.of(choice), self._world_size)
            else:
                native, seed = self._native[column], (self._seed + step) % 2**63
                judged[column] = _C.simulate_choice(native, meeting.ranks, seed, meeting.owed) * sample.scale
        return judged


class _Meeting:
    """Sampled elements of one layer, of all ranks."""

    def __init__(self, ranks: list[torch.Tensor], owed: torch.Tensor | None) -> None:
        self.ranks = ranks
        self.owed = owed
        self._mean: Array | None = None

    def add(self, received: torch.Tensor, numel: int, overlap: Sequence[tuple[int, int, int]]) -> None:
        """Takes the next rank's part: its sample, then what it owes as an owner."""
        self.ranks.append(received[:numel].contiguous())
        if overlap:
            if self.owed is None:
                self.owed = torch.zeros(numel, dtype=torch.float32)
            at = numel
            for begin, end, place in overlap:
                self.owed[place : place + end - begin] = received[at : at + end - begin]
                at += end - begin

    @property
    def mean(self) -> Array:
        """float64, exact."""
        if self._mean is None:
            total = np.zeros(self.ranks[0].numel())
            for rank in self.ranks:
                total += rank.numpy()
            self._mean = total / len(self.ranks)
        return self._mean


def _only(gradients: Gradients, rows: frozenset[int]) -> Gradients:
    """What there is of some of the layers."""
    kept = [i for i, row in enumerate(gradients.rows) if row in rows]
    return Gradients(
        gradients.step,
        [gradients.rows[i] for i in kept],
        [gradients.values[i] for i in kept],
        [gradients.delivered[i] for i in kept],
        [gradients.owed[i] for i in kept],
    )


def _overlap(sample: Sample, offset: int, numel: int) -> list[tuple[int, int, int]]:
    """Where a sample meets the elements [offset, offset + numel): (begin, end, place within the sample)."""
    meets, place = [], 0
    for begin, end in sample.spans:
        low, high = max(begin, offset), min(end, offset + numel)
        if low < high:
            meets.append((low, high, place + low - begin))
        place += end - begin
    return meets


def _length(overlap: Sequence[tuple[int, int, int]]) -> int:
    return sum(end - begin for begin, end, _ in overlap)
