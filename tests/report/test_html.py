from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oakum.records import MetricValue, RunRecord
from oakum.report import html


def render(run: Any, record: RunRecord) -> str:
    return html.render(record, run.store, run.real_images)


@pytest.fixture(scope="module")
def page(run: Any) -> str:
    return html.render(run.record, run.store, run.real_images)


def test_the_file_is_self_contained(page: str, read: Callable[[str], Any]) -> None:
    structure = read(page)
    for name, attributes in structure.elements:
        assert name not in {"script", "link", "iframe", "object", "base", "form"}
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "xlink:href"):
            target = attributes.get(key)
            assert target is None or target.startswith(("#", "data:image/png;base64,"))
    urls = set(re.findall(r"https?://[^\"' <>)]+", page))
    assert urls <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert "default-src 'none'" in page.replace("&#x27;", "'")


def test_ids_are_unique_and_links_lead_somewhere(page: str, read: Callable[[str], Any]) -> None:
    structure = read(page)
    ids = [attributes["id"] for _, attributes in structure.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for name, attributes in structure.elements:
        if name == "a":
            assert (attributes["href"] or "").removeprefix("#") in ids


def test_pictures_and_figures_have_alternatives(page: str, read: Callable[[str], Any]) -> None:
    elements = read(page).elements
    pictures = [attributes for name, attributes in elements if name == "img"]
    assert len(pictures) == 5 * (3 + 4)
    assert all(attributes.get("alt") for attributes in pictures)
    assert all(attributes.get("aria-label") for _, attributes in elements if attributes.get("role") == "img")


def test_every_value_of_every_seed_is_shown(run: Any, page: str, read: Callable[[str], Any]) -> None:
    text = read(page).text
    for cell in run.record.cells:
        for key in ("canary/loss/auc", "membership/entropy/auc"):
            assert f"{cell.metrics[key].value:.3f}" in text
        accuracy = f"{100 * cell.metrics['utility/test_accuracy'].value:.1f} %"
        assert accuracy in text.replace("\N{NO-BREAK SPACE}", " ")
        for stage in cell.stages.values():
            assert stage.key in text
    assert run.record.run_key in text
    assert "range of 3 seeds" in text
    assert "needs 10 expected false positives" in text


def test_everything_from_the_record_is_escaped(run: Any, read: Callable[[str], Any]) -> None:
    def attack(place: str) -> str:
        return f"</title></style></svg><script>alert('{place}')</script><img src=x onerror=alert(2)>\"'&lt;"

    def change(cell: Any) -> Any:
        unresolved = MetricValue(None, note=attack("note"))
        metrics = cell.metrics | {f"canary/{attack('attack').replace('/', '')}/auc": cell.metrics["canary/loss/auc"]}
        metrics |= {f"canary/{attack('key').replace('/', '')}/tpr_at_fpr_0.1": unresolved}
        label = attack("setting") if cell.setting == "relaxloss" else cell.setting
        parameters = {attack("parameter"): attack("value")}
        return replace(cell, setting=label, metrics=metrics, flags=(attack("flag"),), parameters=parameters)

    record = replace(
        run.with_cells(change),
        name=attack("name"),
        description=attack("description"),
        warnings=(attack("warning"),),
        config={attack("config"): attack("option")},
        data=run.record.data
        | {"class_names": [attack("class")] * 5, "name": attack("data"), "digest": attack("digest")},
        code={attack("library"): attack("version"), "commit": attack("commit"), "oakum": attack("oakum")},
        seconds={attack("phase"): 1.0},
    )
    text = html.render(record, run.store, run.real_images)
    structure = read(text)
    places = "note attack key setting parameter value flag name description warning config option class data digest"
    for place in f"{places} library version commit oakum phase".split():
        assert f"<script>alert('{place}')" in structure.text, place
    assert "<script" not in text
    assert "<img src=x" not in text
    assert not any("onerror" in attributes for _, attributes in structure.elements)


def test_private_data_shows_no_pictures_and_no_class_names(run: Any, read: Callable[[str], Any]) -> None:
    data = run.record.data | {"public": False, "class_names": ["Ada Lovelace"] * 5}
    structure = read(render(run, replace(run.record, data=data)))
    assert not [name for name, _ in structure.elements if name in {"img", "image"}]
    assert "The data is not public" in structure.text
    assert "Ada Lovelace" not in structure.text


@pytest.mark.parametrize("topic", ["inversion", "canary", "membership", "utility"])
def test_an_attack_that_was_not_run_leaves_no_trace(run: Any, topic: str, read: Callable[[str], Any]) -> None:
    def without(cell: Any) -> Any:
        metrics = {key: value for key, value in cell.metrics.items() if not key.startswith(topic)}
        roles = {
            "inversion": ("inversion.", "judge."),
            "canary": ("membership.canary",),
            "membership": ("membership.clean",),
        }
        stages = {role: stage for role, stage in cell.stages.items() if not role.startswith(roles.get(topic, ("-",)))}
        return replace(cell, metrics=metrics, stages=stages)

    structure = read(render(run, run.with_cells(without)))
    titles = {"inversion": "Inversion top-1", "canary": "Canary AUC", "membership": "Membership AUC"}
    if topic in titles:
        headings = " ".join(structure.words).split("Glossary")[0]
        assert titles[topic] not in headings
    assert "nan" not in structure.text.lower().split()


def test_no_baseline(run: Any, read: Callable[[str], Any]) -> None:
    structure = read(render(run, run.with_cells(lambda cell: cell if cell.setting != "none" else None)))
    assert "No undefended setting to compare with" in structure.text
    assert "paired per seed:" not in structure.text
    assert "differences" not in {attributes.get("id") for name, attributes in structure.elements if name == "section"}


def test_one_seed(run: Any, read: Callable[[str], Any]) -> None:
    text = read(render(run, run.with_cells(lambda cell: cell if cell.seed == 0 else None))).text
    assert "One seed only" in text
    assert "in all" not in text.split("At a glance")[0]


def test_a_run_without_cells(run: Any, read: Callable[[str], Any]) -> None:
    record = replace(run.record, cells=(), shared=(), data={}, code={}, seconds={}, chance={}, config={})
    text = read(render(run, record)).text
    assert "not recorded" in text


def test_no_number_is_invented_for_unresolved_metrics(run: Any, read: Callable[[str], Any]) -> None:
    metric = MetricValue(None, wants="low", note="only 30 non-members")

    def blank(cell: Any) -> Any:
        label = cell.setting.replace("0.05/0.5", "")
        return replace(cell, setting=label, metrics=dict.fromkeys(cell.metrics, metric))

    record = replace(run.with_cells(blank), chance={}, seconds={})
    structure = read(render(run, record))
    glance = re.search(r"At a glance(.*?)Every value", structure.text.split("What leaks")[1], re.DOTALL)
    assert glance is not None
    assert "unresolved" in glance.group(1)
    assert not re.search(r"\d\.\d", glance.group(1).split("ROC curves")[0])


@pytest.fixture(scope="module")
def searched_page(searched: Any) -> str:
    return html.render(searched.record, searched.store, searched.real_images)


def test_each_inversion_attack_has_a_block_of_pictures(searched_page: str, read: Callable[[str], Any]) -> None:
    elements = read(searched_page).elements
    alternatives = [str(attributes["alt"]) for name, attributes in elements if name == "img"]
    assert len(alternatives) == 5 * (3 + 3) + 5 * (3 + 3) + 5 * (3 + 1)
    made = [text for text in alternatives if text.startswith("reconstruction of")]
    assert sum(" by vmi" in text for text in made) == 5
    assert all("recognized by" in text and "the second evaluation model" in text for text in made)
    titles = [
        str(attributes["title"])
        for name, attributes in elements
        if name == "td" and "made" in (attributes.get("class") or "")
    ]
    assert all(re.match("(Not r|R)ecognized by .*the evaluation model", title) for title in titles)
    assert "Recognized by the evaluation model, faceres; not recognized by the second evaluation model" in titles
    doubted = [attributes for _, attributes in elements if "doubted" in (attributes.get("class") or "")]
    assert all("not recognized by" in str(attributes["title"]) for attributes in doubted)
    assert len(doubted) > 0
    text = read(searched_page).text
    assert "Dotted red frame" in text
    assert text.index("gmi attack") < text.index("kedmi attack") < text.index("vmi attack")


def test_words_of_inversion_are_in_the_glossary(searched_page: str, read: Callable[[str], Any]) -> None:
    glossary = read(searched_page).text.split("Glossary")[-1]
    for term in ("disagreement", "Faint", "Embedder", "No-target control", "Unoptimized samples", "nearest, center"):
        assert term in glossary
    for term in ("FID", "EfficientNet-Lite0", "PRDC: precision, recall, density, coverage"):
        assert term in glossary


def test_private_data_shows_inversion_in_numbers_alone(searched: Any, read: Callable[[str], Any]) -> None:
    data = searched.record.data | {"public": False, "class_names": ["Ada Lovelace"] * 5}
    structure = read(render(searched, replace(searched.record, data=data)))
    assert not [name for name, _ in structure.elements if name in {"img", "image"}]
    assert "Inversion, every attack" in structure.text
    assert "Ada Lovelace" not in structure.text


@pytest.fixture(scope="module")
def wide_page(wide: Any) -> str:
    return html.render(wide.record, wide.store)


def test_many_settings_and_attacks_keep_the_page_whole_and_self_contained(
    wide_page: str, read: Callable[[str], Any]
) -> None:
    structure = read(wide_page)
    ids = [attributes["id"] for _, attributes in structure.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {"verdicts", "glance", "matrix", "losses", "privacy", "differences", "values"} <= set(ids)
    assert not [name for name, _ in structure.elements if name in {"script", "link", "form", "iframe"}]
    assert set(re.findall(r"https?://[^\"' <>)]+", wide_page)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }


def test_wide_tables_scroll_inside_their_own_frame_with_a_fixed_first_column(
    wide_page: str, read: Callable[[str], Any]
) -> None:
    frames = [
        attributes for _, attributes in read(wide_page).elements if "matrix-frame" in (attributes.get("class") or "")
    ]
    assert len(frames) == 6
    assert all("scroll" in (frame["class"] or "") and frame["tabindex"] == "0" for frame in frames)
    assert wide_page.count('class="matrix"') == len(frames)
    assert ".matrix th:first-child { position: sticky; left: 0" in wide_page
    assert ".scroll { overflow-x: auto" in wide_page
    assert "@page matrix { size: A4 landscape" in wide_page


def test_long_lists_are_folded(wide_page: str, read: Callable[[str], Any]) -> None:
    text = read(wide_page).text
    assert "Membership, average record: 2,376 rows" in text
    assert "one class predicted (vanilla shadow): 3 settings, 11 attacks" in text
    assert "label smoothing: confidence, loss, entropy, modified_entropy" in text
    assert "acts on the weights" not in text


def test_words_of_the_matrix_are_in_the_glossary(wide_page: str, read: Callable[[str], Any]) -> None:
    glossary = read(wide_page).text.split("Glossary")[-1]
    for term in ("Balanced accuracy", "matched, vanilla", "label only", "unranked", "variance", "Epsilon, delta"):
        assert term in glossary


def test_writing_replaces_the_file_and_leaves_nothing_else(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    assert html.write(run.record, run.store, out) == out
    first = out.read_bytes()
    html.write(run.record, run.store, out)
    assert out.read_bytes() == first
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
