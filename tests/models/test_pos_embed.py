import math

import pytest
import torch

from motionmae.models.vit import PositionTable, separate_table, sinusoidal_table


def test_table_follows_the_formula_of_attention_is_all_you_need():
    table = sinusoidal_table(7, 6)
    for number in range(7):
        for channel in range(6):
            angle = number / 10000 ** (2 * (channel // 2) / 6)
            expected = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
            assert table[number, channel].item() == pytest.approx(expected, abs=1e-7)


def test_table_equals_hugging_face_videomae_at_full_size():
    videomae = pytest.importorskip("transformers.models.videomae.modeling_videomae")
    assert torch.equal(sinusoidal_table(1568, 768), videomae.get_sinusoid_encoding_table(1568, 768)[0])


@pytest.mark.parametrize("width", [12, 16, 128])
def test_separate_table_gives_time_row_and_column_separate_channels(width: int):
    table, third = separate_table(4, 3, width), 2 * math.ceil(width / 6)
    for cube, coordinates in enumerate(
        (time, row, column) for time in range(4) for row in range(3) for column in range(3)
    ):
        for channel in range(width):
            coordinate, number = coordinates[channel // third], channel % third
            angle = coordinate / 10000 ** (number % (third // 2) / (third // 2))
            expected = math.sin(angle) if number < third // 2 else math.cos(angle)
            assert table[cube, channel].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["sinusoidal", "separate"])
def test_fixed_table_is_neither_trained_nor_stored(kind: str):
    table = PositionTable(5, 1, 4, kind)
    assert not list(table.parameters())
    assert not table.state_dict()


def test_learnable_table_is_trained_and_stored_and_starts_near_0_02():
    torch.manual_seed(0)
    table = PositionTable(2, 10, 64, "learnable")
    assert set(table.state_dict()) == {"table"}
    assert table.table.requires_grad
    assert table.table.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("kind", ["sinusoidal", "separate", "learnable"])
def test_lookup_takes_the_rows_asked_for(kind: str):
    table = PositionTable(6, 1, 4, kind)
    index = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(table(index), table.table[index])
    assert torch.equal(table(), table.table)
