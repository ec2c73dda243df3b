"""The index by which DALI's webdataset reader finds samples without reading the tar."""

from collections.abc import Sequence

from engine.bank.tars import Member

VERSION = "v1.2"


def dali_index(members: Sequence[Member]) -> bytes:
    """One line a sample: extension, offset, size and name of the image, then those of its json."""
    lines = [f"{VERSION} {len(members) // 2}"]
    for image, description in zip(members[::2], members[1::2], strict=True):
        lines.append(f"{_entry(image)} {_entry(description)}")
    return ("\n".join(lines) + "\n").encode()


def _entry(member: Member) -> str:
    return f"{member.name.partition('.')[2]} {member.offset} {member.size} {member.name}"
