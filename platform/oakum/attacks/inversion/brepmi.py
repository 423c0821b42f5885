"""BREP-MI: with the target's labels alone, move a latent away from the border of its class."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from oakum.attacks.access import Access, Knowledge, Target, device_of
from oakum.attacks.inversion._latent_search import frozen
from oakum.attacks.inversion.base import InversionAttack
from oakum.config import ConfigError
from oakum.models.priors.base import images_of
from oakum.registry import Source
from oakum.seeding import derive_seed, keyed_normal, sample_keys

# Latents tried at a time for each row while its start is sought.
_START_BATCH = 64
# A step is the radius divided by this, at most _LONGEST_STEP.
_STEP_DIVISOR = 3.0
_LONGEST_STEP = 3.0


@dataclass(frozen=True)
class Starts:
    """Latents that the target gives their class; B rows.

    Attributes:
        latents: (B, Z); the last one drawn where none was found.
        is_found: (B,) bool.
        queries: (B,) int64 labels asked for each row.
    """

    latents: Tensor
    is_found: Tensor
    queries: Tensor


@dataclass(frozen=True)
class Repulsion:
    """Where a search ended; B rows.

    Attributes:
        latents: (B, Z) centers of the largest spheres found inside their class; the start where there was none.
        radii: (B,) of the spheres tried last.
        queries: (B,) int64 labels asked for each row, those spent before included.
    """

    latents: Tensor
    radii: Tensor
    queries: Tensor


def find_starts(
    classes: Tensor,
    labels_of: Callable[[Tensor], Tensor],
    draw: Callable[[int, Tensor], Tensor],
    *,
    latent_size: int,
    clip: float,
    max_queries: int,
) -> Starts:
    """Return for each row the first latent drawn that has its class.

    Args:
        classes: (B,) int64.
        labels_of: latents (N, Z) -> the target's labels (N,) int64.
        draw: number of the batch, rows (R,) int64 -> standard normal latents (R, 64, Z), clipped here to [-clip, clip].
        max_queries: labels that a row may ask for.
    """
    latents = torch.empty(len(classes), latent_size, device=classes.device)
    is_found, queries = torch.zeros_like(classes, dtype=torch.bool), torch.zeros_like(classes)
    rows = torch.arange(len(classes), device=classes.device)
    for batch in range(-(-max_queries // _START_BATCH)):
        drawn = draw(batch, rows)[:, : max_queries - batch * _START_BATCH].clamp(-clip, clip)
        count = drawn.shape[1]
        hits = labels_of(drawn.flatten(0, 1)).view(len(rows), count) == classes[rows, None]
        has_hit = hits.any(dim=1)
        chosen = torch.where(has_hit, hits.int().argmax(dim=1), count - 1)
        latents[rows] = drawn[torch.arange(len(rows), device=rows.device), chosen]
        queries[rows] += count
        is_found[rows] = has_hit
        rows = rows[~has_hit]
        if not len(rows):
            break
    return Starts(latents, is_found, queries)


def repel_from_border(
    starts: Starts,
    classes: Tensor,
    labels_of: Callable[[Tensor], Tensor],
    draw: Callable[[int, Tensor], Tensor],
    *,
    points: int,
    radius: float,
    growth: float,
    grow_share: float,
    clip: float,
    patience: int,
    max_queries: int,
) -> Repulsion:
    """Grow a sphere inside each row's class; move its center away from the points that fall outside.

    A round asks for the labels of `points` latents z + r u, with u on the unit sphere. When more than `grow_share` of
    them have the row's class, z is kept as the row's result and r grows by the factor `growth`. Otherwise
    z' = clip(z - min(r / 3, 3) s / points, -clip, clip), with s the sum of u over the points outside, replaces z if its
    label, one more query, is the row's class. Rows do not influence each other; those without a start stay as they are.

    Args:
        starts: of B rows.
        classes: (B,) int64.
        labels_of: latents (N, Z) -> the target's labels (N,) int64.
        draw: number of the round, rows (R,) int64 -> standard normal directions (R, points, Z).
        patience: rounds without a larger sphere after which a row stops.
        max_queries: labels that a row may ask for; it stops when another round could exceed them.
    """
    z, found, queries = starts.latents.clone(), starts.latents.clone(), starts.queries.clone()
    radii = z.new_full((len(z),), radius)
    idle = torch.zeros_like(queries)
    for turn in itertools.count():
        may_go_on = starts.is_found & (idle < patience) & (queries + points + 1 <= max_queries)
        rows = torch.nonzero(may_go_on).flatten()
        if not len(rows):
            break
        units = F.normalize(draw(turn, rows), dim=2)
        around = z[rows, None] + radii[rows, None, None] * units
        is_inside = labels_of(around.flatten(0, 1)).view(len(rows), points) == classes[rows, None]
        queries[rows] += points
        does_grow = is_inside.float().mean(dim=1) > grow_share

        larger = rows[does_grow]
        found[larger] = z[larger]
        radii[larger] *= growth
        idle[larger] = 0

        smaller = rows[~does_grow]
        if len(smaller):
            away = -(~is_inside[:, :, None] * units)[~does_grow].sum(dim=1) / points
            length = (radii[smaller] / _STEP_DIVISOR).clamp(max=_LONGEST_STEP)
            moved = (z[smaller] + length[:, None] * away).clamp(-clip, clip)
            stays = labels_of(moved) == classes[smaller]
            z[smaller[stays]] = moved[stays]
            queries[smaller] += 1
            idle[smaller] += 1
    return Repulsion(found, radii, queries)


class BREPMI(InversionAttack):
    """Boundary repulsion: reads labels and nothing else, so that no mask over a model's scores hinders it.

    Latents are drawn until the target gives one the class. Around it a sphere grows as long as its points keep the
    class, and its center moves away from those that do not. A restart that finds no start within `max_queries` labels
    ends as the last latent drawn: an attempt that failed, and is judged as one.

    Differs from the released code: classes are those of the experiment, not the first that random latents hit; every
    restart has a cap of queries, in which the search for its start is counted; a rejected move counts as a round (there
    it does not, and a search may never end); a sphere that grows does not move in the same round; no score is read, not
    even for a log.
    """

    source = Source(
        title="Label-Only Model Inversion Attacks via Boundary Repulsion",
        authors="Mostafa Kahla, Si Chen, Hoang Anh Just, Ruoxi Jia",
        venue="CVPR",
        year=2022,
        link="https://arxiv.org/abs/2203.01925",
    )
    access: ClassVar[Access] = Access.LABEL

    class Config(InversionAttack.Config):
        """Settings of BREP-MI; the defaults are those of the released code, but for the cap.

        Attributes:
            points: on a sphere, asked for in each round.
            radius: of the first sphere, in units of the latents' standard deviation.
            growth: factor of the radius when a sphere lies inside the class.
            grow_share: a sphere lies inside when more than this share of its points has the class; 0.97 asks for all of
                32.
            clip: bound on the absolute value of a center's entries.
            patience: rounds without a larger sphere after which a restart ends.
            max_queries: labels that one restart may ask for.
        """

        points: int = Field(default=32, ge=1)
        radius: float = Field(default=2.0, gt=0)
        growth: float = Field(default=1.3, gt=1)
        grow_share: float = Field(default=0.875, ge=0, lt=1)
        clip: float = Field(default=1.5, gt=0)
        patience: int = Field(default=1000, ge=1)
        max_queries: int = Field(default=50_000, ge=1)

    config: Config

    def reconstruct(self, target: Target, classes: Tensor, knowledge: Knowledge) -> Tensor:
        """Return reconstructions (T, restarts, C, H, W), float32 in [0, 1], on the CPU.

        Raises:
            ConfigError: no prior was given.
        """
        generator = knowledge.generator
        if generator is None:
            raise ConfigError("attack brepmi needs a prior with a generator; add one to `priors`")
        config, device, size = self.config, device_of(generator), knowledge.latent_size
        cells = [(label, restart) for label in classes.tolist() for restart in range(config.restarts)]
        wanted = classes.to(device).repeat_interleave(config.restarts)

        @torch.no_grad()
        def labels_of(latents: Tensor) -> Tensor:
            labels = []
            for part in latents.split(config.max_rows):
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    images = generator(part)
                labels.append(torch.from_numpy(target.labels_of(images.float().clamp(0, 1))))
            return torch.cat(labels).to(device)

        def drawing(role: str, count: int) -> Callable[[int, Tensor], Tensor]:
            keys = torch.tensor([derive_seed(knowledge.seed, role, *cell) for cell in cells], device=device)
            return lambda turn, rows: keyed_normal(sample_keys(turn, keys[rows]), count * size).view(-1, count, size)

        with frozen(generator):
            starts = find_starts(
                wanted,
                labels_of,
                drawing("brepmi/start", _START_BATCH),
                latent_size=size,
                clip=config.clip,
                max_queries=config.max_queries,
            )
            found = repel_from_border(
                starts,
                wanted,
                labels_of,
                drawing("brepmi/sphere", config.points),
                points=config.points,
                radius=config.radius,
                growth=config.growth,
                grow_share=config.grow_share,
                clip=config.clip,
                patience=config.patience,
                max_queries=config.max_queries,
            )
            images = images_of(generator, found.latents, config.max_rows)
        return images.reshape(len(classes), config.restarts, *images.shape[1:])
