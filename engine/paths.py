"""Paths of recipes: relative to where the user stands, else to the project."""

from pathlib import Path

from engine.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


def resolve(path: str, field: str) -> Path:
    """The absolute path of an existing file or folder.

    A relative path is looked for in the working directory, then in the project root; `~` is the home folder.
    Raises UserError that names `field` when it is in neither.
    """
    if not path:
        raise UserError(f"{field} is empty; give the path of a file or folder")
    given = Path(path).expanduser()
    places = [given] if given.is_absolute() else [Path.cwd() / given, PROJECT_ROOT / given]
    for place in places:
        if place.is_dir():
            return place.resolve()
        if place.exists():
            return place.parent.resolve() / place.name  # a link keeps its name, as in a hub's cache
    looked = " and ".join(str(parent) for parent in dict.fromkeys(place.parent for place in places))
    raise UserError(
        f"{field}: '{path}' does not exist (looked in {looked}); give the path of an existing one"
    )
