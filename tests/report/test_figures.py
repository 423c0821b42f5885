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
from oakum.report._evidence import measured_at, missing_stages, reconstructions_by_attack, roc_of


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
        assert reconstructions_by_attack(record, run.store) == {}
        assert figures.reconstructions(record, run.store, run.real_images) is None


def test_reconstructions_are_the_first_restart_of_the_first_common_seed(run: Any) -> None:
    from safetensors.numpy import load

    (rows,) = reconstructions_by_attack(run.record, run.store).values()
    cell = next(cell for cell in run.record.cells if cell.setting == "relaxloss" and cell.seed == 0)
    stage = cell.stages["inversion.clean.gmi"]
    images = load(run.store.read(run.store.manifest(stage.kind, stage.key), "reconstructions.safetensors"))["images"]
    for label in range(5):
        item = rows[label]["relaxloss"]
        assert item is not None
        assert np.abs(item.pixels - 255 * images[label, 0, 0]).max() <= 0.501
        assert item.is_recognized is not None


@pytest.mark.parametrize("attack", ["gmi", "kedmi"])
def test_tasks_of_one_attack_are_joined_and_met_with_their_verdicts(searched: Any, attack: str) -> None:
    from safetensors.numpy import load

    rows = reconstructions_by_attack(searched.record, searched.store)[attack]
    assert list(rows) == [0, 1, 2, 3, 4]
    cell = next(cell for cell in searched.record.cells if (cell.setting, cell.seed) == ("bido 0.05/0.5", 0))
    roles = [role for role in cell.stages if role.startswith(f"inversion.clean.{attack}")]
    assert len(roles) == {"gmi": 1, "kedmi": 2}[attack]
    images: dict[int, Any] = {}
    for role in roles:
        stage = cell.stages[role]
        found = load(searched.store.read(searched.store.manifest(stage.kind, stage.key), "reconstructions.safetensors"))
        images |= dict(zip(found["classes"].tolist(), found["images"], strict=True))
    judge = cell.stages[f"judge.clean.{attack}"]
    content = searched.store.read(searched.store.manifest("judge", judge.key), "judgments.parquet")
    judged = pq.read_table(io.BytesIO(content)).to_pydict()
    for label, own in rows.items():
        item = own["bido 0.05/0.5"]
        assert item is not None
        assert np.abs(item.pixels - 255 * images[label][0, 0]).max() <= 0.501
        row = judged["class"].index(searched.record.data["private_classes"][label])
        assert item.verdicts == {
            "evaluator": judged["correct"][row],
            "second": judged["correct_second"][row],
            "faceres": judged["correct_faceres"][row],
        }
        assert item.is_doubted == (judged["correct"][row] and not all(item.verdicts.values()))


def test_an_attack_shows_the_settings_that_it_met(searched: Any) -> None:
    blocks = reconstructions_by_attack(searched.record, searched.store)
    assert {attack: list(rows[0]) for attack, rows in blocks.items()} == {
        "gmi": ["none", "bido 0.05/0.5", "relaxloss"],
        "kedmi": ["none", "bido 0.05/0.5", "relaxloss"],
        "vmi": ["none"],
    }
    figure = figures.reconstructions(searched.record, searched.store, searched.real_images)
    assert figure is not None
    assert [part.get_suptitle() for part in figure.subfigs] == ["gmi attack", "kedmi attack", "vmi attack"]
    titles = [axis.get_title() for axis in figure.subfigs[2].axes if axis.get_title()]
    assert titles == ["real", "real", "real", "none"]


def test_tasks_that_left_the_store_leave_the_pictures_of_the_others(searched: Any) -> None:
    gone = StageRef("inversion", "0" * 64)
    record = searched.with_cells(
        lambda cell: replace(cell, stages=cell.stages | {"inversion.clean.kedmi.0": gone}) if cell.seed == 0 else cell
    )
    rows = reconstructions_by_attack(record, searched.store)["kedmi"]
    assert list(rows) == [3, 4]
    assert all(item is not None for own in rows.values() for item in own.values())


def test_tasks_are_read_in_the_order_of_their_numbers_and_no_further_than_needed(run: Any) -> None:
    from safetensors.numpy import save

    class Tasks:
        read_tasks: list[int]

        def __init__(self) -> None:
            self.read_tasks = []

        def manifest(self, kind: str, key: str) -> str | None:
            return key if kind == "inversion" else None

        def read(self, manifest: str, name: str) -> bytes:
            number = int(manifest)
            self.read_tasks.append(number)
            classes = np.arange(4 * number, 4 * number + 4)
            return bytes(save({"images": np.full((4, 2, 1, 3, 3), number / 255, np.float32), "classes": classes}))

    stages = {f"inversion.clean.gmi.{number}": StageRef("inversion", str(number)) for number in (11, 10, 2, 1, 0)}
    cell = replace(run.record.cells[0], stages=stages)
    store = Tasks()
    rows = reconstructions_by_attack(replace(run.record, cells=(cell,)), store)["gmi"]
    assert store.read_tasks == [0, 1, 2]
    assert list(rows) == list(range(10))
    pictures = [own["none"] for own in rows.values()]
    assert [int(item.pixels[0, 0]) for item in pictures if item] == [0] * 4 + [1] * 4 + [2] * 2
    assert all(item is not None and item.is_recognized is None and not item.is_doubted for item in pictures)


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
