"""RelaxLoss, scores, thresholds and AUC against the released code's outputs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.testing import assert_allclose

from oakum.attacks.membership import _scores
from oakum.defenses.relaxloss import relaxloss
from oakum.metrics import membership


def check_relaxloss(case) -> None:
    y = torch.from_numpy(case.at("y"))
    for name, detach in (("grad", False), ("grad_stopgrad", True)):
        logits = torch.from_numpy(case.at("logits")).requires_grad_(True)
        loss = relaxloss(
            logits,
            y,
            alpha=float(case.at("alpha")),
            epoch=int(case.at("epoch")),
            variant="released_code",
            flatten_incorrect_only=case.groups["kind"] == "image",
            upper=float(case.at("upper")),
            detach_targets=detach,
        ).mean()
        loss.backward()
        assert_allclose(loss.item(), case.at("loss"), rtol=1e-9)
        assert_allclose(logits.grad, case.at(name), rtol=1e-9, atol=1e-15)
    assert_allclose(torch.nn.functional.cross_entropy(logits, y).item(), case.at("ce_mean"), rtol=1e-9)
    assert_allclose(100 * (logits.argmax(1) == y).double().mean(), case.at("top1_percent"), rtol=1e-6)


def check_algorithm_1(case) -> None:
    """Without cap and with constant targets, odd epochs of the released code are the paper's flattening epochs."""
    if float(case.at("upper")) != 1.0 or case.groups["epoch"] != "1":
        return
    logits = torch.from_numpy(case.at("logits")).requires_grad_(True)
    terms = relaxloss(logits, torch.from_numpy(case.at("y")), alpha=float(case.at("alpha")), epoch=0, variant="paper")
    terms.mean().backward()
    assert_allclose(terms.mean().item(), case.at("loss"), rtol=1e-9)
    assert_allclose(logits.grad, case.at("grad_stopgrad"), rtol=1e-9, atol=1e-15)


def check_tabular_relaxloss(case) -> None:
    check_relaxloss(case)
    check_algorithm_1(case)


SCORES = {
    "conf": _scores.confidence_score,
    "entr": _scores.entropy_score,
    "m_entr": _scores.modified_entropy_score,
    "loss": _scores.loss_score,
}
SIGNS = {"conf": 1.0, "entr": -1.0, "m_entr": -1.0, "loss": -1.0}
SPOKEN = {"confidence": "conf", "entropy": "entr", "modified entropy": "m_entr", "loss": "loss"}


def check_scores(case) -> None:
    logits = torch.from_numpy(case.at("logits"))
    logs, y = logits.log_softmax(1).numpy(), case.at("y")
    assert_allclose(np.exp(logs), case.at("probs"), rtol=1e-9)
    for name, score in SCORES.items():
        assert_allclose(SIGNS[name] * score(logs, y), case.at(name), rtol=1e-9, atol=1e-14)
    assert ((logs.argmax(1) == y) == case.at("corr")).all()


def stored(case, role: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the file's signed scores, membership and labels of the shadow or target."""
    inside, outside = (case[f"metric/{role}_{side}/{name}"] for side in ("member", "nonmember"))
    scores = SIGNS[name] * np.concatenate([inside, outside])
    labels = np.concatenate([case[f"metric/{role}_{side}/y"] for side in ("member", "nonmember")])
    return scores, np.arange(len(scores)) < len(inside), labels


def check_threshold(case) -> None:
    scores, member, labels = stored(case, "shadow", case.groups["name"])
    classes = case[f"metric/threshold_perclass/{case.groups['name']}"].shape[0]
    if case.groups["scope"] == "global":
        assert membership.select_threshold(scores[member], scores[~member]) == case[case.name]
    else:
        assert (membership.select_class_thresholds(scores, member, labels, classes) == case[case.name]).all()


def check_accuracy(case) -> None:
    for spoken, expected in zip(case.at("names"), case.at("values"), strict=True):
        name = SPOKEN[str(spoken).removesuffix(" ACC")]
        shadow, shadow_member, shadow_y = stored(case, "shadow", name)
        scores, member, y = stored(case, "target", name)
        if case.groups["scope"] == "global":
            threshold = membership.select_threshold(shadow[shadow_member], shadow[~shadow_member])
        else:
            threshold = membership.select_class_thresholds(shadow, shadow_member, shadow_y, max(shadow_y) + 1)[y]
        assert_allclose(membership.balanced_accuracy(scores, member, threshold), expected, rtol=1e-12)


def check_auc(case) -> None:
    for spoken, expected in zip(case.at("names"), case.at("values"), strict=True):
        scores, member, _ = stored(case, "target", SPOKEN[str(spoken).removesuffix(" AUC")])
        assert_allclose(membership.auc(scores, member), expected, rtol=1e-12)


def check_correctness(case) -> None:
    inside, outside = (case[f"metric/target_{side}/corr"] for side in ("member", "nonmember"))
    scores, member = np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) < len(inside)
    assert_allclose(membership.balanced_accuracy(scores, member, 1.0), case[case.name], rtol=1e-12)


def check_threshold_edge(case) -> None:
    assert membership.select_threshold(case.at("member"), case.at("nonmember")) == case.at("threshold")


def check_entropy_edge(case) -> None:
    with np.errstate(divide="ignore"):
        logs = np.log(case.at("probs"))
    y = case.at("y")
    assert_allclose(-_scores.entropy_score(logs, y), case.at("entropy"), rtol=1e-9, atol=1e-15)
    assert_allclose(-_scores.modified_entropy_score(logs, y), case.at("m_entropy"), rtol=1e-9, atol=1e-15)


def check_benchmark(case) -> None:
    member = np.arange(case.at("target_member").shape[1] + case.at("target_nonmember").shape[1])
    member = member < case.at("target_member").shape[1]
    for row, sign in enumerate(case.at("signs")):
        for factor, suffix in ((-1.0 if sign == "-" else 1.0, ""), (1.0, "_plus")):
            sides = {
                name: factor * case.at(name)[row]
                for name in ("shadow_member", "shadow_nonmember", "target_member", "target_nonmember")
            }
            scores = np.concatenate([sides["target_member"], sides["target_nonmember"]])
            threshold = membership.select_threshold(sides["shadow_member"], sides["shadow_nonmember"])
            accuracy = membership.balanced_accuracy(scores, member, threshold)
            assert_allclose(accuracy, case.at(f"acc{suffix}")[row], rtol=1e-12)
            assert_allclose(membership.auc(scores, member), case.at(f"auc{suffix}")[row], rtol=1e-12)


def check_binary(case) -> None:
    scores, y, expected = case.at("score"), case.at("y"), case.at("auc_ap_f1_pos_frac")
    assert_allclose(membership.auc(scores, y == 1), expected[0], rtol=1e-12)
    assert_allclose(membership.average_precision(scores, y == 1), expected[1], rtol=1e-12)


OWNS = r"relaxloss/|metric/|threshold_edge/|entropy_edge/|benchmark/|metrics_binary/(?!accuracy)"
RULES = [
    (r"relaxloss/cases", None),
    (r"(?P<case>relaxloss/(?P<kind>image)/.*/ep(?P<epoch>\d+)/u[\d.]+)/.*", check_relaxloss),
    (r"(?P<case>relaxloss/(?P<kind>nonimage)/.*/ep(?P<epoch>\d+)/u[\d.]+)/.*", check_tabular_relaxloss),
    (r"(?P<case>metric/(shadow|target)_(non)?member)/.*", check_scores),
    (r"(?P<case>metric/threshold_(?P<scope>global|perclass)/(?P<name>\w+))", check_threshold),
    (r"(?P<case>metric/acc_(?P<scope>global|perclass))/.*", check_accuracy),
    (r"(?P<case>metric/auc)/.*", check_auc),
    (r"(?P<case>metric/correctness_acc)", check_correctness),
    (r"(?P<case>threshold_edge/\w+)/.*", check_threshold_edge),
    (r"(?P<case>entropy_edge)/.*", check_entropy_edge),
    (r"(?P<case>benchmark)/.*", check_benchmark),
    (r"(?P<case>metrics_binary)/.*", check_binary),
]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)
