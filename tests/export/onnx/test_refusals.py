"""Networks that cannot be exported: one line that names the reason."""

from pathlib import Path

import onnx
import onnx_ir
import pytest
import torch
from torch import Tensor

from export.errors import ExportError
from export.onnx import graph, write_onnx
from tests.export.onnx.graphs import Plain, by_value, spec


def by_row(x: Tensor) -> Tensor:
    return torch.stack([x[row] * 2 for row in range(x.shape[0])])


def fixed_rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1).unflatten(0, (2, 3))


def added_position(x: Tensor) -> Tensor:
    return x + torch.ones(4, 4)


def for_squares(x: Tensor) -> Tensor:
    return x * 2 if x.shape[2] == x.shape[3] else x


def failing(_: Tensor) -> Tensor:
    raise NotImplementedError("no forward here\n\nand a second paragraph")


REFUSED = {
    "loop over the batch": (by_row, "static shape of 2 for dimension inputs[0].shape[0]"),
    "number of rows in the code": (fixed_rows, "static shape of 2 for dimension inputs[0].shape[0]"),
    "constant of one size": (added_position, "4"),
    "comparison of sizes": (
        for_squares,
        "only runs with width equal to height, because its code compares",
    ),
    "branch on a value": (by_value, "Could not guard on data-dependent expression"),
    "error": (failing, "net cannot be exported (NotImplementedError: no forward here)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_failed_export_is_one_line(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(ExportError) as refused:
        write_onnx(spec(Plain(function)), "fp32", tmp_path)
    line = str(refused.value)
    assert line.startswith("net ")
    assert reason in line
    assert line.endswith("; use --runtime torch")
    assert "\n" not in line
    assert "\x1b" not in line
    assert capfd.readouterr() == ("", ""), "what the exporter prints"
    assert list(tmp_path.iterdir()) == []


def test_an_axis_that_the_exporter_silently_fixes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    program = graph._program(spec(Plain(torch.relu)), Plain(torch.relu), 20)
    x = program.model.graph.inputs[0]
    x.shape = onnx_ir.Shape([2, *list(x.shape or ())[1:]])
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    with pytest.raises(ExportError, match=r"^net only runs with a single batch \(2\), because its code"):
        graph._program(spec(Plain(torch.relu)), Plain(torch.relu), 20)


def test_an_invalid_graph_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise onnx.checker.ValidationError("bad node\n\n==> Context: everything")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(
        ExportError, match=r"^net: the exported graph is invalid: bad node; use --runtime torch$"
    ):
        write_onnx(spec(Plain(torch.relu)), "fp32", tmp_path)
