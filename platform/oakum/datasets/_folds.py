"""Folds: which rows of a data set a stage may see. Pure functions of labels and seeds; no fold shares a sample.

An experiment lists rules. A rule says which rows it draws from and how many of them each fold takes; a row belongs to
the first rule that it matches. The folds in `SHARED` and `control` are drawn first and from the experiment seed alone,
so they are equal for every seed index; all others are drawn from what is left, with the seed index. `sealed` adds folds
to those that are equal for every seed: a search seals `test`, so that no trial, whatever its seed, sees a row that the
confirmation is scored on, and `canary`, whose rows are then split between trials and confirmation. Instead of rules an
experiment can ask for the split of a paper's released code.

`control` trains the model of the no-target control: one of other classes, which an attack is run against to see what
it reaches without any leak. Its classes are therefore none of the private ones, and its persons are in no private fold
and not in `public`. Where no persons are known, `control` and `public` may share classes; like all folds they share
no sample.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from oakum.config import ConfigError, FrozenConfig
from oakum.datasets._released_splits import CIFAR_ROWS, CIFAR_TRAIN_ROWS, relaxloss_cifar
from oakum.records import canonical_json, sha256_hex
from oakum.seeding import derive_seed, numpy_generator

SHARED = ("evaluation", "public")
CONTROL = "control"
PRIVATE = (
    *("train", "val", "test", "canary"),
    *("shadow_train", "shadow_test", "reference", "shadow_reference", "shadow_val"),
)

_DRAWN_ONCE = (*SHARED, CONTROL)
_KNOWN = (*_DRAWN_ONCE, *PRIVATE)

Rows = NDArray[np.int64]
Folds = dict[str, Rows]
_PositiveInt = Annotated[int, Field(ge=1)]
_RELEASED_VAL = 2_000


class FoldSelection(FrozenConfig):
    """Which rows a rule draws from: those that satisfy every given condition (none given: all rows).

    Attributes:
        classes: class ids.
        part: of data sets that come in parts: "train" and "test", "val" and "public" of some.
        min_images, max_images: only identities with at least / at most so many images in the whole data set.
        first_identities: of the identities that are left, so many with the most images (ties: lower id first).
    """

    classes: tuple[int, ...] | None = None
    part: str | None = None
    min_images: _PositiveInt | None = None
    max_images: _PositiveInt | None = None
    first_identities: _PositiveInt | None = None

    @property
    def needs_identities(self) -> bool:
        return any(value is not None for value in (self.min_images, self.max_images, self.first_identities))


class FoldRule(FrozenConfig):
    """One rule: `from` selects rows, `take` says how many of them each fold gets ("rest": what the others leave).

    Attributes:
        per_class_max: keep at most so many rows of each class before anything is taken.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    from_: FoldSelection = Field(default=FoldSelection(), alias="from")
    take: Annotated[dict[str, _PositiveInt | Literal["rest"]], Field(min_length=1)]
    per_class_max: _PositiveInt | None = None

    @model_validator(mode="after")
    def _check_take(self) -> Self:
        for fold in self.take:
            if fold not in _KNOWN:
                nearest = difflib.get_close_matches(fold, _KNOWN, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"folds: {', '.join(_KNOWN)}"
                raise ValueError(f"unknown fold {fold!r}; {hint}")
        if sum(count == "rest" for count in self.take.values()) > 1:
            raise ValueError('only one fold of a rule can take "rest"')
        return self


class ReleasedSplit(FrozenConfig):
    """The split of a paper's released code, for data in the official row order.

    `relaxloss`: CIFAR-10 and CIFAR-100, 12,000 rows each for train, test, shadow_train and shadow_test, exactly the
    released ones. The 12,000 rows of its reference fold are cut into val (2,000), reference and shadow_reference
    (5,000 each), because no fold may serve two sides. Seed index i replays the code under seed + i.

    Attributes:
        seed: the released code's run seed.
    """

    of: Literal["relaxloss"]
    seed: int = Field(default=1000, ge=0, lt=2**31)


class FoldsConfig(FrozenConfig):
    """All rules of an experiment, or a released split.

    Attributes:
        released: gives every fold; leaves no rows to rules.
        private_classes: the target's classes; None: every class that a rule with a private fold draws from (`control`
            is none).
        sealed: private folds that hold the same rows under every seed.
    """

    released: ReleasedSplit | None = None
    rules: tuple[FoldRule, ...] = ()
    private_classes: tuple[int, ...] | None = None
    sealed: tuple[Literal["test", "canary"], ...] = ()

    # Not `min_length`: pydantic counts valid items only, so a misspelled key would also be reported as "too few".
    @field_validator("rules")
    @classmethod
    def _check_rules(cls, rules: tuple[FoldRule, ...], info: ValidationInfo) -> tuple[FoldRule, ...]:
        if "released" not in info.data:
            return rules
        if info.data["released"] is None and not rules:
            raise ValueError("at least one rule is needed, or `released`")
        if info.data["released"] is not None and rules:
            raise ValueError("`released` gives every fold; leave out one of the two")
        return rules

    @model_validator(mode="after")
    def _check_sealed(self) -> Self:
        if self.sealed and self.released is not None:
            raise ValueError("a released split draws all folds anew for every seed; write `rules` to seal one")
        unknown = [fold for fold in self.sealed if not any(fold in rule.take for rule in self.rules)]
        if unknown and self.rules:
            raise ValueError(f"sealed: no rule takes {unknown[0]!r}")
        return self


def draw_folds(
    config: FoldsConfig,
    labels: Rows,
    parts: NDArray[np.str_] | None,
    identities: Rows | None,
    experiment_seed: int,
    seed_index: int,
) -> Folds:
    """Return fold -> row ids (int64, in drawn order, hence shuffled). Equal arguments give equal folds.

    Every fold is stratified by class: class counts are proportional to what is left of the rule's rows, rounded by
    largest remainder (ties: lower class id first). A released split is not stratified.

    Args:
        labels: (N,) class ids.
        parts: (N,) part names, or None.
        identities: (N,) ids of persons, or None.

    Raises:
        ConfigError: a rule matches no row or asks for more than it has, a person is on two of the three sides
            (private folds, `public`, `control`), a private class is in `control`, or the released split is of other
            data.
    """
    if config.released is not None:
        return _released_folds(config.released, labels, parts, seed_index)
    pools = _pools(config, labels, parts, identities)
    shared = numpy_generator(derive_seed(experiment_seed, "folds/shared"))
    sealed = numpy_generator(derive_seed(experiment_seed, "folds/sealed"))
    private = numpy_generator(derive_seed(experiment_seed, "folds/private", seed_index))
    drawn: dict[str, list[Rows]] = {}
    left: list[Rows] = []
    counts = []
    for number, (rule, pool) in enumerate(zip(config.rules, pools, strict=True)):
        capped = pool if rule.per_class_max is None else _cap(pool, labels, rule.per_class_max, shared)
        counts.append(_counts(number, rule, len(capped)))
        left.append(_draw_rule(drawn, counts[-1], _DRAWN_ONCE, capped, labels, shared))
    unsealed = tuple(fold for fold in PRIVATE if fold not in config.sealed)
    for rule_counts, pool in zip(counts, left, strict=True):
        pool = _draw_rule(drawn, rule_counts, config.sealed, pool, labels, sealed)
        _draw_rule(drawn, rule_counts, unsealed, pool, labels, private)
    streams = dict.fromkeys(_DRAWN_ONCE, shared) | dict.fromkeys(config.sealed, sealed)
    folds = {fold: _merge(rows, streams.get(fold, private)) for fold, rows in drawn.items()}
    if CONTROL in folds:
        _check_control(labels[folds[CONTROL]], private_classes(config, labels, parts, identities))
    if identities is not None:
        _check_identities(folds, identities)
    return folds


def private_classes(
    config: FoldsConfig, labels: Rows, parts: NDArray[np.str_] | None, identities: Rows | None
) -> tuple[int, ...]:
    """Return the target's classes, ascending: the same for every seed. Class c of the target is the c-th of them.

    Raises:
        ConfigError: no rule fills a private fold, or one draws from classes that `private_classes` does not list.
    """
    if config.released is not None:
        found = {int(label) for label in np.unique(labels)}
    else:
        pools = _pools(config, labels, parts, identities)
        private = [
            pool for rule, pool in zip(config.rules, pools, strict=True) if any(fold in PRIVATE for fold in rule.take)
        ]
        if not private:
            raise ConfigError(f"data.folds.rules: no rule fills a private fold ({', '.join(PRIVATE)})")
        found = {int(label) for label in np.unique(labels[np.concatenate(private)])}
    if config.private_classes is None:
        return tuple(sorted(found))
    extra = sorted(found - set(config.private_classes))
    if extra:
        raise ConfigError(f"data.folds: private folds draw from class {extra[0]}, which private_classes does not list")
    return tuple(sorted(set(config.private_classes)))


def relabel(labels: Rows, classes: tuple[int, ...]) -> Rows:
    """Return (N,) int64 positions of `labels` in the ascending `classes`; -1 for labels that are not among them."""
    known = np.asarray(classes, dtype=np.int64)
    position = np.searchsorted(known, labels).clip(max=len(known) - 1)
    return np.where(known[position] == labels, position, -1).astype(np.int64)


def fold_digest(data_digest: str, image_size: int | None, rows: Rows) -> str:
    """Return the SHA-256 of a fold's content: the data set's digest, the loaded size, and its rows in order."""
    ids = sha256_hex(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    return sha256_hex(canonical_json({"data": data_digest, "image_size": image_size, "rows": ids}))


def _released_folds(split: ReleasedSplit, labels: Rows, parts: NDArray[np.str_] | None, seed_index: int) -> Folds:
    official_parts = np.repeat(["train", "test"], [CIFAR_TRAIN_ROWS, CIFAR_ROWS - CIFAR_TRAIN_ROWS])
    if len(labels) != CIFAR_ROWS or parts is None or (parts != official_parts).any():
        raise ConfigError(
            f"data.folds.released: {split.of} has a released split of cifar10 and cifar100 only; use `rules`"
        )
    folds = relaxloss_cifar(CIFAR_ROWS, split.seed + seed_index)
    reserve = folds.pop("reference")
    val, rest = reserve[:_RELEASED_VAL], reserve[_RELEASED_VAL:]
    half = len(rest) // 2
    return {**folds, "val": val, "reference": rest[:half], "shadow_reference": rest[half:]}


def _pools(config: FoldsConfig, labels: Rows, parts: NDArray[np.str_] | None, identities: Rows | None) -> list[Rows]:
    """Return each rule's rows, ascending; a row goes to the first rule that it matches."""
    free = np.ones(len(labels), dtype=np.bool_)
    pools = []
    for number, rule in enumerate(config.rules):
        matches = _matches(rule.from_, labels, parts, identities, f"data.folds.rules.{number}.from")
        pool = np.flatnonzero(free & matches)
        if len(pool) == 0:
            reason = "earlier rules took all of them" if matches.any() else "no row satisfies its conditions"
            raise ConfigError(f"data.folds.rules.{number}.from selects no rows: {reason}")
        free &= ~matches
        pools.append(pool.astype(np.int64))
    return pools


def _matches(
    selection: FoldSelection, labels: Rows, parts: NDArray[np.str_] | None, identities: Rows | None, where: str
) -> NDArray[np.bool_]:
    matches = np.ones(len(labels), dtype=np.bool_)
    if selection.classes is not None:
        known = set(np.unique(labels).tolist())
        unknown = sorted(set(selection.classes) - known)
        if unknown:
            raise ConfigError(f"{where}.classes: no class {unknown[0]}; classes are {min(known)} to {max(known)}")
        matches &= np.isin(labels, selection.classes)
    if selection.part is not None:
        names = [] if parts is None else sorted(set(np.unique(parts).tolist()))
        if selection.part not in names:
            raise ConfigError(f"{where}.part: no part {selection.part!r}; parts are {', '.join(names) or 'not known'}")
        matches &= parts == selection.part
    if selection.needs_identities:
        if identities is None:
            raise ConfigError(f"{where}: this data set has no identities; select by classes or part")
        matches &= np.isin(identities, _selected_identities(selection, identities, where))
    return matches


def _selected_identities(selection: FoldSelection, identities: Rows, where: str) -> Rows:
    found, counts = np.unique(identities, return_counts=True)
    fits = (counts >= (selection.min_images or 0)) & (counts <= (selection.max_images or len(identities)))
    found, counts = found[fits], counts[fits]
    if selection.first_identities is None:
        return found
    if selection.first_identities > len(found):
        raise ConfigError(f"{where}.first_identities asks for {selection.first_identities} of {len(found)} identities")
    return found[np.argsort(-counts, kind="stable")[: selection.first_identities]]


def _counts(number: int, rule: FoldRule, available: int) -> dict[str, int]:
    """Return fold -> number of rows, with "rest" resolved."""
    fixed = sum(count for count in rule.take.values() if count != "rest")
    needed = fixed + ("rest" in rule.take.values())
    if needed > available:
        rest = " and leaves nothing for the rest" if fixed == available else ""
        raise ConfigError(f"data.folds.rules.{number}.take asks for {fixed} rows{rest}; its selection has {available}")
    return {fold: available - fixed if count == "rest" else count for fold, count in rule.take.items()}


def _draw_rule(
    drawn: dict[str, list[Rows]],
    counts: dict[str, int],
    folds: tuple[str, ...],
    pool: Rows,
    labels: Rows,
    generator: np.random.Generator,
) -> Rows:
    """Draw those of a rule's folds that are in `folds`, in the order of `folds`; return the rows that are left.

    The order in which a YAML lists its folds has no meaning.
    """
    for fold in folds:
        if fold in counts:
            taken, pool = _draw(pool, labels, counts[fold], generator)
            drawn.setdefault(fold, []).append(taken)
    return pool


def _draw(pool: Rows, labels: Rows, count: int, generator: np.random.Generator) -> tuple[Rows, Rows]:
    """Return `count` rows, stratified and in random order, and the other rows, ascending."""
    order = generator.permutation(pool)
    classes, inverse = np.unique(labels[order], return_inverse=True)
    quotas = _largest_remainder(np.bincount(inverse, minlength=len(classes)), count)
    is_taken = _rank_in_class(inverse) < quotas[inverse]
    return order[is_taken], np.sort(order[~is_taken])


def _cap(pool: Rows, labels: Rows, most: int, generator: np.random.Generator) -> Rows:
    order = generator.permutation(pool)
    inverse = np.unique(labels[order], return_inverse=True)[1]
    return np.sort(order[_rank_in_class(inverse) < most])


def _rank_in_class(classes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return for each element how many earlier ones have its class."""
    by_class = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[by_class], np.arange(classes.max(initial=-1) + 1))
    rank = np.empty(len(classes), dtype=np.intp)
    rank[by_class] = np.arange(len(classes)) - starts[classes[by_class]]
    return rank


def _largest_remainder(sizes: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Split `count` <= sum(sizes) over the classes in proportion to `sizes`, in whole numbers."""
    total = int(sizes.sum())
    quotas, remainders = np.divmod(sizes.astype(np.int64) * count, total)
    missing = count - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return quotas.astype(np.intp)


def _merge(drawn: list[Rows], generator: np.random.Generator) -> Rows:
    """Join what several rules gave one fold, shuffled, so that no prefix of it favors a rule."""
    return drawn[0] if len(drawn) == 1 else generator.permutation(np.concatenate(drawn))


def _check_control(labels: Rows, private: tuple[int, ...]) -> None:
    common = np.intersect1d(labels, private)
    if len(common):
        raise ConfigError(
            f"data.folds: {len(common)} classes (the first: {common[0]}) are private and in {CONTROL}; the control "
            "must not know them: let a rule of other classes take it"
        )


def _check_identities(folds: Folds, identities: Rows) -> None:
    people = {fold: np.unique(identities[rows]) for fold, rows in folds.items()}
    for outside, insiders in (("public", PRIVATE), (CONTROL, ("public", *PRIVATE))):
        for fold in insiders:
            if outside not in people or fold not in people:
                continue
            common = np.intersect1d(people[outside], people[fold])
            if len(common):
                raise ConfigError(
                    f"data.folds: {len(common)} identities (the first: {common[0]}) are in both {outside} and {fold}; "
                    "give them to different rules by classes, min_images and max_images"
                )
