"""Where the numbers come from, how to get them again, and what the words mean."""

from __future__ import annotations

import re
from typing import Any

import yaml

from oakum.records import RunRecord
from oakum.report._glossary import TERMS
from oakum.report._markup import Markup, folded, join, pairs, tag
from oakum.report._numbers import number
from oakum.report._overview import Overview


def provenance(record: RunRecord, view: Overview) -> Markup:
    """Return keys, digests, versions, the configuration and the commands that lead back to them."""
    return join(
        tag("h2", "Provenance and how to reproduce"),
        *_reproduce(record),
        tag("h3", "Data"),
        pairs(_data_facts(record)),
        tag("h3", "Code"),
        pairs({name: _plain(value) for name, value in record.code.items()}) if record.code else _nothing(),
        tag("h3", "This execution"),
        pairs({name: number(value, "seconds") for name, value in record.seconds.items()})
        if record.seconds
        else tag("p", "Nothing had to run: every stage was in the store."),
        folded("Configuration with every default filled in", _configuration(record)),
        folded("Keys of every stage", _stage_table(record, view), class_="bulk"),
    )


def glossary() -> Markup:
    """Return the meaning of the report's words."""
    entries = (tag("div", tag("dt", term), tag("dd", meaning)) for term, meaning in TERMS)
    return join(tag("h2", "Glossary"), tag("dl", *entries, class_="terms"))


def _reproduce(record: RunRecord) -> list[Markup]:
    file = re.sub(r"[^a-z0-9]+", "-", record.name.lower()).strip("-") or "experiment"
    commit = str(record.code.get("commit") or "")
    lines = [f"git checkout {commit}"] if re.fullmatch(r"[0-9a-f]{7,64}", commit) else []
    lines += [f"oakum check {file}.yaml   # the configuration below, saved under this name", f"oakum run {file}.yaml"]
    parts = [tag("pre", "\n".join(lines))]
    text = (
        "On CPU, with equal threads and one worker, the numbers are the same to the last bit; on GPUs they lie within "
        "the spread of seeds. Times differ. "
    )
    parts.append(
        tag("p", text, "Every number leads back to bytes: ", tag("code", "oakum why KEY"), " explains a stage.")
    )
    if record.code.get("dirty"):
        warning = "The code had changes that no commit holds, so the commit alone does not bring it back."
        parts.append(tag("p", tag("strong", warning)))
    return parts


def _data_facts(record: RunRecord) -> dict[str, str]:
    data = record.data
    facts = {
        "name": _plain(data.get("name")),
        "digest": _plain(data.get("digest")),
        "public": "yes" if data.get("public") is True else "no: no pictures or single records in this report",
        "license": _plain(data.get("license_note")),
        "input shape": " \N{MULTIPLICATION SIGN} ".join(str(size) for size in data.get("input_shape") or []),
        "classes": str(len(data.get("class_names") or [])) if data.get("class_names") else "",
        "folds": ", ".join(f"{fold} {count:,}" for fold, count in (data.get("folds") or {}).items()),
        "run key": record.run_key,
        "plan key": record.plan_key,
    }
    return {name: value for name, value in facts.items() if value}


def _configuration(record: RunRecord) -> Markup:
    return tag("pre", yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True, width=100))


def _stage_table(record: RunRecord, view: Overview) -> Markup:
    rows = [
        tag(
            "tr",
            *(tag("td", text, class_="text wrap") for text in ("shared", "", item.role)),
            _key_cell(item.stage.key),
        )
        for item in record.shared
    ]
    for setting in view.settings:
        for cell in setting.cells:
            for role, stage in cell.stages.items():
                names = (setting.label, str(cell.seed), role)
                texts = (tag("td", text, class_="text wrap") for text in names)
                rows.append(tag("tr", *texts, _key_cell(stage.key)))
    head = tag("tr", *(tag("th", name, class_="text", scope="col") for name in ("Setting", "Seed", "Role", "Key")))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="values"), class_="scroll")


def _key_cell(key: str) -> Markup:
    return tag("td", key, class_="text wrap key")


def _nothing() -> Markup:
    return tag("p", "Not recorded.", class_="muted")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
