"""Adversarial regularization: train the target against a surrogate membership attack."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from oakum.config import ConfigError
from oakum.defenses._advreg_surrogate import Form, Inputs, LayoutName, Penalty, Surrogate, penalties, surrogate_loss
from oakum.defenses.base import Defense
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.seeding import derive_seed, torch_generator
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

REFERENCE = "reference"
SURROGATE = "surrogate"
SURROGATE_OPTIMIZER = "surrogate_optimizer"
SURROGATE_ACCURACY = "advreg/surrogate_accuracy"
SURROGATE_STEPS = "advreg/surrogate_steps"


class AdvReg(Defense):
    """Adds alpha times a penalty on D(f(x), y), the surrogate's belief that a training sample is a member.

    The surrogate learns to tell members from the reference fold while the target trains. After each of the
    `warmup_epochs`, in which the target minimizes the cross-entropy alone, the surrogate passes
    `surrogate_warmup_epochs` times over the members; then every step of the target follows `surrogate_steps` of the
    surrogate. A surrogate step takes a batch of members and one of non-members, each of the recipe's batch size and
    not augmented, and asks the target in eval mode. All workers take the same surrogate steps. The history shows the
    steps of each epoch (`advreg/surrogate_steps`) and the surrogate's balanced accuracy at D = 0.5 on rows that it is
    never trained on (`advreg/surrogate_accuracy`).

    | | surrogate reads | surrogate minimizes | penalty |
    |---|---|---|---|
    | `paper` | softmax, one-hot label | cross-entropy | 0.5 log D |
    | `released_code` | logits, one-hot label | squared error | D - 0.5 |
    | `released_code`, surrogate `cifar` | logits, label of +1 and -1 | squared error | D^2 |
    | `relaxloss` | sorted logits, label of +1 and -1 | squared error | D - 0.5 |
    | `relaxloss` on images | sorted logits | squared error | D - 0.5 |

    `relaxloss` is the form in the code of RelaxLoss (Chen et al. 2022). All penalties but `centered_square` reward D
    below 0.5 too, so that members may come to look less like members than others do: judge attacks in both directions.

    Differs from the paper: the target's optimizer, epochs and batch size are the recipe's; the target's step has no
    term for the reference samples; warm-up and layouts of the surrogate are those of the authors' code.

    Differs from the released code: both players meet every row once a pass, in an order drawn for each pass, where
    the code drops remainders and leaves some surrogate calls without data; surrogate steps do not differentiate the
    target; `held_out` rows do not train the surrogate; the non-members are never the test fold. All layers of surrogate
    `image` are trained, unless `freeze_hidden`.
    """

    source = Source(
        title="Machine Learning with Membership Privacy using Adversarial Regularization",
        authors="Milad Nasr, Reza Shokri, Amir Houmansadr",
        venue="CCS",
        year=2018,
        link="https://arxiv.org/abs/1807.05852",
    )
    searchable: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = (REFERENCE,)
    schedulable: ClassVar[tuple[str, ...]] = ("alpha",)

    class Config(Defense.Config):
        """Settings of adversarial regularization; None follows the variant.

        Attributes:
            alpha: weight of the penalty; 0 trains the target as `none` does. Nasr et al. use 2 (Texas100), 3
                (Purchase100) and 6 (CIFAR-100) in the paper, 1, 3 and 1 in their code; RelaxLoss sweeps 0.8 to 1.8.
            variant: the paper's objective, what the authors' code computes, or the form in the code of RelaxLoss.
            surrogate: layout of the surrogate. `texas`, `purchase` and `cifar` are those of the authors' code for these
                data sets, `texas` also that of RelaxLoss for tabular rows; `image` (100 hidden units, no label) is
                that of RelaxLoss for images. None takes `image` for `relaxloss` on images, otherwise `texas`.
            inputs: what the surrogate sees of the target's answer.
            penalty: what the target pays for each sample, see `penalties`.
            freeze_hidden: train the surrogate's last layer alone, as the code of RelaxLoss does for images.
            surrogate_learning_rate: of the surrogate's Adam. The authors use 1e-3 (Texas100), 1e-4 (Purchase100) and
                1e-5 (CIFAR-100), RelaxLoss 1e-3.
            surrogate_steps: per step of the target; a mean where it is not whole. The authors take 25 (Texas100), 26
                (Purchase100) and 1.5 (CIFAR-100), RelaxLoss 25 for tabular rows and 1 for images.
            warmup_epochs: epochs of ordinary training at the start; 1 in the authors' code (CIFAR-100: 4) and in that
                of RelaxLoss (images: 3).
            surrogate_warmup_epochs: passes of the surrogate after each of them; 5 in the authors' code (CIFAR-100: 0)
                and in that of RelaxLoss.
            held_out: how many rows of either side are kept from the surrogate to measure its accuracy, as a share of
                the smaller of the training and the reference fold.
        """

        alpha: float = Field(default=1.0, ge=0)
        variant: Literal["paper", "released_code", "relaxloss"] = "paper"
        surrogate: LayoutName | None = None
        inputs: Inputs | None = None
        penalty: Penalty | None = None
        freeze_hidden: bool = False
        surrogate_learning_rate: float = Field(default=1e-3, gt=0)
        surrogate_steps: float = Field(default=1.0, gt=0)
        warmup_epochs: int = Field(default=1, ge=0)
        surrogate_warmup_epochs: int = Field(default=5, ge=0)
        held_out: float = Field(default=0.1, ge=0, lt=1)

    config: Config

    def check_training(self, recipe: Recipe, train_size: int) -> list[str]:
        """Refuse a warm-up that leaves no epoch with the penalty."""
        if self.config.alpha > 0 and self.config.warmup_epochs >= recipe.epochs:
            raise ConfigError(
                f"advreg: warmup_epochs {self.config.warmup_epochs} leaves none of the {recipe.epochs} epochs for the "
                "penalty; lower defense.warmup_epochs or raise recipe.epochs"
            )
        return super().check_training(recipe, train_size)

    def form(self, is_image: bool) -> Form:
        """Return the form of the game for images or tabular rows."""
        config = self.config
        is_relaxloss = config.variant == "relaxloss"
        layout = config.surrogate or ("image" if is_relaxloss and is_image else "texas")
        is_cifar_code = config.variant == "released_code" and layout == "cifar"
        inputs: dict[str, Inputs] = {"paper": "softmax", "released_code": "logits", "relaxloss": "sorted_logits"}
        penalty: Penalty = "log" if config.variant == "paper" else "square" if is_cifar_code else "linear"
        return Form(
            layout=layout,
            inputs=config.inputs or inputs[config.variant],
            has_signed_labels=is_relaxloss or is_cifar_code,
            loss="cross_entropy" if config.variant == "paper" else "squared_error",
            penalty=config.penalty or penalty,
            freezes_hidden=config.freeze_hidden,
        )

    def prepare(self, state: TrainState) -> TrainState:
        """Add the surrogate and its optimizer to what checkpoints hold; its weights depend on the seed alone."""
        assert isinstance(state.model, Classifier)
        generator = torch_generator(derive_seed(state.seed, "surrogate/init"))
        surrogate = Surrogate(self.form(state.model.input_shape.is_image), state.num_classes, generator)
        surrogate.to(device=state.device, dtype=next(state.model.parameters()).dtype)
        trained = [parameter for parameter in surrogate.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.config.surrogate_learning_rate)
        state.extras |= {SURROGATE: surrogate, SURROGATE_OPTIMIZER: optimizer}
        return state

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean of the cross-entropy plus, after the warm-up, alpha times the penalty of each sample.

        No gradient reaches the surrogate.
        """
        logits = state.forward(batch.x)
        terms = F.cross_entropy(logits, batch.y, reduction="none")
        if self.config.alpha > 0 and state.epoch >= self.config.warmup_epochs:
            surrogate = state.extras[SURROGATE]
            constants = {name: parameter.detach() for name, parameter in surrogate.named_parameters()}
            odds = functional_call(surrogate, constants, (logits, batch.y))
            terms = terms + self.config.alpha * penalties(odds, surrogate.form.penalty)
        return state.batch_mean(terms)

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Train target and surrogate in turn.

        Raises:
            ConfigError: the reference fold is missing or empty.
        """
        if not len(loop.folds.get(REFERENCE, ())):
            raise ConfigError(
                "advreg trains its surrogate on non-members: it needs fold 'reference'; add it to `folds.rules`"
            )
        player = _SurrogatePlayer(self.config, state, loop)
        loop.on_epoch = player.reporting_to(loop.on_epoch)

        def loss(state: TrainState, batch: Batch) -> Tensor:
            player.play()
            return self.loss(state, batch)

        return loop.run(state, loss)


class _SurrogatePlayer:
    """Takes the surrogate's steps; what it does follows from the state's seed, epoch and step alone."""

    def __init__(self, config: AdvReg.Config, state: TrainState, loop: TrainingLoop) -> None:
        self._config = config
        self._state = state
        self._batch_size = loop.recipe.batch_size
        reference = loop.folds[REFERENCE]
        held_out = int(config.held_out * min(len(loop.train), len(reference)))
        self._members = _Side.divide("members", loop.train, held_out, state.seed)
        self._others = _Side.divide("others", reference, held_out, state.seed)
        self._epoch: int | None = None

    def play(self) -> None:
        """Take the surrogate's steps that are due before the target's next step."""
        epoch, warmup = self._state.epoch, self._config.warmup_epochs
        if epoch != self._epoch:
            self._epoch = epoch
            if 1 <= epoch <= warmup:
                rows = self._config.surrogate_warmup_epochs * len(self._members.trained)
                steps = math.ceil(rows / self._batch_size)
                for step in range((epoch - 1) * steps, epoch * steps):
                    self._step("warmup", step)
        if epoch >= warmup:
            ratio, step = self._config.surrogate_steps, self._state.step
            for due in range(math.floor(step * ratio), math.floor((step + 1) * ratio)):
                self._step("game", due)

    def reporting_to(self, on_epoch: Callable[[dict[str, Any]], None] | None) -> Callable[[dict[str, Any]], None]:
        """Return a listener that adds the surrogate's accuracy to an epoch's row before it calls `on_epoch`."""

        def report(row: dict[str, Any]) -> None:
            if len(self._members.held_out):
                found, refused = self._held_out_odds(self._members) > 0, self._held_out_odds(self._others) <= 0
                row[SURROGATE_ACCURACY] = (float(found.double().mean()) + float(refused.double().mean())) / 2
            if on_epoch is not None:
                on_epoch(row)

        return report

    def _step(self, phase: str, number: int) -> None:
        state = self._state
        members, others = (
            side.batch(phase, number, self._batch_size, state.seed) for side in (self._members, self._others)
        )
        x, y = (torch.cat(pair).to(state.device) for pair in zip(members, others, strict=True))
        logits = self._answers(x)
        surrogate, optimizer = state.extras[SURROGATE], state.extras[SURROGATE_OPTIMIZER]
        optimizer.zero_grad(set_to_none=True)
        member_odds, other_odds = surrogate(logits, y).split(self._batch_size)
        surrogate_loss(member_odds, other_odds, surrogate.form.loss).backward()
        optimizer.step()
        state.counters[SURROGATE_STEPS] += 1

    @torch.no_grad()
    def _answers(self, x: Tensor) -> Tensor:
        """Return the target's logits (B, K) in eval mode; its training flag is restored."""
        model = self._state.model
        was_training = model.training
        model.eval()
        try:
            return self._state.forward(x)
        finally:
            model.train(was_training)

    @torch.no_grad()
    def _held_out_odds(self, side: _Side) -> Tensor:
        parts = []
        for index in side.held_out.split(self._batch_size):
            x, y = side.data.x[index].to(self._state.device), side.data.y[index].to(self._state.device)
            parts.append(self._state.extras[SURROGATE](self._answers(x), y))
        return torch.cat(parts)


@dataclass(frozen=True)
class _Side:
    """The members or the others: positions (int64) in the fold that train the surrogate, and those that measure it."""

    name: str
    data: LabeledData
    trained: Tensor
    held_out: Tensor

    @classmethod
    def divide(cls, name: str, data: LabeledData, held_out: int, seed: int) -> _Side:
        order = _order(derive_seed(seed, f"surrogate/held_out/{name}"), len(data))
        return cls(name, data, order[held_out:], order[:held_out])

    def batch(self, phase: str, number: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return x and y of batch `number` of an endless stream of passes over the rows, each in its own order."""
        count = len(self.trained)
        positions = torch.arange(number * size, (number + 1) * size)
        rows = []
        for turn in range(number * size // count, ((number + 1) * size - 1) // count + 1):
            order = _order(derive_seed(seed, f"surrogate/{phase}/{self.name}", turn), count)
            rows.append(order[positions[positions // count == turn] % count])
        index = self.trained[torch.cat(rows)]
        return self.data.x[index], self.data.y[index]


@lru_cache(maxsize=8)
def _order(seed: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch_generator(seed))
