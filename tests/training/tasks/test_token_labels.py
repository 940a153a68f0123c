"""Token classification: words found in serving's own tokens, transformers' loss, seqeval's figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from repository import DATA
from training_samples import CONFIG

from nopad.model.checkpoint.tokenizer import open_tokenizer, save_tokenizer
from nopad.runtime.tokenizer import Tokens, open_encoder
from nopad.training.tagged_texts import load_tagged
from nopad.training.tasks.token_labels import TokenLabels, words_of_tokens
from nopad.training.tasks.token_targets import IGNORED

IOB2 = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
BIOES = ("O", *(f"{place}-{kind}" for kind in ("LOC", "PER") for place in "BIES"))
BERT: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def task(labels: tuple[str, ...] = IOB2, *, label_all_tokens: bool = False) -> TokenLabels:
    return TokenLabels(labels=labels, label_all_tokens=label_all_tokens)


@pytest.fixture(params=["modernbert-tokenizer", "bert-base-uncased"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if not (DATA / request.param).is_dir():
        pytest.skip(f"no {DATA / request.param}; set NOPAD_DATA to the folder with the test data")
    if request.param == "bert-base-uncased":
        return transformers.BertTokenizerFast(str(DATA / request.param / "vocab.txt"))
    return open_tokenizer(DATA / request.param)


def sentences() -> Any:
    path = DATA / "conll" / "esp.testa"
    if not path.is_file():
        pytest.skip(f"no {path}; set NOPAD_DATA to the folder with the test data")
    return load_tagged(str(path)).train.select(range(200))


def test_tokens_are_those_that_serving_makes_and_labels_stand_at_their_words(tokenizer: Any, tmp_path: Path) -> None:
    rows = sentences()
    encoded = task(BIOES).encode({**rows[:], "target": [[0] * len(row) for row in rows["words"]]}, tokenizer, 32)
    save_tokenizer(tokenizer, tmp_path)
    served = open_encoder(tmp_path / "tokenizer.json", 32).encode(rows["text"])
    cut = 0
    for row, ids, target, tokens in zip(rows, encoded["input_ids"], encoded["target"], served, strict=True):
        assert isinstance(tokens, Tokens) and ids == tokens.input_ids
        labelled = [i for i, label in enumerate(target) if label != IGNORED]
        read = [words for words in row["words"] if words[0] < max(end for _, end in tokens.offsets)]
        assert len(labelled) == len(read), "the first token of each word that is read"
        for token, (start, end) in zip(labelled, read, strict=True):
            piece = row["text"][slice(*tokens.offsets[token])].lstrip()
            assert piece and row["text"][start:end].startswith(piece)
        cut += len(read) < len(row["words"])
    assert cut, "some sentences are longer than 32 tokens"


def test_words_of_tokens() -> None:
    words = [(0, 5), (6, 7), (8, 11)]
    assert words_of_tokens([(0, 0), (0, 3), (3, 5), (5, 7), (7, 11), (0, 0)], words) == [None, 0, 0, 1, 2, None]
    assert words_of_tokens([(0, 7), (7, 8), (8, 9)], words) == [0, 2, 2], "a blank goes with the word after it"


@pytest.mark.parametrize(
    ("labels", "words", "pieces"),
    [
        (IOB2, ["B-PER", "I-PER", "O"], ["B-PER", "I-PER", "I-PER", "I-PER", "I-PER", "I-PER", "O", "O", "O"]),
        (BIOES, ["B-PER", "E-PER", "S-LOC"], [*("B-PER", "I-PER", "I-PER"), *("I-PER", "I-PER", "E-PER"),
                                              *("B-LOC", "I-LOC", "E-LOC")]),
        (("O", "I-PER"), ["I-PER", "O"], ["I-PER", "I-PER", "I-PER", "O", "O", "O"]),
        (("NOUN", "VERB"), ["VERB", "NOUN"], ["VERB", "VERB", "VERB", "NOUN", "NOUN", "NOUN"]),
        (("O", "B-PER"), ["B-PER", "O"], ["B-PER", None, None, "O", "O", "O"]),
    ],
    ids=["IOB2", "BIOES", "IOB1", "no scheme", "nothing goes on"],
)  # fmt: skip
def test_other_pieces_of_a_word_go_on_with_its_label(
    labels: tuple[str, ...], words: list[str], pieces: list[str | None]
) -> None:
    """Each word of three letters is three tokens here."""

    def letters(texts: list[str], **options: Any) -> dict[str, Any]:
        spans = [[(i, i + 1) for i, letter in enumerate(text) if letter != " "] for text in texts]
        return {"input_ids": [[1] * len(span) for span in spans], "offset_mapping": spans}

    rows = {
        "text": [" ".join(["abc"] * len(words))],
        "words": [[(4 * i, 4 * i + 3) for i in range(len(words))]],
        "target": [[labels.index(word) for word in words]],
    }
    expected = [IGNORED if piece is None else labels.index(piece) for piece in pieces]
    assert task(labels, label_all_tokens=True).encode(rows, letters, 512)["target"] == [expected]
    first = task(labels).encode(rows, letters, 512)["target"][0]
    assert first == [labels.index(words[i // 3]) if i % 3 == 0 else IGNORED for i in range(len(first))]


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_transformers(architecture: str, smoothing: float) -> None:
    torch.manual_seed(0)
    config = (
        transformers.ModernBertConfig(**CONFIG, num_labels=5)
        if architecture == "modernbert"
        else transformers.BertConfig(**BERT, num_attention_heads=2, num_labels=5)
    )
    model = transformers.AutoModelForTokenClassification.from_config(config).eval()
    rows = [
        {"input_ids": [2, 5, 9, 3], "target": [IGNORED, 4, IGNORED, IGNORED]},
        {"input_ids": [2, 7, 3], "target": [IGNORED, 0, IGNORED]},
    ]
    batch = task().collate(rows, multiple=64)
    mask = batch["labels"].new_tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    ids = torch.tensor([[2, 5, 9, 3], [2, 7, 3, 0]])
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask, labels=batch["labels"])
    stream = theirs.logits[mask.bool()]
    loss = task().loss(stream[batch["chosen"]], batch, label_smoothing=0.0)
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert task().items(batch) == 2
    if smoothing:
        wanted = torch.nn.functional.cross_entropy(stream[[1, 5]], torch.tensor([4, 0]), label_smoothing=smoothing)
        assert task().loss(stream[batch["chosen"]], batch, label_smoothing=smoothing).item() == pytest.approx(
            wanted.item()
        )


def test_a_batch_without_any_label_costs_nothing() -> None:
    batch = task().collate([{"input_ids": [2, 3], "target": [IGNORED, IGNORED]}], multiple=64)
    assert task().loss(torch.zeros(0, 5), batch, label_smoothing=0.0).item() == 0


def tagged(labels: tuple[str, ...]) -> st.SearchStrategy[list[list[tuple[int, int]]]]:
    label = st.integers(0, len(labels) - 1)
    return st.lists(st.lists(st.tuples(label, label), min_size=1, max_size=12), min_size=1, max_size=4)


@pytest.mark.parametrize("labels", [IOB2, BIOES, ("O", "I-A", "B-A", "I-B")], ids=["IOB2", "BIOES", "IOB1"])
def test_the_figures_are_those_of_seqeval(labels: tuple[str, ...]) -> None:
    seqeval = pytest.importorskip("seqeval.metrics", reason="pip install seqeval")

    @given(tagged(labels))
    def check(rows: list[list[tuple[int, int]]]) -> None:
        width = max(map(len, rows)) + 1
        best, true = (
            np.array([[pair[which] for pair in row] + [IGNORED] * (width - len(row)) for row in rows])
            for which in (0, 1)
        )
        found = task(labels).metrics(best.astype(np.float32), true)
        guess, truth = ([[labels[pair[which]] for pair in row] for row in rows] for which in (0, 1))
        for name in ("precision", "recall", "f1"):
            wanted = getattr(seqeval, f"{name}_score")(truth, guess, zero_division=0)
            assert found[name] == pytest.approx(wanted), name
        assert found["accuracy"] == pytest.approx(seqeval.accuracy_score(truth, guess))

    check()


def test_judged_are_the_tokens_that_have_a_target() -> None:
    rows = [{"input_ids": [2, 5, 3], "target": [IGNORED, 3, 4]}, {"input_ids": [2, 3], "target": [1, IGNORED]}]
    batch = task().collate(rows, multiple=64)
    best, targets = task().judge(torch.eye(5)[[2, 4, 0]], batch)
    assert best.tolist() == [[IGNORED, 2, 4], [0, IGNORED, IGNORED]]
    assert targets.tolist() == [[IGNORED, 3, 4], [1, IGNORED, IGNORED]]
