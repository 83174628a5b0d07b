"""KServe's Python server: predictor and explainer in one process, both verbs of its V1 protocol.

python docs/recipes/serving/kserve_model.py --http_port 8080 --enable_grpc false
printf '{"instances": [{"b64": "%s"}]}' "$(base64 -w0 cat.png)" | curl -s --json @- http://127.0.0.1:8080/v1/models/lite0:explain
"""

import base64
from typing import Any

import kserve
from kserve.errors import InvalidInput

import onnxcam
from onnxcam import models


class Cam(kserve.Model):
    def load(self) -> bool:
        self.explainer = onnxcam.Explainer(models.path(models.MODEL), providers=["CPUExecutionProvider"])
        self.ready = True
        return self.ready

    def predict(self, payload: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        try:
            rows = [self.explainer.predict(self.explainer.prepare(one)[1])[0] for one in pictures(payload)]
        except onnxcam.OnnxcamError as error:
            raise InvalidInput(str(error)) from error
        best = [int(row.argmax()) for row in rows]
        return {
            "predictions": [
                {"class": self.explainer.label(index), "probability": float(row[index])}
                for row, index in zip(rows, best, strict=True)
            ]
        }

    def explain(self, payload: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        try:
            explained = self.explainer.explain(pictures(payload))
        except onnxcam.OnnxcamError as error:
            raise InvalidInput(str(error)) from error
        return {
            "predictions": [{"class": e.label, "probability": e.predictions[0][2]} for e in explained],
            "explanations": [{"map": e.raw_map.tolist(), "warnings": e.warnings} for e in explained],
        }


def pictures(payload: dict[str, Any]) -> list[bytes]:
    """The encoded pictures of a request."""
    try:
        return [base64.b64decode(one["b64"], validate=True) for one in payload["instances"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f'expected {{"instances": [{{"b64": ...}}]}}: {error}') from error


if __name__ == "__main__":
    model = Cam("lite0")
    model.load()
    kserve.ModelServer(workers=1).start([model])
