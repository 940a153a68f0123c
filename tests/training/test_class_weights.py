"""`--class-weights`: what balanced and named weights are, and what is refused."""

from pathlib import Path

import pytest
from training_samples import write_jsonl

from nopad.runtime.errors import UsageError
from nopad.training.data import load_data
from nopad.training.tasks.base import Task
from nopad.training.tasks.multi_label import MultiLabel
from nopad.training.tasks.single_label import SingleLabel


def task_of(tmp_path: Path, labels: list[object], option: str) -> Task:
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    return load_data(str(write_jsonl(tmp_path / "rows.jsonl", rows)), class_weights=option).task


def test_balanced_classes_have_equal_parts(tmp_path: Path) -> None:
    task = task_of(tmp_path, ["a"] * 6 + ["b"] * 2, "balanced")
    assert isinstance(task, SingleLabel)
    assert task.class_weights == pytest.approx((8 / 12, 2.0)), "as scikit-learn's compute_class_weight"


def test_named_weights_keep_the_mean(tmp_path: Path) -> None:
    task = task_of(tmp_path, ["a"] * 6 + ["b"] * 2, "b=3")
    assert isinstance(task, SingleLabel) and task.class_weights is not None
    assert task.class_weights[1] / task.class_weights[0] == pytest.approx(3)
    assert 6 * task.class_weights[0] + 2 * task.class_weights[1] == pytest.approx(8)


def test_of_several_labels_the_positive_rows_are_weighed(tmp_path: Path) -> None:
    labels: list[object] = [["a"], ["a", "b"], [], ["a"]]
    balanced, named = (task_of(tmp_path, labels, option) for option in ("balanced", "b=2.5"))
    assert balanced == MultiLabel(positive_weights=(pytest.approx(1 / 3), 3.0))  # type: ignore[arg-type]
    assert named == MultiLabel(positive_weights=(1.0, 2.5))


@pytest.mark.parametrize("option", ["c=1", "a", "a=x", "a=0", "a=-1", "a=inf", "a=nan", "", "a=2,b=1,a=3"])
def test_a_weight_that_cannot_be_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--class-weights"):
        task_of(tmp_path, ["a", "b", "a", "b"], option)


def test_a_number_has_no_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--class-weights does not apply"):
        task_of(tmp_path, [0.5, 1.5, 2.5, 3.25], "balanced")
