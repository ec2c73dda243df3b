"""BatchNorm and distillation in two processes against one process with the whole batch, in float64."""

from typing import Any

import pytest
import torch

from tests.commands import CommandServer
from tests.engine.stages.over_ranks import BATCH, LAYERS, STEPS, distilled, normalized

WHOLE = slice(0, BATCH)


@pytest.fixture(scope="module")
def ranks(commands: CommandServer, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    for rank in commands.ranks("tests.engine.stages.over_ranks", [str(folder)], processes=2):
        assert rank.returncode == 0, rank.communicate()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_batch_norm_over_ranks_equals_the_whole_batch(layer: str, ranks: list[dict[str, Any]]) -> None:
    whole, parts = normalized(layer, WHOLE), [rank["layers"][layer] for rank in ranks]
    assert all(list(part) == list(whole) for part in parts)
    for name, expected in whole.items():
        both = [part[name] for part in parts]
        if name.startswith("grad of"):
            found = both[0] + both[1]
        elif name.startswith(("y ", "grad ")):
            found = torch.cat(both)
        else:
            assert torch.equal(both[0], both[1]), name
            found = both[0]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one_process(ranks: list[dict[str, Any]]) -> None:
    whole, parts = distilled(WHOLE), [rank["distilled"] for rank in ranks]
    for part in parts:
        assert part["logs"] == parts[0]["logs"]
        assert len(part["logs"]) == len(whole["logs"]) == STEPS
        for ours, theirs in zip(part["logs"], whole["logs"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(part["state"], whole["state"], rtol=1e-8, atol=1e-10)
        assert torch.equal(part["state"]["student"]["network.unused"], torch.ones(2).double())


@pytest.mark.slow
def test_a_nan_loss_on_one_rank_stops_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "NaN or Inf in the loss by step 31" in rank["distilled"]["error"]
