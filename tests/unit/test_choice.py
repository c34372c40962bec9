"""Choices: text <-> dataclass, and what the parser refuses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgreco.choice import CODECS, Choice, Dense, FloatRange, IntRange, OneOf, Quantize, parameter, parse


@dataclass(frozen=True)
class Sketch(Choice):
    """A codec that lgreco does not have, with every kind of parameter a later one needs."""

    codec: ClassVar[str] = "sketch"
    density: float = parameter(0.01, FloatRange(0, 1), always_printed=True)
    rank: int = parameter(8, IntRange(1, 64), always_printed=True)
    factors: str = parameter("fp32", OneOf(("fp32", "int8")))


def values_of(domain: object) -> st.SearchStrategy[Any]:
    match domain:
        case IntRange(low, high, multiple):
            return st.sampled_from(range(low, high + 1, multiple))
        case FloatRange(above, high, least):
            return st.floats(max(above, least), high, exclude_min=least <= above)
        case OneOf(names):
            return st.sampled_from(names)
    raise AssertionError(domain)


def choices_of(kind: type[Choice]) -> st.SearchStrategy[Choice]:
    fields = dataclasses.fields(kind)
    return st.builds(kind, **{field.name: values_of(field.metadata["domain"]) for field in fields})


@given(st.one_of(*map(choices_of, CODECS.values())))
def test_text_of_every_choice_reads_back_as_that_choice(choice: Choice) -> None:
    assert parse(str(choice)) == choice
    assert str(parse(str(choice))) == str(choice)


@given(choices_of(Sketch))
def test_a_new_codec_needs_one_dataclass_and_its_name_in_the_registry(choice: Choice) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CODECS, "sketch", Sketch)
        assert parse(str(choice)) == choice
        assert parse(f"sketch(density={choice.to_native()['density']})").codec == "sketch"


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("quantize", "quantize(bits=4, block=512)"),
        ("quantize()", "quantize(bits=4, block=512)"),
        (" quantize( block=64,bits=2 ) ", "quantize(bits=2, block=64)"),
        ("quantize(rounding=nearest, scales='bf16')", "quantize(bits=4, block=512, scales=bf16)"),
        (
            "quantize(scales=bf16, rounding=stochastic, grid=symmetric)",
            "quantize(bits=4, block=512, grid=symmetric, rounding=stochastic, scales=bf16)",
        ),
        ("topk(values=int8)", "topk(density=0.01)"),
        ("randomk(density=1e-4, values=bf16, block=64)", "randomk(density=0.0001, block=64, values=bf16)"),
        ("dense", "dense(dtype=fp32)"),
        ('dense(dtype="bf16")', "dense(dtype=bf16)"),
    ],
)
def test_canonical_text(written: str, canonical: str) -> None:
    assert str(parse(written)) == canonical


def test_native_form_holds_the_defaults_too() -> None:
    assert parse("quantize(bits=3)").to_native() == {
        "codec": "quantize",
        "bits": 3,
        "block": 512,
        "grid": "minmax",
        "rounding": "nearest",
        "scales": "fp32",
    }
    assert Dense("fp16").to_native() == {"codec": "dense", "dtype": "fp16"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantize(bits=0)", r'^choice "quantize\(bits=0\)": bits must be 1\.\.8, got 0$'),
        ("quantize(bits=9)", r"bits must be 1\.\.8, got 9$"),
        ("quantize(bits=-4)", r"bits must be 1\.\.8, got -4$"),
        ("quantize(bits=4.0)", r"bits must be 1\.\.8, got 4\.0$"),
        ("quantize(bits=True)", r"bits must be 1\.\.8, got True$"),
        ("quantize(bits=None)", r"bits must be 1\.\.8, got None$"),
        ("quantize(bits='4')", r"bits must be 1\.\.8, got '4'$"),
        ("quantize(block=31)", r"block must be a multiple of 32, 32\.\.4096, got 31$"),
        ("quantize(block=100)", r"block must be a multiple of 32, 32\.\.4096, got 100$"),
        ("quantize(block=8192)", r"block must be a multiple of 32, 32\.\.4096, got 8192$"),
        (
            "quantize(grid=minmaxx)",
            r'grid must be minmax or symmetric or clipped, got minmaxx; did you mean "minmax"\?$',
        ),
        ("quantize(rounding=up)", r"rounding must be nearest or stochastic, got up$"),
        ("quantize(scales=fp16)", r"scales must be fp32 or bf16, got fp16"),
        ("dense(dtype=int8)", r"dtype must be fp32 or bf16 or fp16, got int8$"),
        ("dense(dtype=32)", r'dtype must be fp32 or bf16 or fp16, got 32; did you mean "fp32"\?$'),
        ("quantise(bits=4)", r'unknown codec \'quantise\', known are dense, quantize, .*; did you mean "quantize"\?$'),
        ("quantize(bit=4)", r"quantize has no parameter 'bit', it has bits, block, .*; did you mean \"bits\"\?$"),
        ("topk(density=0.6)", r"density must be from 0\.0001 and at most 0\.5, got 0\.6$"),
        ("topk(density=0.00009)", r"density must be from 0\.0001 and at most 0\.5, got 9e-05$"),
        ("randomk(block=65568)", r"block must be a multiple of 32, 32\.\.65536, got 65568$"),
        ("randomk(values=int9)", r"values must be fp32 or bf16 or int2 .* or int8, got int9"),
        ("dense(bits=4)", r"dense has no parameter 'bits', it has dtype$"),
        ("quantize(bits=4, bits=4)", r"bits is given twice$"),
        ("quantize(4)", r"parameters are given by name; expected codec\(key=value, \.\.\.\)"),
        ("quantize(**{'bits': 4})", r"expected codec\(key=value"),
        ("quantize(bits=4", r"expected codec\(key=value"),
        ("quantize(bits=4) + dense", r"expected codec\(key=value"),
        ("4", r"expected codec\(key=value"),
        ("", r"expected codec\(key=value"),
        ("(" * 5000, r"expected codec\(key=value"),
        ("codecs.quantize(bits=4)", r"expected codec\(key=value"),
        ("quantize(bits=open('x'))", r"bits must be a number or a name, got open\('x'\)$"),
        ("quantize(bits=[1])", r"bits must be 1\.\.8, got \[1\]$"),
    ],
)
def test_bad_text_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_with_value_error(text: str) -> None:
    try:
        choice = parse(text)
    except ValueError as error:
        assert text in str(error)
    else:
        assert parse(str(choice)) == choice


@pytest.mark.parametrize("value", [None, 4, {"codec": "dense"}])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r'a choice is text such as "quantize\(bits=4, block=512\)", got '):
        parse(value)


def test_constructors_check_as_the_parser_does() -> None:
    with pytest.raises(ValueError, match=r"^bits must be 1\.\.8, got 9$"):
        Quantize(bits=9)
    with pytest.raises(ValueError, match=r"^density must be above 0 and at most 1, got nan$"):
        Sketch(density=float("nan"))
    with pytest.raises(ValueError, match=r"^density must be above 0 and at most 1, got 0$"):
        Sketch(density=0)


def test_whole_numbers_pass_for_fractions_and_equal_choices_hash_equal() -> None:
    assert Sketch(density=1) == Sketch(density=1.0)
    assert str(Sketch(density=1)) == "sketch(density=1.0, rank=8)"
    assert len({Quantize(), Quantize(bits=4), parse("quantize")}) == 1


def test_choices_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Quantize().bits = 2  # type: ignore[misc]
