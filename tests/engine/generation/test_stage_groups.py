"""Groups of stages, and their threads and streams."""

import threading
from pathlib import Path

import pytest
import torch

from engine.generation.overlap import own_stream, single_group, stage_groups, thread_counts, torch_threads
from engine.generation.stages import STAGES
from engine.recipes.load import load_recipe
from tests.tiny_recipe import write_recipe

TASKS = Path("/proc/self/task")


def groups_of(folder: Path, **settings: object) -> list[tuple[tuple[str, ...], int]]:
    compute = {f"compute.{name}": value for name, value in settings.items()}
    found = stage_groups(load_recipe(str(write_recipe(folder)), compute))
    return [(tuple(stage.name for stage in group.stages), group.threads) for group in found]


@pytest.mark.parametrize(
    ("threads", "expected"),
    [
        (2, [(("synthesize",), 1), (("augment", "filter"), 1)]),
        (3, [(("synthesize",), 1), (("augment",), 1), (("filter",), 1)]),
        (4, [(("synthesize",), 1), (("augment",), 2), (("filter",), 1)]),
        (9, [(("synthesize",), 4), (("augment",), 4), (("filter",), 1)]),
    ],
)
def test_on_a_cpu_the_groups_share_the_threads(threads: int, expected: object, tmp_path: Path) -> None:
    found = groups_of(tmp_path, overlap=True, threads=threads)
    assert found == expected
    assert sum(share for _, share in found) == threads


def test_on_a_gpu_each_stage_is_a_group(tmp_path: Path) -> None:
    found = groups_of(tmp_path, overlap=True, threads=2, device="cuda")
    assert found == [((stage.name,), 2) for stage in STAGES]


def test_without_overlap_there_is_one_group(tmp_path: Path) -> None:
    assert groups_of(tmp_path, overlap=False, threads=8) == [(tuple(stage.name for stage in STAGES), 8)]


def test_without_variations_there_is_nothing_to_overlap(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, augment={"method": "none", "class_condition": "none", "guidance_scale": 1})
    recipe = load_recipe(str(path), {"compute.overlap": True, "compute.threads": 8})
    assert stage_groups(recipe) == single_group(recipe.compute)
    assert thread_counts(stage_groups(recipe))["filter"] == 8


def busy_threads(count: int) -> int:
    """Return the number of OS threads that a matrix product on `count` threads adds."""
    before = set(TASKS.iterdir())
    with torch_threads(count):
        torch.randn(400, 400) @ torch.randn(400, 400)
    return len(set(TASKS.iterdir()) - before)  # threads of earlier tests may still be ending


def test_threads_are_counted_for_the_calling_thread_alone() -> None:
    """Two threads set different counts and keep their own; the caller keeps 2."""
    torch.set_num_threads(2)
    have_set = threading.Barrier(2)
    seen: dict[int, tuple[int, int]] = {}

    def compute(count: int) -> None:
        with torch_threads(count):
            have_set.wait(20)
            torch.randn(300, 300) @ torch.randn(300, 300)
            seen[count] = count, torch.get_num_threads()

    threads = [threading.Thread(target=compute, args=(count,)) for count in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {1: (1, 1), 3: (3, 3)}
    assert torch.get_num_threads() == 2


def test_a_thread_of_one_starts_no_others() -> None:
    added = {}
    for count in (1, 3):
        thread = threading.Thread(target=lambda count=count: added.update({count: busy_threads(count)}))
        thread.start()
        thread.join()
    assert added == {1: 0, 3: 2}


def test_a_cpu_has_no_streams() -> None:
    with own_stream(torch.device("cpu")):
        assert torch.ones(1).item() == 1


@pytest.mark.gpu
def test_on_a_gpu_a_thread_has_its_own_stream() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.current_stream()
    with own_stream(device):
        stream = torch.cuda.current_stream()
        assert stream != before
        total = torch.ones(1 << 20, device=device).sum()
    assert stream.query()
    assert torch.cuda.current_stream() == before
    assert total.item() == 1 << 20
