"""Files are UTF-8 in every locale: each call that reads or writes text names the encoding."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = {"read_text", "write_text"}
OPENING = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile"}
PROCESSES = {"run", "Popen", "check_output"}


@pytest.mark.parametrize("floor", ["kernels", "export", "engine", "bench"])
def test_text_files_have_an_encoding(floor: str) -> None:
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    assert [place for path in files for place in _without_encoding(path)] == []


def _without_encoding(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {word.arg: word.value for word in node.keywords}
        text = name in PROCESSES and ("text" in given or "universal_newlines" in given)
        if (name in TEXT or text or _opens_text(node, name, given)) and "encoding" not in given:
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def _opens_text(node: ast.Call, name: str, given: dict[str | None, ast.expr]) -> bool:
    """Return whether a call opens text. os.open and similar calls have a number as the mode."""
    owner = getattr(getattr(node.func, "value", None), "id", "")
    if name not in OPENING or owner in ("tarfile", "Image"):
        return False
    constants = [arg.value for arg in [*node.args, given.get("mode")] if isinstance(arg, ast.Constant)]
    modes = [it for it in constants if isinstance(it, str) and it and set(it) <= set("rwaxbt+U")]
    return any("b" not in mode for mode in modes)


def test_a_call_without_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "path.read_text()",
        "path.write_text(text)",
        "open(name, 'w')",
        "path.open('r')",
        "subprocess.run(command, text=True)",
        "path.open('rb')",
        "path.read_text(encoding='utf-8')",
        "os.open(path, os.O_RDONLY)",
    )
    (tmp_path / "module.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert [place.partition(":")[2] for place in _without_encoding(tmp_path / "module.py")] == list("12345")


def test_a_recipe_is_utf_8_and_what_is_not_is_refused(tmp_path: Path) -> None:
    from engine import recipes
    from engine.errors import UserError

    file = tmp_path / "own.yaml"
    file.write_bytes("class_names: [b\u00e4r]".encode())
    assert recipes.read(str(file))["class_names"] == ["b\u00e4r"]
    file.write_bytes("class_names: [b\u00e4r]".encode("latin-1"))
    with pytest.raises(UserError, match=rf"{file} is not UTF-8 text: .*save it as UTF-8"):
        recipes.read(str(file))
