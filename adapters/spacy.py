"""spaCy: the pipe `nopad` (`nlp.add_pipe("nopad", config={"bundle": ...})`) writes a bundle's answers into docs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nopad.adapters.opening import Opened, Source, needs
from nopad.runtime.batching import WINDOW
from nopad.runtime.types import Embedding, Failure, Prediction, Result, Tagging

with needs("spacy"):
    from spacy.language import Language
    from spacy.pipeline import Pipe
    from spacy.tokens import Doc
    from spacy.util import filter_spans, minibatch


class NopadPipe(Pipe):
    """A pipe of spaCy.

    | task | where the answer goes |
    |---|---|
    | text-classification | `doc.cats`: the score of each label |
    | token-classification | `doc.ents`: entities, widened to whole tokens of spaCy |
    | embeddings | `doc.vector`; and `doc.user_data["nopad"]`, which is kept where docs are stored |

    A doc without a text (nothing, or white space alone) passes unchanged.
    """

    def __init__(self, bundle: Source, load_options: Mapping[str, Any] | None = None) -> None:
        """Opens the bundle. Raises as `load`, and `UsageError` for a bundle of another task."""
        tasks = ("text-classification", "token-classification", "embeddings")
        self._opened = Opened(bundle, *tasks, adapter="the pipe nopad", load_options=load_options)
        _ = self._opened.model

    def __call__(self, doc: Doc) -> Doc:
        """Answer one doc. Raises `TextError` for a text that cannot be read."""
        for answered in self._answer([doc]):
            if isinstance(answered, Failure):
                raise answered.error
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = WINDOW) -> Iterator[Doc]:
        """Answer docs lazily, `batch_size` at a time in packed micro-batches.

        A text that cannot be read goes to the pipe's error handler (`nlp.set_error_handler`), which raises unless told
        otherwise; the other docs are answered.
        """
        for docs in minibatch(stream, size=batch_size):
            for doc, failure in zip(docs, self._answer(docs), strict=True):
                if isinstance(failure, Failure):
                    self.get_error_handler()("nopad", self, [doc], failure.error)
                else:
                    yield doc

    def _answer(self, docs: list[Doc]) -> Iterator[Failure | None]:
        """Write each doc's answer into it; its `Failure` where there is none."""
        asked = [doc for doc in docs if doc.text.strip()]
        answers = self._opened.model.results([doc.text for doc in asked])
        for doc in docs:
            answer = next(answers) if doc.text.strip() else None
            if isinstance(answer, Failure):
                yield answer
            else:
                if answer is not None:
                    _write(doc, answer)
                yield None


def _write(doc: Doc, answer: Result) -> None:
    if isinstance(answer, Prediction):
        doc.cats = {**doc.cats, **answer.scores}
    elif isinstance(answer, Tagging):
        spans = [doc.char_span(e.start, e.end, label=e.label, alignment_mode="expand") for e in answer.entities]
        doc.set_ents(filter_spans([span for span in spans if span is not None]))
    elif isinstance(answer, Embedding):
        doc.vector = doc.user_data["nopad"] = answer.vector


@Language.factory("nopad", default_config={"bundle": None, "load_options": {}})
def make_pipe(nlp: Language, name: str, bundle: str | None, load_options: dict[str, Any]) -> NopadPipe:
    """What `nlp.add_pipe("nopad")` calls: `bundle` is a folder, `load_options` keyword arguments of `load`."""
    return NopadPipe(bundle, load_options)
