"""What `--sweep` may say."""

import pytest
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.runtime.errors import UsageError
from nopad.training.recipe import Recipe
from nopad.training.search_space import Choice, Range, default_space, read_space


def test_ranges_and_choices() -> None:
    space = read_space(
        ["learning-rate=1e-5..1e-3", "--epochs=1..4", "batch-size=8, 16", "lora=2..8", "schedule=linear,cosine"],
        Recipe(),
    )
    assert space == {
        "learning_rate": Range(low=1e-5, high=1e-3, log=True, whole=False),
        "epochs": Range(low=1.0, high=4.0, log=False, whole=False),
        "batch_size": Choice((8, 16)),
        "lora": Range(low=2, high=8, log=False, whole=True),
        "schedule": Choice(("linear", "cosine")),
    }


def test_without_any_it_is_around_the_recipe() -> None:
    recipe = Recipe(learning_rate=1e-3, batch_size=8)
    space = read_space([], recipe)
    assert space == default_space(recipe)
    assert space["learning_rate"] == Range(low=2e-4, high=5e-3, log=True, whole=False)
    assert space["batch_size"] == Choice((4, 8, 16))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("speed=1..2", "expected SETTING=LOW..HIGH"),
        ("max-length=64,128", "expected SETTING=LOW..HIGH"),  # would not compare
        ("learning-rate", "expected SETTING=LOW..HIGH"),
        ("learning-rate=0..1", "--learning-rate must be a positive number"),
        ("learning-rate=fast", "'fast' is no value of learning-rate"),
        ("learning-rate=1e-3..1e-5", "the first number of a range must be the smaller"),
        ("batch-size=8..", "'' is no value of batch-size"),
        ("batch-size=8,8", "names a value twice"),
        ("schedule=linear..cosine", "a range is of numbers"),
        ("schedule=linear,none", "--schedule 'none' is unknown"),
    ],
)
def test_what_is_no_space_is_refused(option: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_space([option], Recipe())
    with pytest.raises(UsageError, match="twice"):
        read_space(["batch-size=8,16", "batch-size=8,16"], Recipe())
