"""The explainer that a command's flags describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxcam import runtime
from onnxcam.cam.methods import Method
from onnxcam.cli import options
from onnxcam.errors import LayerError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.folder import cores, workers
from onnxcam.explain.preparation import takes_all
from onnxcam.targets import labels
from onnxcam.targets.task_labels import check_labels


def open_explainer(
    model: str,
    layers: Sequence[str] = (),
    labels_file: str | None = None,
    preprocess: Any = None,
    methods: Sequence[str | Method] = ("gradcam",),
    provider: str = "auto",
    allow_fallback: bool = False,
    many: bool = False,
    *,
    input_size: Sequence[int] | None = None,
    value_range: Sequence[float] | None = None,
    bands: Sequence[int] | None = None,
    sources: Sequence[Any] = (),
    scores: str | None = None,
    kind: str | None = None,
    rows: int | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
    sleeping: bool = False,
) -> Explainer:
    """Open the explainer that the flags describe; of `sources` that are all the model's own input no preprocessing is
    needed.

    With `many` pictures several are explained side by side, so each run of the model takes its share of the cores.
    Where much else is computed between runs, threads that are `sleeping` between them save processor time.

    Raises:
        PreprocessError: neither the model nor the caller says how pictures become tensors.
        ModelError, LayerError, LabelsError, MethodError, RuntimeUnavailable: as their names say.
    """
    names = None if labels_file is None else labels.read(labels_file)
    threads = max(1, cores() // workers()) if many else cores() if sleeping else None
    try:
        explainer = Explainer(
            model,
            preprocess=preprocess,
            layers=list(dict.fromkeys(layers)) or None,
            methods=methods,
            input_size=input_size,
            value_range=None if value_range is None else (value_range[0], value_range[1]),
            bands=bands,
            scores=scores,
            kind=kind,
            task=task,
            boxes_output=boxes_output,
            providers=runtime.parse_provider(provider),
            session_options=None if threads is None else runtime.options.side_by_side(threads),
            allow_fallback=allow_fallback,
            rows=rows,
        )
    except LayerError as error:
        raise options.not_explainable(error, layers) from error
    if names is not None:
        if explainer.terms.readout.task is None:
            labels.check_count(names, explainer.classes, f"labels file {labels_file!r}")
        explainer.labels = check_labels(names, explainer.terms.readout)
    if explainer.preprocess is None and not takes_all(explainer.preparation, sources):
        raise explainer.preparation.unknown()
    return explainer
