"""Only tars with unchanged headers are read; anything else is rejected with the name of the member."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bank.tars import Member, TarError, members, pack, walk

FILES = [("000000000007.npy", b"x" * 700), ("000000000007.json", b"{}"), ("a.b-c_d", b"y" * 512)]


def test_tarfile_reads_what_is_written() -> None:
    data, found = pack(FILES)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        entries = tar.getmembers()
        assert [(it.name, tar.extractfile(it).read()) for it in entries] == FILES
    assert found == [Member(it.name, it.offset_data, it.size) for it in entries]
    assert all(
        (it.mtime, it.uid, it.gid, it.mode, it.type) == (0, 0, 0, 0o644, tarfile.REGTYPE) for it in entries
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_is_written_is_walked(count: int, tmp_path: Path) -> None:
    data, found = pack(FILES[:count])
    (tmp_path / "x.tar").write_bytes(data)
    assert walk(tmp_path / "x.tar") == found


def _entry(**fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo("plain")
    for name, value in fields.items():
        setattr(info, name, value)
    return info


HOSTILE = {
    "absolute": (_entry(name="/etc/passwd"), "not plain"),
    "upward": (_entry(name="../up"), "not plain"),
    "dots": (_entry(name=".."), "not plain"),
    "hidden": (_entry(name=".bashrc"), "not plain"),
    "subfolder": (_entry(name="a/b"), "not plain"),
    "link": (_entry(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "hard link": (_entry(type=tarfile.LNKTYPE, linkname="000000000007.npy"), "is a hard link"),
    "character device": (_entry(type=tarfile.CHRTYPE, devmajor=1, devminor=3), "is a device"),
    "block device": (_entry(type=tarfile.BLKTYPE), "is a device"),
    "fifo": (_entry(type=tarfile.FIFOTYPE), "is a fifo"),
    "folder": (_entry(type=tarfile.DIRTYPE), "is a folder"),
    "pax": (_entry(name="é" * 10), "is a pax entry"),
    "long name": (_entry(name="n" * 120), "is a pax entry"),
    "setuid": (_entry(mode=0o4755), "not as it was written"),
    "owner": (_entry(uid=1000), "not as it was written"),
    "time": (_entry(mtime=1), "not as it was written"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_other_members_are_refused(name: str) -> None:
    entry, why = HOSTILE[name]
    good, _ = pack(FILES[:1])
    data = good[:-1024] + entry.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    with pytest.raises(TarError, match=why):
        members(data)


def test_a_gnu_long_name_is_refused() -> None:
    with pytest.raises(TarError, match="GNU extension"):
        members(_entry(name="n" * 120).tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_a_regular_file_of_tarfile_is_accepted_so_that_the_refusals_mean_something() -> None:
    data = _entry().tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    assert members(data) == [Member("plain", 512, 0)]


def _cut(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at]


@pytest.mark.parametrize(
    "change",
    [
        _cut(0),
        _cut(100),
        _cut(512),
        _cut(1000),
        _cut(-1024),
        _cut(-512),
        _cut(-1),
        lambda data: data + bytes(512),
    ],
)
def test_cut_off_and_prolonged_tars_are_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(change(pack(FILES)[0]))
    with pytest.raises(TarError):
        walk(path)


def test_each_byte_of_a_header_counts() -> None:
    data, found = pack(FILES)
    headers = [it.offset - 512 for it in found]
    for at in (place + byte for place in headers for byte in range(512)):
        altered = bytearray(data)
        altered[at] ^= 1
        try:
            assert members(bytes(altered)) != found
        except TarError:
            continue
        raise AssertionError(f"byte {at} was altered unseen")


def test_a_size_beyond_the_file_is_refused() -> None:
    info = _entry(size=1 << 30)
    with pytest.raises(TarError, match="cut off"):
        members(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
