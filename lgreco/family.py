"""Families: choices of one codec, ordered by the parameter that says how much of the gradient they send."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from lgreco.choice import CODECS, Choice

_STRENGTH = {"quantize": "bits", "topk": "density", "randomk": "density", "lowrank": "rank"}


def family(choice: Choice) -> str:
    """The codec's name: what a plan is summed up by, and the hue of a picture."""
    return choice.codec


def strength(choice: Choice) -> float:
    """The number that grows with what is sent: bits, density or rank; 0 for dense, which has none."""
    name = _STRENGTH.get(choice.codec)
    return float(getattr(choice, name)) if name else 0.0


def scale_of(choice: Choice) -> Choice:
    """The same choice with its codec's default strength: equal for choices that differ in strength alone.

    Of these alone is it known beforehand that more bytes leave less error. Between scales it is not so:
    `topk(density=0.012, values=int8)` can cost less than `topk(density=0.01, values=fp32)` and leave less.
    """
    name = _STRENGTH.get(choice.codec)
    if name is None:
        return choice
    default = next(field.default for field in dataclasses.fields(choice) if field.name == name)
    return dataclasses.replace(choice, **{name: default})


def in_order(choices: Iterable[Choice]) -> list[Choice]:
    """Each choice once, families in the order of CODECS, within one by strength, least sent first."""
    codecs = list(CODECS)
    return sorted(set(choices), key=lambda choice: (codecs.index(choice.codec), strength(choice), str(choice)))
