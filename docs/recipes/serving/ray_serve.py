"""Ray Serve: one server of onnxcam in each replica.

serve run --app-dir docs/recipes/serving ray_serve:app
curl -s --data-binary @cat.png http://127.0.0.1:8000/predict_with_gradcam
"""

from ray import serve
from starlette.types import ASGIApp

from onnxcam import models
from onnxcam.server import create_app


def build() -> ASGIApp:
    """The server of a replica: called there, because sessions of ONNX Runtime cannot be sent to it."""
    return create_app({"lite0": str(models.path(models.MODEL))}, when="confidence < 0.6", threads=1)


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1})
@serve.ingress(build)
class Cam:
    """The routes are those of `build`."""


app = Cam.bind()
