from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from oakum.records import StageRef
from oakum.report import figures
from oakum.report._evidence import measured_at, missing_stages, reconstruction_rows, roc_of


class OneFile:
    """A store of one file, to give exact evidence."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def manifest(self, kind: str, key: str) -> str:
        return key

    def read(self, manifest: Any, name: str) -> bytes:
        return self.content


def _roc(run: Any, score: list[float], member: list[bool]) -> Any:
    import pyarrow as pa

    stream = io.BytesIO()
    pq.write_table(pa.table({"score": score, "is_member": member}), stream)
    cell = replace(run.record.cells[0], stages={"membership.clean.loss": StageRef("membership", "k")})
    return roc_of(cell, "clean", "loss", OneFile(stream.getvalue()))


def test_roc_equals_scikit_learn_with_ties(run: Any) -> None:
    rng = np.random.default_rng(0)
    member = rng.random(400) < 0.5
    score = np.round(rng.normal(0, 1, 400) + 0.7 * member, 1)
    found = _roc(run, score.tolist(), member.tolist())
    fpr, tpr, _ = roc_curve(member, score, drop_intermediate=False)
    assert np.allclose(found.fpr, fpr)
    assert np.allclose(found.tpr, tpr)
    assert np.trapezoid(found.tpr, found.fpr) == pytest.approx(roc_auc_score(member, score))
    assert found.resolved_fpr == pytest.approx(10 / (~member).sum())


def test_constant_scores_are_one_step(run: Any) -> None:
    found = _roc(run, [1.0] * 4, [True, False, True, False])
    assert found.fpr.tolist() == [0.0, 1.0]
    assert found.tpr.tolist() == [0.0, 1.0]


def test_evidence_of_one_kind_only_is_no_curve(run: Any) -> None:
    assert _roc(run, [1.0, 2.0], [True, True]) is None
    assert _roc(run, [1.0, 2.0], [False, False]) is None


def test_every_figure_is_written(run: Any, tmp_path: Path) -> None:
    written = figures.write(run.record, run.store, tmp_path, run.real_images, formats=("png",))
    assert [path.stem for path in written] == [
        "utility_leakage",
        "roc",
        "roc_canary",
        "training_curves",
        "reconstructions",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_figures_of_many_settings_keep_every_label_inside(wide: Any) -> None:
    labels = {cell.setting for cell in wide.record.cells}
    curves = figures.training_curves(wide.record, wide.store)
    assert curves is not None
    curves.canvas.draw()
    for axis in curves.axes:
        written = [text for text in axis.texts if text.get_text() in labels]
        assert {text.get_text() for text in written} == labels
        boxes = [text.get_window_extent() for text in written]
        assert all(curves.bbox.y0 <= box.y0 and box.y1 <= curves.bbox.y1 for box in boxes)
        ordered = sorted(boxes, key=lambda box: float(box.y0))
        assert all(one.y1 <= other.y0 + 2 for one, other in itertools.pairwise(ordered))
    leakage = figures.utility_leakage(wide.record)
    assert leakage is not None
    assert labels <= {text.get_text() for text in leakage.axes[0].texts}
    arrow = next(text for text in leakage.axes[0].texts if text.get_text() == "better")
    assert arrow.get_window_extent().y1 <= leakage.bbox.y1


def test_roc_panels_of_many_settings_name_setting_and_attack(wide: Any) -> None:
    figure = figures.roc(wide.record, wide.store)
    assert figure is not None
    titles = [axis.get_title(loc="left").split("\n") for axis in figure.axes if axis.get_visible()]
    assert [title[0] for title in titles] == list(dict.fromkeys(cell.setting for cell in wide.record.cells))
    assert all(title[1].endswith(" attack") for title in titles)


def test_private_data_makes_no_pictures(run: Any, tmp_path: Path) -> None:
    for public in (False, None, "yes", 1):
        record = replace(run.record, data=run.record.data | {"public": public})
        assert reconstruction_rows(record, run.store) == {}
        assert figures.reconstructions(record, run.store, run.real_images) is None


def test_reconstructions_are_the_first_restart_of_the_first_common_seed(run: Any) -> None:
    from safetensors.numpy import load

    rows = reconstruction_rows(run.record, run.store)
    cell = next(cell for cell in run.record.cells if cell.setting == "relaxloss" and cell.seed == 0)
    stage = cell.stages["inversion.clean.gmi"]
    images = load(run.store.read(run.store.manifest(stage.kind, stage.key), "reconstructions.safetensors"))["images"]
    for label in range(5):
        item = rows[label]["relaxloss"]
        assert item is not None
        assert np.array_equal(item.pixels, images[label, 0, 0])
        assert item.is_recognized is not None


def test_figures_are_absent_where_the_evidence_is(run: Any) -> None:
    record = run.with_cells(lambda cell: replace(cell, stages={}))
    assert figures.roc(record, run.store) is None
    assert figures.training_curves(record, run.store) is None
    assert measured_at(replace(record, shared=()), run.store) is None


def test_evidence_that_left_the_store_is_counted(run: Any) -> None:
    gone = StageRef("membership", "0" * 64)
    record = run.with_cells(
        lambda cell: (
            replace(cell, stages=cell.stages | {"membership.clean.loss": gone}) if cell.setting == "none" else cell
        )
    )
    assert missing_stages(record, run.store) == 1
    assert figures.roc(record, run.store) is not None


def test_labels_are_text_and_no_formulas(run: Any) -> None:
    label = r"$\frac{ <script>alert(1)</script> 模型"
    record = run.with_cells(lambda cell: replace(cell, setting=label) if cell.setting == "relaxloss" else cell)
    figure = figures.utility_leakage(record)
    assert figure is not None
    assert "<script" not in figures.to_svg(figure, "a")


def test_svg_follows_the_theme_and_has_ids_of_its_own(run: Any) -> None:
    figure = figures.utility_leakage(run.record)
    assert figure is not None
    first, second = figures.to_svg(figure, "first"), figures.to_svg(figure, "second")
    assert "var(--ink)" in first
    assert "var(--s-0)" in first
    assert "<?xml" not in first
    assert first == figures.to_svg(figure, "first")
    assert first != second
