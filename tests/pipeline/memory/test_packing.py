"""Slots in fewer bytes: what is off, and by how much at most."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.memory.packing import LARGEST, joined, measuring, pack, unpack, vectors
from schemas.memory import Precision


def common(size: int = 192) -> torch.Tensor:
    """A tag, and slots of which nothing is typical."""
    return torch.stack([torch.linspace(-1, 1, size), torch.zeros(size), torch.ones(size)])


def slots(rows: int = 7, size: int = 192, seed: int = 0, spread: float = 0.1) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("group", [32, 64])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 200), exponent=st.integers(-3, 3))
def test_nothing_is_off_by_more_than_half_a_scale(
    precision: Precision, group: int, seed: int, size: int, exponent: int
) -> None:
    given_ = slots(3, size, seed, 10.0**exponent)
    packed = pack(given_, common(size), precision, group)
    assert packed.scales.shape == (3, -(-size // group)) and packed.size == size
    scales = torch.from_numpy(packed.scales).float().repeat_interleave(group, 1)[:, :size]
    assert ((unpack(packed) - given_).abs() <= scales * 0.501 + 1e-9).all()
    # ... and a scale is no larger than it must be.
    most = torch.nn.functional.pad(given_.abs(), (0, -size % group)).view(3, -1, group).amax(2)
    torch.testing.assert_close(torch.from_numpy(packed.scales).float() * LARGEST[precision], most, rtol=1e-3, atol=1e-5)


def test_what_is_lost_and_what_it_takes() -> None:
    found = {}
    for precision in ("float16", "int8", "int4"):
        packed, sums = measuring(slots(), common(), precision, 64)()
        off = (unpack(packed) - slots()).square().sum(1), slots().square().sum(1)
        torch.testing.assert_close(torch.from_numpy(sums).float(), torch.stack(off, 1))
        lost, whole = sums.sum(0)
        found[precision] = (packed.bytes, float(lost / whole) ** 0.5)
    assert [size for size, _ in found.values()] == [7 * 192 * 2, 7 * (192 + 6), 7 * (96 + 6)]
    assert found["float16"][1] < 3e-4 < found["int8"][1] < 0.01 < found["int4"][1] < 0.15


def test_smaller_groups_lose_less() -> None:
    wide, narrow = (measuring(slots(), common(), "int4", group)()[1][:, 0].sum() for group in (64, 32))
    assert narrow < wide


def test_two_numbers_lie_in_a_byte_the_first_in_its_lower_half() -> None:
    packed = pack(torch.tensor([[7.0, -7.0, 1.0]]), common(3), "int4", 32)
    assert packed.values.tolist() == [[15 | 1 << 4, 9]] and packed.scales.tolist() == [[1.0]]
    assert unpack(packed).tolist() == [[7.0, -7.0, 1.0]]


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_zeros_stay_zeros_and_what_is_too_large_is_cut_off(precision: Precision) -> None:
    found = unpack(pack(torch.zeros(2, 64), common(64), precision, 32))
    assert not found.any()
    most = unpack(pack(torch.full((1, 32), 1e9), common(32), precision, 32))
    assert most.isfinite().all() and float(most.min()) >= 65504


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_parts_and_the_whole_are_one(precision: Precision) -> None:
    whole = pack(slots(), common(), precision, 64)
    again = joined([whole.part(0, 2), whole.part(2, 3), whole.part(3, 7)])
    assert torch.equal(unpack(whole), unpack(again)) and whole.sha256("r") == again.sha256("r")
    other = pack(slots(), -common(), precision, 64)
    assert len({whole.sha256("r"), whole.sha256("s"), whole.part(0, 6).sha256("r"), other.sha256("r")}) == 4
    torch.testing.assert_close(again.told(), common()[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_half_precision_and_other_devices_dtypes_pack_as_float32_does(precision: Precision) -> None:
    half = slots().bfloat16()
    assert torch.equal(unpack(pack(half, common(), precision, 64)), unpack(pack(half.float(), common(), precision, 64)))


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_a_model_is_given_slots_and_tag_as_they_lie(precision: Precision) -> None:
    packed = pack(slots(), common(), precision, 64)
    given_, half = vectors(packed), precision == "float16"
    assert given_.dtype == (torch.float16 if half else torch.float32)
    assert torch.equal(given_.float(), torch.cat([unpack(packed), packed.told()]))


def test_bits_are_for_what_is_not_typical() -> None:
    """Numbers that are large in every slot, or differ more than others, take no bits from their neighbours."""
    typical = torch.stack([torch.linspace(-1, 1, 192), torch.zeros(192), torch.ones(192)])
    typical[1, 5], typical[2, 5], typical[2, 70] = 300.0, 20.0, 0.01
    wide = slots(64, spread=1.0) * typical[2] + typical[1]
    plain, known = (unpack(pack(wide, one, "int4", 64)) for one in (common(), typical))
    off = [((one - wide) / typical[2]).square().mean(0).sqrt() for one in (plain, known)]
    assert off[0][:64].median() > 0.9 and off[1].max() < 0.15
