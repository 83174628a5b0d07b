"""BentoML: the whole server of onnxcam under a path of a BentoML service.

bentoml serve bentoml_service:Cam --working-dir docs/recipes/serving
curl -s --data-binary @cat.png http://127.0.0.1:3000/cam/predict_with_gradcam
"""

import bentoml

from onnxcam import models
from onnxcam.server import create_app

cam = create_app({"lite0": str(models.path(models.MODEL))}, when="confidence < 0.6")


@bentoml.service(traffic={"timeout": 60})
@bentoml.asgi_app(cam, path="/cam")
class Cam:
    @bentoml.api
    def names(self) -> list[str]:
        """The models that `/cam` answers about; an API of the service's own beside it."""
        return [model.name for model in cam.state.onnxcam.models]
