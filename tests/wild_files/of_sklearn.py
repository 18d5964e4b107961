"""scikit-learn, on its own digits: what is saved of it, and what its converter makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wild_files.wild_file import Wild

HEADING = "scikit-learn"


def _fitted(name: str) -> Any:
    import warnings

    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    images, labels = load_digits(return_X_y=True)
    images, labels = images[:400].astype(np.float32), labels[:400]
    made = {
        "logistic": lambda: LogisticRegression(max_iter=30),
        "network": lambda: MLPClassifier((16,), max_iter=20, random_state=0),
        "pipeline": lambda: make_pipeline(StandardScaler(), PCA(20), MLPClassifier((16,), max_iter=20, random_state=0)),
        "search": lambda: GridSearchCV(LogisticRegression(max_iter=20), {"C": [1.0]}, cv=2),
        "forest": lambda: RandomForestClassifier(5, random_state=0),
        "vectors": lambda: SVC(),
        "neighbours": lambda: KNeighborsClassifier(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made[name]().fit(images, labels)


def _joblib(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import joblib

        joblib.dump(_fitted(name), folder / "model.joblib")
        return folder / "model.joblib"

    return make


def _skops(folder: Path) -> Path:
    import skops.io

    skops.io.dump(_fitted("pipeline"), folder / "model.skops")
    return folder / "model.skops"


def _onnx(name: str, **options: Any) -> Callable[[Path], Path]:
    """As skl2onnx writes it by default."""

    def make(folder: Path) -> Path:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType

        estimator = _fitted(name)
        made = skl2onnx.to_onnx(
            estimator,
            initial_types=[("X", FloatTensorType([None, 64]))],
            options={id(estimator): options} if options else None,
        )
        (folder / "model.onnx").write_bytes(made.SerializeToString())
        return folder / "model.onnx"

    return make


FILES: tuple[Wild, ...] = (
    Wild("logistic regression (joblib)", _joblib("logistic"), shape=(1, 8, 8)),
    Wild("a network behind a scaler and PCA (skops)", _skops, shape=(1, 8, 8)),
    Wild("a grid search (joblib)", _joblib("search"), shape=(1, 8, 8)),
    Wild("a random forest (joblib)", _joblib("forest"), works=False, shape=(1, 8, 8)),
    Wild("a support vector machine without probabilities (joblib)", _joblib("vectors"), works=False, shape=(1, 8, 8)),
    Wild("skl2onnx: logistic regression, a dictionary of probabilities", _onnx("logistic")),
    Wild("skl2onnx: a network, probabilities as a matrix", _onnx("network", zipmap=False)),
    Wild("skl2onnx: a pipeline", _onnx("pipeline", zipmap=False)),
    Wild("skl2onnx: a random forest", _onnx("forest"), works=False),
    Wild("skl2onnx: nearest neighbours", _onnx("neighbours"), works=False),
)
