"""Generation of a bank, shard by shard."""

from contextlib import closing

from engine.assembly import assemble
from engine.auto_batch.settling import settled_batches
from engine.bank.writer import BankWriter, require_new
from engine.compute import open_accelerator
from engine.generation import Generation
from engine.lanes import lanes
from engine.progress import Progress
from engine.provenance import bank_header
from engine.recipe import Recipe


def generate(recipe: Recipe, url: str, shards: int, *, resume: bool, progress: Progress) -> str:
    """Makes those of the shards 0 to `shards` - 1 that the bank at `url` does not have; says what there is.

    Raises UserError for what the user can mend and NonFiniteError where numbers break.
    """
    recipe = settled_batches(recipe, progress.say)
    accelerator = open_accelerator(recipe.compute)
    progress.say(f"{recipe.name}: {accelerator.device.type}, {recipe.compute.precision}")
    if not resume:
        require_new(url)
    side_by_side = lanes(recipe)
    parts = (
        None if resume else assemble(recipe, accelerator, progress.say, side_by_side)
    )  # what fails leaves no bank
    with BankWriter.open(url, bank_header(recipe), resume=resume, say=progress.say) as bank:
        missing = [number for number in range(shards) if number not in bank.committed]
        if missing:
            parts = parts or assemble(recipe, accelerator, progress.say, side_by_side)
            generation = Generation(recipe, parts, accelerator, progress)
            generation.announce(len(missing))
            with closing(generation.made(iter(missing))) as results:
                for number, made in results:
                    if isinstance(made, Exception):
                        raise made
                    bank.commit(number, made.rows(), made.kept_images())
        images = sum(entry.images for entry in bank.committed.values())
        found = len(bank.committed) - len(missing)
    return f"{url}: {len(missing)} shards made, {found} found sound; {images} images"
