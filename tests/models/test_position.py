import math

import pytest
import torch

from motionmae.models.position import PositionTable, sinusoidal_table


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


def test_fixed_table_is_neither_trained_nor_stored():
    table = PositionTable(5, 4, "sinusoidal")
    assert not list(table.parameters())
    assert not table.state_dict()


def test_learnable_table_is_trained_and_stored_and_starts_near_0_02():
    torch.manual_seed(0)
    table = PositionTable(200, 64, "learnable")
    assert set(table.state_dict()) == {"table"}
    assert table.table.requires_grad
    assert table.table.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("kind", ["sinusoidal", "learnable"])
def test_lookup_takes_the_rows_asked_for(kind: str):
    table = PositionTable(6, 4, kind)
    index = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(table(index), table.table[index])
    assert torch.equal(table(), table.table)
