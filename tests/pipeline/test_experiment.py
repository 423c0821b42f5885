"""What a YAML may say, and what is said to whom writes something else."""

from __future__ import annotations

from typing import Any

import pytest

from oakum import registry
from oakum.config import ConfigError, apply_overrides
from oakum.pipeline.experiment import resolve_experiment


def problem(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_experiment(data, "tiny.yaml")
    return str(caught.value)


def test_methods_are_loaded_with_their_defaults(tiny: dict[str, Any]) -> None:
    experiment = resolve_experiment(tiny, "tiny.yaml")
    document = experiment.document()
    assert document["settings"]["none"] == {"name": "none", "norm": "model"}
    assert document["settings"]["relaxloss"]["variant"] == "paper"
    assert document["attacks"]["membership"] == [{"name": "loss"}, {"name": "entropy"}]
    assert document["model"].items() >= {"name": "small_cnn", "width": 4}.items()
    assert document["evaluation"]["model"]["dropout"] == 0.3
    assert document["priors"]["wgan_gp"]["method"]["gradient_penalty"] == 10.0
    assert document["folds"]["rules"][0]["from"]["classes"] == [0, 1, 2, 3, 4]


def test_the_resolved_document_resolves_to_itself(tiny: dict[str, Any]) -> None:
    document = resolve_experiment(tiny, "tiny.yaml").document()
    assert resolve_experiment(document, "again").document() == document


def test_canaries_say_which_part_only_when_it_is_one(tiny: dict[str, Any]) -> None:
    assert resolve_experiment(tiny, "t").document()["canaries"] == {"fold": "canary"}
    halved = apply_overrides(tiny, ["canaries.part=confirmation", "folds.sealed=[canary]"])
    document = resolve_experiment(halved, "t").document()
    assert document["canaries"] == {"fold": "canary", "part": "confirmation"}
    assert resolve_experiment(document, "again").document() == document


def test_aliases_are_accepted(tiny: dict[str, Any]) -> None:
    tiny["settings"] = {"a": "vanilla", "b": "reg"}
    assert {method.name for method in resolve_experiment(tiny, "t").settings.values()} == {"none"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("recipe.epoch=3", "tiny.yaml: recipe.epoch: unknown key; did you mean 'epochs'?"),
        ("setings={}", "tiny.yaml: setings: unknown key; did you mean 'settings'?"),
        ("settings.relaxloss.alhpa=1.0", "tiny.yaml: settings.relaxloss.alhpa: unknown key; did you mean 'alpha'?"),
        ("model.widht=4", "tiny.yaml: model.widht: unknown key; did you mean 'width'?"),
        ("evaluation.recipe.epochz=1", "evaluation.recipe.epochz: unknown key; did you mean 'epochs'?"),
        (
            "priors.wgan_gp.method.widht=4",
            "tiny.yaml: priors.wgan_gp.method.widht: unknown key; did you mean 'width'?",
        ),
        ("attacks.inversion.0.restart=4", "attacks.inversion.0.restart: unknown key; did you mean 'restarts'?"),
        ("folds.rules.0.tkae={}", "folds.rules.0.tkae: unknown key; did you mean 'take'?"),
        ("recipe.epochs=three", "tiny.yaml: recipe.epochs:"),
        ("recipe.epochs=-1", "tiny.yaml: recipe.epochs: "),
        ("recipe.epochs=0", "recipe: epochs 0 is for evaluation models with initial_weights; targets need 1 or more"),
        (
            "evaluation.recipe={epochs: 0, milestones: [1], select: best_val}",
            "evaluation.recipe: epochs 0 trains nothing, so these have no effect: milestones, select; remove them",
        ),
        ("recipe.learning_rate=1e-3", "YAML reads '1e-3' as text, not as a number; write 0.001"),
        ("recipe.learning_rate=.nan", "tiny.yaml: recipe.learning_rate:"),
        ("settings.relaxloss.alpha=-1", "tiny.yaml: settings.relaxloss.alpha:"),
        ("settings.relaxloss.alpha=[1]", "tiny.yaml: settings.relaxloss.alpha:"),
        ("settings.relaxloss={name: relaxloss}", "tiny.yaml: settings.relaxloss.alpha: this key is required"),
        ("settings.relaxloss=relaxlos", "unknown defense 'relaxlos'; did you mean 'relaxloss'?"),
        ("settings.relaxloss={alpha: 1.0}", "tiny.yaml: settings.relaxloss: write `name:` with one of"),
        ("settings={}", "tiny.yaml: settings:"),
        ("model=smal_cnn", "tiny.yaml: model: unknown model 'smal_cnn'; did you mean 'small_cnn'?"),
        ("attacks.membership=[lss]", "attacks.membership.0: unknown membership attack 'lss'; did you mean 'loss'?"),
        ("attacks.membership=[loss, loss]", "attacks.membership: loss is listed twice"),
        (
            "priors.wgan_gp.method=wgan",
            "tiny.yaml: priors.wgan_gp.method: unknown prior 'wgan'; did you mean 'wgan_gp'?",
        ),
        ("priors={}", "attack 'gmi' searches a prior with critic and generator; add one under `priors:`"),
        ("prior={}", "tiny.yaml: prior: unknown key; did you mean 'priors'?"),
        ("attacks.inversion.0.prior=mine", "attack 'gmi': prior 'mine' is not under `priors`"),
        ("attacks.inversion.0.settings=[nonne]", "no setting 'nonne'; settings: none, relaxloss"),
        ("attacks.inversion.0.as=a/b", "attacks.inversion.0.as:"),
        ("evaluation=", "attacks.inversion needs an evaluation model; add `evaluation:`"),
        (
            "evaluation.model=small_cnn",
            "evaluation.model: an evaluation model must have another architecture than the target",
        ),
        ("seeds=[0, 0]", "seeds must be distinct and not negative"),
        ("seeds=[-1]", "seeds must be distinct and not negative"),
        ("seeds=[]", "tiny.yaml: seeds:"),
        ("name=a/b", "tiny.yaml: name: use letters, digits"),
        ("name=.hidden", "tiny.yaml: name: use letters, digits"),
        ("name=", "tiny.yaml: name:"),
        ("experiment_seed=-1", "tiny.yaml: experiment_seed:"),
        ("execution.workers=0", "tiny.yaml: execution.workers:"),
        ("execution.thread=2", "did you mean 'threads'?"),
        ("data.image_size=2", "tiny.yaml: data.image_size:"),
        ("canaries.part=half", "tiny.yaml: canaries.part:"),
        ("canaries.part=search", "canaries.part: 'search' is half of a fold that is drawn anew for every seed"),
    ],
)
def test_bad_input_is_explained(tiny: dict[str, Any], change: str, said: str) -> None:
    text = problem(apply_overrides(tiny, [change]))
    assert said in text and text.startswith("tiny.yaml: ")


def test_every_problem_has_a_line(tiny: dict[str, Any]) -> None:
    assert len(problem(apply_overrides(tiny, ["recipe.epochs=0", "seeds=[]", "nam=x"])).splitlines()) == 3


@pytest.mark.parametrize("name", [name for name in registry.available("defenses") if name != "none"])
def test_a_misspelled_option_of_any_defense_names_its_path(tiny: dict[str, Any], name: str) -> None:
    tiny["settings"] = {"mine": {"name": name, "no_such_option": 1}}
    assert "tiny.yaml: settings.mine.no_such_option: unknown key" in problem(tiny)


def test_code_named_in_a_yaml_is_never_run(tiny: dict[str, Any]) -> None:
    tiny["model"] = "oakum.models.mlp.MLP"
    assert "unknown model" in problem(tiny)
