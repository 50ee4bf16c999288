import torch

from motionmae.training.state import seed_step


def test_random_numbers_are_a_function_of_seed_step_and_rank():
    draws = {}
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]:
        seed_step(*key)
        draw = torch.rand(4).tolist()
        assert draws.setdefault(key, draw) == draw
    assert len({tuple(draw) for draw in draws.values()}) == 4
