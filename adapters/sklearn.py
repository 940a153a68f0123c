"""scikit-learn: `NopadClassifier`, `NopadRegressor` and `NopadEmbedder`, estimators over texts.

A bundle is trained already, so `fit` learns nothing and need not be called. X is a list, array or column of texts, or
has two columns for models of pairs of texts. Estimators are cloned and pickled as the path of their bundle, which is
opened at the first prediction; those of one process share an opened bundle while one of them lives, so that clones (of
a cross-validation, say) need not open it again.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nopad.adapters.opening import Opened, needs
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import to_json
from nopad.runtime.types import FloatArray, Prediction, Text

with needs("sklearn"):
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        ClassNamePrefixFeaturesOutMixin,
        RegressorMixin,
        TransformerMixin,
    )
    from sklearn.utils import check_consistent_length

_SHARED: weakref.WeakValueDictionary[tuple[str | None, str, bytes], Opened] = weakref.WeakValueDictionary()
Texts = Any  # an array-like of texts, [n] or [n, 1], or of pairs of texts, [n, 2]


class _Estimator(BaseEstimator):
    """Opens the bundle of the parameters `bundle` and `load_options`, another one when these have changed."""

    _tasks: tuple[str, ...]
    _opened: Opened | None = None  # keeps its entry of `_SHARED` alive

    def __init__(self, bundle: str | None = None, load_options: Mapping[str, Any] | None = None) -> None:
        self.bundle = bundle
        self.load_options = load_options

    def fit(self, X: Texts, y: Any = None) -> Self:
        """Open the bundle and check X; y is only counted. Raises as `nopad.runtime.load`, and `UsageError`."""
        texts = self._texts(X)
        if y is not None:
            check_consistent_length(texts, y)
        self._bundle()
        return self

    def _bundle(self) -> Opened:
        opened, options = self._opened, dict(self.load_options or {})
        path = None if self.bundle is None else str(self.bundle)
        if opened is None or (opened.path, opened.load_options) != (path, options):
            own = Opened(path, *self._tasks, adapter=type(self).__name__, load_options=options)
            key = (path, repr(sorted(options.items())), to_json(own.manifest))
            opened = self._opened = _SHARED.setdefault(key, own)
        return opened

    def _texts(self, X: Texts) -> list[Text]:
        """The texts or pairs of texts in an array-like. Raises `UsageError` for another shape."""
        if isinstance(X, str):
            raise UsageError("X is one text; put it into brackets: [text]")
        rows = np.asarray(X, dtype=object)
        if rows.ndim == 2 and rows.shape[1] == 1:
            rows = rows[:, 0]
        if rows.ndim == 1:
            return rows.tolist()
        if rows.ndim == 2 and rows.shape[1] == 2:
            return [(first, second) for first, second in rows.tolist()]
        raise UsageError(f"X holds texts in one column, or pairs of texts in two; this one has the shape {rows.shape}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_opened"}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = False, True, True
        tags.no_validation = True
        return tags


class NopadClassifier(ClassifierMixin, _Estimator):
    """A bundle for text-classification as a classifier of scikit-learn.

    Of a bundle for several labels, predictions are indicators [n, labels], as of scikit-learn's multilabel classifiers.
    `bundle`: a folder, None for the embedded default. `load_options`: keyword arguments of `nopad.runtime.load`.
    """

    _tasks = ("text-classification",)

    @property
    def classes_(self) -> npt.NDArray[np.str_]:
        """The labels, sorted as scikit-learn wants them. Raises `UsageError` for a regression."""
        manifest = self._bundle().manifest
        if not manifest.head.has_labels:
            raise UsageError("NopadClassifier needs a bundle with labels; this one is a regression: NopadRegressor")
        return np.array(sorted(manifest.labels))

    def fit(self, X: Texts, y: Any = None) -> Self:
        """Open the bundle and check X and y. Raises as `nopad.runtime.load`, and `UsageError` for unknown labels."""
        classes = self.classes_
        if y is not None and not self._multi_label():
            unknown = sorted({str(label) for label in np.asarray(y).ravel()} - set(classes.tolist()))
            if unknown:
                raise UsageError(f"the bundle has the labels {', '.join(classes)}; y holds {', '.join(unknown[:3])}")
        return super().fit(X, y)

    def predict(self, X: Texts) -> npt.NDArray[Any]:
        """The label of each text, str [n]; of a bundle for several labels int64 [n, labels], by its thresholds."""
        classes, answers = self.classes_, self._answers(X)
        if not self._multi_label():
            return np.array([each.label for each in answers], dtype=classes.dtype)
        return np.array([np.isin(classes, each.labels) for each in answers], dtype=np.int64).reshape(-1, len(classes))

    def predict_proba(self, X: Texts) -> FloatArray:
        """The score of each label, float32 [n, labels], in the order of `classes_`."""
        classes, answers = self.classes_.tolist(), self._answers(X)
        rows = [[each.scores[label] for label in classes] for each in answers]
        return np.array(rows, dtype=np.float32).reshape(-1, len(classes))

    def decision_function(self, X: Texts) -> npt.NDArray[np.float64]:
        """The log-odds of each label, float64 [n, labels]; where a text has one of two labels [n], of `classes_[1]`."""
        classes, head = self.classes_.tolist(), self._bundle().manifest.head
        logits = np.array([each.logits for each in self._answers(X)], dtype=np.float32).reshape(-1, len(head.labels))
        odds = np.stack([head.log_odds(logits, head.labels.index(label)) for label in classes], axis=1)
        return odds[:, 1] if head.one_label and len(classes) == 2 else odds

    def _answers(self, X: Texts) -> list[Prediction]:
        return self._bundle().model.predict(self._texts(X), return_logits=True)

    def _multi_label(self) -> bool:
        return self._bundle().manifest.head.multi_label


class NopadRegressor(RegressorMixin, _Estimator):
    """A bundle for regression, or for reranking pairs of texts, as a regressor. Parameters as of `NopadClassifier`."""

    _tasks = ("text-classification", "rerank")

    def predict(self, X: Texts) -> FloatArray:
        """The value of each text, float32 [n]; [n, values] where the model has several."""
        opened = self._bundle()
        if opened.manifest.head.has_labels:
            raise UsageError("NopadRegressor needs a regression; this bundle has labels: NopadClassifier")
        labels = opened.manifest.labels
        rows = [[each.scores[label] for label in labels] for each in opened.model.predict(self._texts(X))]
        values = np.array(rows, dtype=np.float32).reshape(-1, len(labels))
        return values[:, 0] if len(labels) == 1 else values


class NopadEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Estimator):
    """A bundle for embeddings as a transformer of scikit-learn. Parameters as of `NopadClassifier`.

    `prompt_name`: the prompt before each text, by its name; None: the bundle's default prompt, if it has one.
    """

    _tasks = ("embeddings",)

    def __init__(
        self,
        bundle: str | None = None,
        load_options: Mapping[str, Any] | None = None,
        prompt_name: str | None = None,
    ) -> None:
        super().__init__(bundle, load_options)
        self.prompt_name = prompt_name

    def transform(self, X: Texts) -> FloatArray:
        """The embedding of each text, float32 [n, size]."""
        texts: Any = self._texts(X)  # a pair is refused there
        return self._bundle().model.embed(texts, prompt_name=self.prompt_name)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # always float32
        return tags

    @property
    def _n_features_out(self) -> int:
        return self._bundle().model.embed([]).shape[1]
