"""Builds a checkpoint again from its lineage, in a home of its own, and says whether it came out the same, or what differs.

The prices are those of this home, where it still holds the very data version, or else those of the source, at the same version.
From there the run is the job `train`, as the lineage configures it. On the same kind of device the weights are then equal bit
by bit; where they are not, the report says what else is not as it was: code, libraries, prices, device, threads.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json, to_json
from finjepa_pipeline.prices.derive import UniverseConfig
from finjepa_pipeline.prices.sources import PriceSourceConfig, make_feed
from finjepa_pipeline.publishing.package import CONTENT
from finjepa_pipeline.report.page import duration
from finjepa_pipeline.runs import locked
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import sha256
from finjepa_pipeline.training.checkpoints import checkpoint_here, current_checkpoint, named_checkpoint
from finjepa_pipeline.warehouse import Warehouse

_BASE = "tiny"  # the preset that the lineage's config is written as a difference to


@dataclass(frozen=True)
class Reproduction:
    """How a rebuilt checkpoint compares.

    Attributes:
        identical: the files that make the model act are equal byte by byte.
        differences: what differs in the result, and `surroundings`: what was not as it was when the checkpoint was made.
    """

    checkpoint: str
    identical: bool
    differences: tuple[str, ...]
    surroundings: tuple[str, ...]
    rebuilt: Path


def reproduce(
    settings: Settings,
    checkpoint: str,
    train: Callable[[Settings, dict[str, dict[str, Any]]], object],
    say: Callable[[str], object],
) -> Reproduction:
    """Rebuild a checkpoint of this home, a folder or a Hub repository, and compare.

    Args:
        train: runs the job `train` in a home, with the config of its ops.
        say: prints what it will cost.

    Raises:
        FinJEPAError: if it has no lineage that can be followed, or its prices can no longer be had.
    """
    with locked(settings.dagster / "commands", f"reproduce-{os.getpid()}"):  # so that nothing that it reads is removed
        named = named_checkpoint(settings, checkpoint)
        lineage = _lineage(named.folder)
        home = settings.home / "reproductions" / sha256(named.folder / "lineage.json")[:16]
        shutil.rmtree(home, ignore_errors=True)
        scratch = Settings(home=home).ensure()
        ops = _ops(settings, scratch, lineage)
        learned = lineage["config"]["training"]
        needed = [
            ("was trained on the panel", settings.panels / name, scratch.panels) for name in learned.get("panels", ())
        ]
        if initial := learned.get("initial"):
            own = checkpoint_here(settings, initial) or settings.checkpoints / initial
            needed.append(("began with the weights of", own, scratch.checkpoints))
        for how, own, there in needed:
            if not own.is_dir():
                raise FinJEPAError(f"{named.name} {how} {own.name}, which is gone from {own.parent}")
            (there / own.name).symlink_to(own)
        made = read_json(named.folder / "metrics.json").get("training", {})
        if "seconds" in made:
            say(f"{named.name} took {made['steps']:,} steps and {duration(made['seconds'])} on {made['device']}")
        with _alone(scratch, lineage["build"].get("threads")):
            train(scratch, ops)
        rebuilt = current_checkpoint(scratch)
        differences = compare(named.folder, rebuilt)
        return Reproduction(named.name, not differences, differences, surroundings(lineage, _lineage(rebuilt)), rebuilt)


def compare(original: Path, rebuilt: Path) -> tuple[str, ...]:
    """What differs between two checkpoint folders, in words; nothing where the model acts the same, bit by bit."""
    different = [name for name in CONTENT if sha256(original / name) != sha256(rebuilt / name)]
    return tuple(
        _tensors(original / name, rebuilt / name) if name.endswith(".safetensors") else f"{name} differs"
        for name in different
    )


def surroundings(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """What was not as it was, from two lineages."""
    before, after = _facts(then), _facts(now)
    return tuple(
        f"{name}: {before.get(name)} then, {after.get(name)} now"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


def _facts(lineage: Mapping[str, Any]) -> dict[str, Any]:
    build = lineage["build"]
    facts = {name: lineage[name] for name in ("device", "python", "platform", "panel_hash")}
    facts |= {f"{name} block": " to ".join(days) for name, days in lineage["blocks"].items()}
    facts |= {name.replace("_", " "): build.get(name) for name in ("training_code", "threads", "processes")}
    return facts | {"prices": lineage["data"]["data_version"]} | lineage["libraries"]


def _lineage(checkpoint: Path) -> dict[str, Any]:
    try:
        found = read_json(checkpoint / "lineage.json")
        build = found["build"]
        needed = build["source"]["data_source"], build["channels"], found["data"]["version"], found["blocks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FinJEPAError(
            f"{checkpoint} has no lineage that can be followed ({type(error).__name__}: {error})"
        ) from error
    if not all(needed):
        raise FinJEPAError(f"{checkpoint} has a lineage without its prices, channels or blocks: it cannot be followed")
    return found


def _ops(settings: Settings, scratch: Settings, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Run config of `train`, the assets' own config and nothing else."""
    build = lineage["build"]
    universe = {name: value for name, value in build["universe"].items() if name in UniverseConfig.model_fields}
    model = {
        "preset": _BASE,
        "overrides": overrides(lineage["config"]),
        "processes": build.get("processes"),
    }
    return {
        "ingest_prices": _prices(settings, scratch, lineage),
        "derive_prices": universe,
        "feature_panel": {"channels": build["channels"]},
        "world_model": model,
    }


def overrides(config: Mapping[str, Any]) -> dict[str, str]:
    """A whole config as what `--set` needs to make it of the base preset. The channels follow from the panel."""
    base, wanted = preset(_BASE).by_key(), FinJEPAConfig.from_dict(dict(config)).by_key()
    changed = {key: to_json(value) for key, value in wanted.items() if to_json(value) != to_json(base[key])}
    return {key: value for key, value in changed.items() if key != "model.channels"}


def _prices(settings: Settings, scratch: Settings, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Config of the ingestion. The revision that this home still holds is taken with its warehouse; otherwise the source must
    still be what it was."""
    data, options = lineage["data"], dict(lineage["build"]["source"])
    revision = _revision_of(settings, data["data_version"], scratch)
    if revision is not None:
        return {"as_of": str(revision)}
    if options["data_source"] == "hf":
        return options | {"revision": data["version"]}
    feed = make_feed(PriceSourceConfig(**options), scratch)
    assert feed is not None  # the options name their source
    present = feed.source.snapshot().version
    if present != data["version"]:
        raise FinJEPAError(
            f"the prices of {data['feed']} are no longer what they were: version {present[:12]} now, {data['version'][:12]} "
            "then, and no revision of this home has them"
        )
    return options


def _revision_of(settings: Settings, data_version: str, scratch: Settings) -> int | None:
    """The newest revision of this home that has this content; the warehouse is then copied into the scratch home."""
    if not settings.warehouse.is_file():
        return None
    with Warehouse.from_settings(settings).connect() as con:
        query = "SELECT max(revision) FROM main.revisions WHERE data_version = $data_version"
        [(revision,)] = con.execute(query, {"data_version": data_version}).fetchall()
        if revision is not None:
            con.execute("CHECKPOINT")
            shutil.copyfile(settings.warehouse, scratch.warehouse)
        return revision


@contextlib.contextmanager
def _alone(scratch: Settings, threads: int | None) -> Iterator[None]:
    """The environment of a home that has nothing but the lineage."""
    before = dict(os.environ)
    kept = {name: value for name, value in before.items() if not name.startswith(("FINJEPA_", "DAGSTER_"))}
    os.environ.clear()
    os.environ.update(
        kept | {"FINJEPA_HOME": str(scratch.home)} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _tensors(original: Path, rebuilt: Path) -> str:
    before, after = load_file(original), load_file(rebuilt)
    if {name: value.shape for name, value in before.items()} != {name: value.shape for name, value in after.items()}:
        return "model.safetensors has other tensors"
    largest = {name: float(abs(before[name].astype("f8") - after[name].astype("f8")).max(initial=0)) for name in before}
    worst = max(largest, key=lambda name: largest[name])
    moved = sum(value > 0 for value in largest.values())
    return f"model.safetensors: {moved} of {len(before)} tensors differ, most of all {worst}, by up to {largest[worst]:.3g}"
