"""Paths in recipes: relative to the working directory or, failing that, to the project."""

from pathlib import Path

from engine.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


def resolve(path: str, field: str) -> Path:
    """Return the absolute path of an existing file or folder.

    A relative path is looked up in the working directory, then in the project root; `~` is the home folder.
    Raises a UserError that names `field` if the path is empty or does not exist.
    """
    if not path:
        raise UserError(f"{field} is empty; give the path of a file or folder")
    given = Path(path).expanduser()
    candidates = [given] if given.is_absolute() else [Path.cwd() / given, PROJECT_ROOT / given]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
        if candidate.exists():
            return candidate.parent.resolve() / candidate.name  # keep a link's own name: hub caches are links
    looked = " and ".join(
        str(parent) for parent in dict.fromkeys(candidate.parent for candidate in candidates)
    )
    raise UserError(
        f"{field}: '{path}' does not exist (looked in {looked}); give the path of an existing file or folder"
    )
