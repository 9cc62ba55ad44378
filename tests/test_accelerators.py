"""Kinds of accelerators: one entry each, and all that is known of one follows from it."""

import pytest

from fabric.accelerators import DEVICE_RESOURCES, KINDS, REFERENCE_SPEEDS, canonical_accelerator, resource_of, vendor_of


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_all_that_is_known_of_a_kind_follows_from_its_entry(kind):
    assert canonical_accelerator(kind.name) == kind.name
    assert canonical_accelerator(f"{kind.vendor} {kind.name.lower()}") == kind.name
    assert vendor_of(kind.name) == kind.vendor
    assert resource_of(kind.name) == kind.resource in DEVICE_RESOURCES
    assert REFERENCE_SPEEDS[kind.name] == kind.speed > 0


def test_of_an_unknown_kind_nothing_is_known_but_its_name():
    assert (vendor_of("B200"), resource_of("B200"), "B200" in REFERENCE_SPEEDS) == ("B200", "GPU", False)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("H100", "H100"),
        ("h100", "H100"),
        (" NVIDIA H100 80GB HBM3", "H100"),
        ("nvidia-h100", "H100"),
        ("H100 NVL", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("A100-40G", "A100"),
        ("Tesla A100", "A100"),
        ("910B", "910B"),
        ("910b3", "910B"),
        ("Ascend910B", "910B"),
        ("Ascend910B4", "910B"),
        ("ascend-910b", "910B"),
        ("Huawei Ascend 910B2", "910B"),
        ("NPU", "910B"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("MI300X", "MI300X"),
        ("AMD-Instinct-MI300X-OAM", "MI300X"),
        ("AMD Instinct MI300X", "MI300X"),
        ("MI300A", "MI300A"),
        ("H1000", "H1000"),
        ("H200", "H200"),
        ("NVIDIA RTX A1000", "NVIDIA RTX A1000"),
        ("Ascend 910C", "Ascend 910C"),
        ("Ascend910A", "Ascend910A"),
        (" B200 ", "B200"),
        ("", ""),
        ("NVIDIA", "NVIDIA"),
    ],
)
def test_a_type_has_one_name_whatever_it_is_called(name, canonical):
    assert canonical_accelerator(name) == canonical
    assert canonical_accelerator(canonical) == canonical
