"""bench/gpu.sh with a fake Python: its parts, their limits, the archive and the summary."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench/gpu.sh"
PYTHON = """#!/usr/bin/env bash
while [[ $1 == -p ]]; do shift 2; done
case "$*" in
    *torch.cuda*) exit 1 ;;
    *numpy*) exit 1 ;;
    "-m bench.wheels") echo "no zipp, which diffusers needs"; exit 1 ;;
    "-m bench smoke"*) for i in {1..4000}; do printf 'OK   check-%d: %0300d\\n' $i 0; done ;;
    "-m bench stages"*) sleep "${STAGES_SECONDS:-0}"; echo "| synthesize/step | ${COMMIT} |" ;;
    "-m bench kernels"*) echo "ModuleNotFoundError: No module named 'ftfy'"; exit 1 ;;
    "-m bench production"*) [ -e "$OUT/results.tar.gz" ] && echo "| augment | an archive was there |" ;;
    "-m engine.run"*) mkdir -p "$4" && echo '{}' >"$4/summary.json" ;;
    "-m engine.generate"*) mkdir -p "$4" && echo "${DIFFERENT:+$8}" >"$4/00000.tar" ;;
esac
"""

CLOCK = """
unset SECONDS  # makes it an ordinary variable
SECONDS=0
timeout() { command timeout "$@"; local code=$?; SECONDS=$((SECONDS + 299)); return "$code"; }
"""
"""A clock by which every part takes 299 seconds."""


class Rehearsal:
    """A copy of the script in a separate folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "bench").mkdir()
        (folder / "tests").mkdir()
        shutil.copy(SCRIPT, folder / "bench")
        (folder / "python").write_text(PYTHON)
        (folder / "python").chmod(0o755)

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {
            "OUT": str(self.out),
            "PYTHON": str(self.folder / "python"),
            "ALLOW_CPU": "1",
            "COMMIT": "abc",
        }
        return subprocess.run(
            ["bash", str(self.folder / "bench/gpu.sh")],
            env=os.environ | given | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def parts(self) -> dict[str, str]:
        """Return the result of each part by name."""
        lines = (self.out / "summary.txt").read_text().splitlines()
        table = [line.split(maxsplit=3) for line in lines if line[12:17].strip().isdigit()]
        return {line[0]: line[3] for line in table}


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    return Rehearsal(tmp_path)


def test_all_parts_report_and_the_archive_has_their_results(rehearsal: Rehearsal) -> None:
    done = rehearsal.run()
    assert done.returncode == 1, "kernels failed"
    assert list(rehearsal.parts().items()) == [
        *(
            (name, "passed")
            for name in ("setup", "smoke", "tests", "stages", "run", "generate", "production")
        ),
        ("kernels", "failed (1)"),
        ("interpreted", "skipped: needs numpy < 2.4"),
    ]
    assert sorted(path.name for path in rehearsal.out.iterdir()) == ["results.tar.gz", "summary.txt"]
    with tarfile.open(rehearsal.out / "results.tar.gz") as archive:
        assert {"results/parts.txt", "results/smoke.log", "results/run.json"} < set(archive.getnames())
        log = archive.getmember("results/smoke.log")
        assert log.size == 1_000_000, "only the end of a long log"


def test_parts_that_need_a_gpu_are_skipped_by_name(rehearsal: Rehearsal) -> None:
    assert rehearsal.run(PARTS="compiled frozen").returncode == 0
    assert rehearsal.parts() == {
        "setup": "passed",
        "frozen": "passed",
        "compiled": "skipped: needs a GPU: a CPU compiles for too long",
    }


def test_the_summary_is_bounded_printed_last_and_lists_missing_packages(rehearsal: Rehearsal) -> None:
    done = rehearsal.run(PARTS="kernels smoke stages production")
    summary = (rehearsal.out / "summary.txt").read_text()
    assert done.stdout.endswith(summary)
    assert len(summary.encode()) <= 11_000
    for line in (
        "missing: no zipp, which diffusers needs",
        "ModuleNotFoundError: No module named 'ftfy'; bring its wheel",
        "| synthesize/step | abc |",
        "| augment | an archive was there |",
    ):
        assert f"\n{line}\n" in f"{summary}\n"
    assert "OK   check-" in summary


def test_shards_that_depend_on_overlap_fail(rehearsal: Rehearsal) -> None:
    assert rehearsal.run(PARTS="generate").returncode == 0
    assert rehearsal.run(PARTS="generate", DIFFERENT="1").returncode == 1
    assert "the shards differ with overlap off (<) and on (>)" in (rehearsal.out / "summary.txt").read_text()


def test_a_part_ends_at_the_deadline_and_the_next_does_not_start(rehearsal: Rehearsal) -> None:
    clock = rehearsal.folder / "clock.sh"
    clock.write_text(CLOCK)
    done = rehearsal.run(PARTS="stages run", SECONDS_IN_ALL="300", STAGES_SECONDS="600", BASH_ENV=str(clock))
    assert done.returncode == 1
    found = rehearsal.parts()
    assert found == {"setup": "passed", "stages": "failed (124)", "run": "failed (no time left)"}


def test_without_a_gpu_or_with_an_unknown_part_nothing_runs(rehearsal: Rehearsal) -> None:
    assert rehearsal.run(ALLOW_CPU="").returncode == 1
    assert rehearsal.parts() == {"setup": "failed (1)"}
    assert "torch sees no GPU here" in (rehearsal.out / "summary.txt").read_text()
    unknown = rehearsal.run(PARTS="magic")
    assert unknown.returncode == 2
    assert "PARTS has 'magic'" in unknown.stderr
