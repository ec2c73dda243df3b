"""The dataset card, README.md: what a bank contains, what made it and how to open it with other tools."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine.bank.codecs import EXTENSIONS, THREADS
from engine.bank.manifest import Header, Manifest
from engine.bank.stats import EDGES, Stats
from engine.bank.storage import Storage
from engine.progress import counted

BAR = 40
"""Length of the longest bar of a histogram, in characters."""
EARLIER_HEADINGS = (b"\n## Made with\n", b"\n## Similarity to the source image\n")
"""Headings that cards had before their texts were rewritten."""


def render_card(manifest: Manifest, stats: Stats) -> bytes:
    """Return the card of a bank. It depends on the manifest and the stats alone."""
    header = manifest.header
    coverage = stats.coverage(header.wanted_classes)
    sections = [
        _front_matter(header, stats.images),
        _summary(manifest, stats),
        "## Source models\nThe images were made with these models, whose licences apply to them.\n\n"
        + "\n".join(_bullets(header.facts)),
        _counts(stats),
        f"## Kept images per class\n{coverage[0].upper()}{coverage[1:]}.\n\n"
        + _fenced(histogram(header.class_names, stats.kept_by_class.tolist())),
        "## CLIP similarity\n"
        "Similarity by `filter.criterion`, number of variations and number of kept variations.\n\n"
        + _fenced(_similarity(stats)),
        _usage(header),
        f"## Recipe\nThe settings that made the bank:\n\n```json\n{json.dumps(header.recipe, indent=2)}\n```",
    ]
    return ("\n\n".join(sections) + "\n").encode()


def _front_matter(header: Header, images: int) -> str:
    import yaml

    matter = {
        "license": "other",
        "pretty_name": "Synthetic images for distillation",
        "tags": ["synthetic", "webdataset", "knowledge-distillation"],
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(images)],
        "configs": [
            {"config_name": "images", "data_files": [{"split": "train", "path": "*.tar"}], "default": True}
        ],
        "dataset_info": [{"config_name": "images", "features": _features(header)}],
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---"


def _features(header: Header) -> list[dict[str, Any]]:
    """Return the features of a sample, as Hugging Face datasets describes them."""
    image: dict[str, Any] = {"dtype": "image"}
    if header.codec == "raw":
        image = {"dtype": {"array3_d": {"dtype": "uint8", "shape": [*header.image_size, header.channels]}}}
    kinds = {
        "key": "int64",
        "label": "int64",
        "class_name": "string",
        "parent": "int64",
        "seed": "int64",
        "similarity": "float32",
        "teacher_top1": "int64",
        "confidence": "float32",
    }
    return [
        {"name": EXTENSIONS[header.codec], **image},
        {"name": "json", "struct": [{"name": name, "dtype": kind} for name, kind in kinds.items()]},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def _size_category(images: int) -> str:
    bounds = {
        1_000: "n<1K",
        10_000: "1K<n<10K",
        100_000: "10K<n<100K",
        1_000_000: "100K<n<1M",
        10_000_000: "1M<n<10M",
    }
    return next((name for bound, name in bounds.items() if images < bound), "n>10M")


def _summary(manifest: Manifest, stats: Stats) -> str:
    height, width = manifest.header.image_size
    colours = "grey" if manifest.header.channels == 1 else "RGB"
    return (
        "# Synthetic images for distillation\n"
        "All images are synthetic. They were made by inverting a trained classifier, the teacher, and a\n"
        "diffusion model may have made variations of them. None is a photograph.\n\n"
        f"{counted(stats.images, 'image', 'images')} of {height} x {width} pixels"
        f" ({colours}, {manifest.header.codec}) in"
        f" {counted(len(manifest.header.class_names), 'class', 'classes')} and"
        f" {counted(len(manifest.shards), 'shard', 'shards')}."
    )


def _bullets(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, it in value.items():
        if isinstance(it, Mapping):
            yield f"{indent}- {key}:"
            yield from _bullets(it, indent + "  ")
        else:
            yield f"{indent}- {key}: {', '.join(map(str, it)) if isinstance(it, list | tuple) else it}"


def _counts(stats: Stats) -> str:
    return (
        "## Counts\n| | images | the teacher agrees with the label |\n|---|---:|---:|\n"
        f"| before the filter | {stats.rows:,} | {_share(stats.agreeing_rows, stats.rows)} |\n"
        f"| kept | {stats.images:,} | {_share(stats.agreeing_images, stats.images)} |"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def _fenced(lines: Sequence[str]) -> str:
    return "```\n" + "\n".join(lines) + "\n```"


def histogram(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Return one line per name, with its count and a bar."""
    width, most = max(map(len, names), default=0), max(counts, default=0)
    return [
        f"{name:<{width}} {count:>9,} {_bar(count, most)}".rstrip()
        for name, count in zip(names, counts, strict=True)
    ]


def _similarity(stats: Stats) -> list[str]:
    counts = zip(
        EDGES, EDGES[1:], stats.similarity_of_all.tolist(), stats.similarity_of_kept.tolist(), strict=False
    )
    most = max(stats.similarity_of_all.tolist())
    lines = [
        f"{low:5.2f} to {high:5.2f} {every:>9,} {kept:>9,} {_bar(every, most)}".rstrip()
        for low, high, every, kept in counts
        if every
    ]
    return lines or ["no similarity was measured"]


def _bar(count: int, most: int) -> str:
    return "#" * -(-BAR * count // most) if most else ""


def _usage(header: Header) -> str:
    extension = EXTENSIONS[header.codec]
    decoder = f"fn.decoders.{'numpy' if header.codec == 'raw' else 'image'}(encoded)"
    return f"""## Usage
Each sample of a tar is a pair of files, `KEY.{extension}` and `KEY.json` (label, class, parent, seed,
similarity and the teacher's top-1 class). The parquet table in `rows/` has one row per image, including
rejected ones, with the offset and size of each kept image in its tar. DALI cannot read a tar that contains
no images.

```python
webdataset.WebDataset("BANK/00000.tar", shardshuffle=False).decode("rgb8")
datasets.load_dataset("BANK")
pandas.read_parquet("BANK/rows")
pyarrow.dataset.dataset("BANK/rows")
datasets.load_dataset("parquet", data_files="BANK/rows/*.parquet")
encoded, described = fn.readers.webdataset(
    paths="BANK/00000.tar", index_paths="BANK/index/00000.idx", ext=["{extension}", "json"]
)
images = {decoder}
```"""


def total_stats(storage: Storage, manifest: Manifest) -> Stats:
    """Return the sum of the stats of all committed shards."""
    zero = Stats.zero(len(manifest.header.class_names))
    with ThreadPoolExecutor(THREADS) as pool:
        documents = pool.map(storage.read, (entry.names.stats for entry in manifest.shards.values()))
        return sum(map(Stats.from_json, documents), start=zero)
