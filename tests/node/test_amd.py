"""AMD's counters as the driver shows them. The tree is one that a test lays out: no machine here has such a device."""

import pytest

from fabric.node.meters import GaugeMeter
from fabric.node.meters.amd import AmdGauge

UNIQUE = 0x8F0FBD8C0A3E1C2B


@pytest.fixture
def tree(tmp_path):
    """A processor, and two devices whose nodes are numbered past nine."""
    for number, of in {
        0: "cpu_cores_count 64\nsimd_count 0\n",
        2: f"simd_count 1216\nunique_id {UNIQUE}\ndrm_render_minor 128\n",
        10: "simd_count 1216\nunique_id 0\ndrm_render_minor 136\n",
    }.items():
        node = tmp_path / f"kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(of)
    for minor, percent in {128: 40, 136: 100}.items():
        device = tmp_path / f"drm/renderD{minor}/device"
        device.mkdir(parents=True)
        (device / "gpu_busy_percent").write_text(f"{percent}\n")
    return tmp_path


def test_devices_are_numbered_as_the_driver_lists_them_and_the_processor_is_none(tree):
    gauge = AmdGauge(tree)
    assert gauge() == {"0": 40, "1": 100}
    assert gauge.names == ("0", "1")


@pytest.mark.parametrize(
    ("said", "name"),
    [("0", "0"), (" 1 ", "1"), ("2", None), (f"GPU-{UNIQUE:x}", "0"), ("GPU-", None), ("GPU-0000000000000000", None),
     ("", None), ("-1", None)],
)  # fmt: skip
def test_a_device_is_known_by_its_index_and_by_its_unique_id(tree, said, name):
    gauge = AmdGauge(tree)
    gauge()
    assert gauge.name_of(said) == name


@pytest.mark.parametrize("said", ["", "busy", "101", "-1", None])
def test_a_device_whose_figure_is_none_is_missing_and_counts_as_in_use(tree, said):
    clock = iter(range(0, 10_000_000, 1_000_000))
    file = tree / "drm/renderD136/device/gpu_busy_percent"
    if said is None:
        file.unlink()
    else:
        file.write_text(said)
    meter = GaugeMeter(AmdGauge(tree), period_s=0, clock_us=lambda: next(clock))
    meter.attach("lease", devices=("0", "1"), roots=())
    assert meter.read("lease") == 1_000_000 * 140 // 100
    assert meter.is_estimated("lease")
    assert meter.readable() == (("0",), ("1",))


def test_where_there_is_no_such_driver_there_are_no_devices(tmp_path):
    gauge = AmdGauge(tmp_path)
    assert gauge() == {}
    assert gauge.names == ()
