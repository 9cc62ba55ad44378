"""Weights are reckoned again from the basis that they name, and only on one basis."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.basis import Basis, Figure, findings, is_rounded
from fabric.charging.tariffs import Weight
from fabric.config.price_checks import check_file

CONFIGS = Path(__file__).parents[2] / "cluster-configs"


def basis(value, unit="fp16_dense_tflops", h100=None):
    return Basis(
        unit=unit, figure=Figure.NOMINAL, value=value * 10**6, h100=h100 and h100 * 10**6, source="a data sheet"
    )


H100 = Weight(accelerator="H100", ppm=10**6, basis=basis(989))


def found(*weights):
    return [each.holds for each in findings((H100, *weights))]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*tariffs*.yaml")), ids=lambda file: file.name)
def test_every_weight_that_we_ship_names_a_basis_and_is_what_that_makes(file):
    assert [(each.accelerator, each.says) for each in check_file(file) if not each.holds] == []


def test_a_dense_figure_is_never_set_against_a_sparse_one():
    sparse = Weight(accelerator="910B", ppm=259_000, basis=basis(512, unit="fp16_sparse_tflops"))
    assert found(sparse) == [True, False]
    (_, said) = findings((H100, sparse))
    assert "no basis that both have" in said.says


def test_a_weight_that_its_basis_does_not_make_is_told_with_the_one_that_it_makes():
    (_, said) = findings((H100, Weight(accelerator="910B", ppm=259_000, basis=basis(320))))
    assert (said.holds, said.says) == (
        False, "is not 320 / 989 fp16_dense_tflops, nominal (a data sheet), which makes 0.323559",
    )  # fmt: skip


def test_a_weight_without_a_basis_is_accepted_and_named():
    (_, said) = findings((H100, Weight(accelerator="910B", ppm=259_000)))
    assert (said.holds, said.accelerator) == (None, "910B")
    assert "names no basis" in said.says


def test_a_measured_weight_says_the_h100s_figure_itself():
    assert found(Weight(accelerator="A100", ppm=620_000, basis=basis(62, unit="speed", h100=100))) == [True, True]


@given(value=st.integers(1, 10**12), reference=st.integers(1, 10**12), decimals=st.integers(2, 6))
def test_a_weight_holds_where_it_is_its_basis_rounded_to_two_to_six_decimals(value, reference, decimals):
    step = 10 ** (6 - decimals)
    ppm = round(Fraction(value * 10**6, reference * step)) * step
    assert is_rounded(ppm, value=value, reference=reference)


@given(value=st.integers(1, 10**12), reference=st.integers(1, 10**12), off=st.integers(5_001, 10**6), up=st.booleans())
def test_a_weight_that_is_half_a_hundredth_off_its_basis_never_holds(value, reference, off, up):
    exact = value * 10**6 // reference
    assert not is_rounded(exact + off + 1 if up else exact - off, value=value, reference=reference)
