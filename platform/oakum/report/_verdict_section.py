"""The findings of every setting: cards, or for many settings a line each that opens to its card."""

from __future__ import annotations

from oakum.report._marks import mark
from oakum.report._markup import Markup, join, tag
from oakum.report._numbers import setting_text
from oakum.report._overview import Overview, Setting
from oakum.report._palette import Look
from oakum.report._verdict import Verdict, verdicts
from oakum.report.statistics import SEEDS_FOR_INTERVAL

Looks = dict[str, Look]
MOST_CARDS = 6


def verdict_section(view: Overview, styles: Looks) -> Markup:
    """Return a card for every setting; of more than `MOST_CARDS` settings a line, which opens to the card."""
    found = verdicts(view)
    if len(found) <= MOST_CARDS:
        content = tag("div", *(_card(verdict, view, styles) for verdict in found), class_="verdicts")
    else:
        content = tag("div", _line_head(found), *(_line(verdict, view, styles) for verdict in found), class_="lines")
    heading = tag("h2", "What leaks, how much less, and at what cost")
    return join(heading, tag("p", _verdict_rule(view), class_="lead"), content)


def _verdict_rule(view: Overview) -> str:
    count = len(view.seeds)
    if view.baseline is None or count == 0:
        return "Without an undefended setting there is nothing to compare with; the numbers stand alone."
    text = f"Every comparison is to {view.baseline.label}, paired per seed. "
    if count == 1:
        return text + "With one seed nothing is known about how much the numbers vary; read differences with care."
    if count >= SEEDS_FOR_INTERVAL:
        return text + (
            f"A change is called lower or higher when the 95 % t interval over {count} seeds ({count - 1} degrees of "
            "freedom) lies on one side of zero."
        )
    odds = 2 ** (count - 1)
    return text + (
        f"A change is called lower or higher when all {count} seeds agree on its sign. Without any true change they "
        f"would agree one time in {odds}, so small differences deserve more seeds."
    )


def _card(verdict: Verdict, view: Overview, styles: Looks) -> Markup:
    setting = verdict.setting
    header = tag(
        "header",
        mark(styles[setting.label]),
        tag("h3", setting.label),
        tag("span", _method(setting), class_="parameters"),
    )
    return tag(
        "article",
        header,
        tag("p", verdict.headline, class_="headline"),
        _findings(verdict),
        class_="verdict baseline" if setting == view.baseline else "verdict",
    )


def _line_head(found: list[Verdict]) -> Markup:
    titles = dict.fromkeys(finding.title for verdict in found for finding in verdict.findings)
    names = (tag("span", title, class_="number") for title in titles)
    return tag("div", tag("span", "Setting", class_="who"), tag("span", class_="said"), *names, class_="head")


def _line(verdict: Verdict, view: Overview, styles: Looks) -> Markup:
    setting = verdict.setting
    who = tag("span", mark(styles[setting.label]), Markup("&ensp;"), setting.label, class_="who")
    said = "The undefended baseline" if setting == view.baseline else verdict.headline
    numbers = (
        tag("span", finding.figure, class_=f"number {finding.tone}", title=finding.title)
        for finding in verdict.findings
    )
    return tag(
        "details",
        tag("summary", who, tag("span", said, class_="said"), *numbers),
        tag("p", _method(setting), class_="muted") if _method(setting) else None,
        _findings(verdict),
        class_="verdict baseline" if setting == view.baseline else "verdict",
    )


def _findings(verdict: Verdict) -> Markup:
    findings = (
        tag(
            "div",
            tag("dt", finding.title),
            tag("dd", finding.figure, class_=f"figure {finding.tone}"),
            tag("dd", finding.chip, class_=f"chip {finding.tone}") if finding.chip else None,
            tag("dd", finding.sentence),
        )
        for finding in verdict.findings
    )
    return tag("dl", *findings)


def _method(setting: Setting) -> str:
    parameters = ", ".join(f"{name} {setting_text(value)}" for name, value in setting.parameters.items())
    name = setting.defense if setting.defense != setting.label else ""
    return ": ".join(part for part in (name, parameters) if part)
