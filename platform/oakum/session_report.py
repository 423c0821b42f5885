"""Reports of runs: written at the end of a run, or again from the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oakum.config import ConfigError
from oakum.pipeline.collect import collect
from oakum.records import RunRecord
from oakum.search.records import SearchRecord
from oakum.session_home import Home
from oakum.store import DamagedEntryError, Store


def write_report(record: RunRecord, home: Home, store: Store) -> Path:
    """Write the HTML report and the figures, and return the report's path.

    Raises:
        DamagedEntryError: a payload is damaged; its entry was set aside, so that the next run computes it again.
    """
    from oakum.report import figures, html

    out = home.report(record.name)
    pictures = real_images(record, home)
    try:
        figures.write(record, store, out.parent / "figures", pictures, formats=("png",))
        return html.write(record, store, out, pictures)
    except DamagedEntryError as error:
        store.set_aside(error.kind, error.key, str(error), attempt=error.attempt)
        raise


def write_search_report(record: SearchRecord, home: Home) -> Path:
    """Write a search's HTML report and its figures, and return the report's path."""
    from oakum.report import search_figures, search_page

    out = home.report(record.header.name)
    search_figures.write(record, out.parent / "figures")
    return search_page.write(record, out)


def real_images(record: RunRecord, home: Home, count: int = 4) -> dict[int, Any]:
    """Return up to `count` training images of each of the target's classes; none of data that is not public.

    The images are (n, C, H, W) float in [0, 1], by class index, from the first seed's training fold.
    """
    if record.data["public"] is not True or len(record.data["input_shape"]) != 3:
        return {}
    from oakum.pipeline.folds import LoadedFolds, Selection

    config = record.config
    folds = LoadedFolds(
        Selection(
            data=config["data"]["name"],
            image_size=config["data"]["image_size"],
            folds=config["folds"],
            experiment_seed=config["experiment_seed"],
            seed_index=min(cell.seed for cell in record.cells),
        ),
        home.data,
    )
    rows = folds.require("train")
    index = folds.class_index(rows)
    samples = folds.samples
    return {
        label: samples.x[rows[index == label][:count]] / samples.max_value
        for label in range(len(folds.private_classes))
    }


def tracked_files(report: Path | None) -> list[Path]:
    if report is None:
        return []
    return [report, *sorted((report.parent / "figures").glob("*.png"))]


def report_again(run: str, home: Home) -> tuple[RunRecord, Path]:
    """Write a report again; `run` is an experiment's name (its latest plan) or the beginning of a plan key.

    Raises:
        ConfigError: no plan of that name or key.
    """
    store = Store.open(home.store_uri)
    found = []
    for name in store.list_documents("plans"):
        document = store.get_document(name)
        if document is not None and (document["name"] == run or name.removeprefix("plans/").startswith(run)):
            found.append(collect(document["skeleton"], store))
    if not found:
        raise ConfigError(f"no plan is called {run!r} or has a key that begins so; run an experiment first")
    record = max(found, key=lambda each: _latest(each, store))
    return record, write_report(record, home, store)


def _latest(record: RunRecord, store: Store) -> float:
    manifests = store.manifests(stage for cell in record.cells for stage in cell.stages.values())
    return max((manifest.created for manifest in manifests.values()), default=0.0)
