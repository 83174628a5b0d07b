"""LitServe: a request has one picture in base64; the answer has its class and, where it is unsure, its overlay.

python docs/recipes/serving/litserve_api.py 8000
printf '{"image": "%s"}' "$(base64 -w0 cat.png)" | curl -s --json @- http://127.0.0.1:8000/predict
"""

import base64
import binascii
import sys

import litserve
from fastapi import HTTPException

import onnxcam
from onnxcam import image, models

CONFIDENT = 0.6


class Cam(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.explainer = onnxcam.Explainer(models.path(models.MODEL), providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, str]) -> bytes:
        try:
            return base64.b64decode(request["image"], validate=True)
        except (KeyError, TypeError, binascii.Error) as error:
            raise HTTPException(422, f'expected {{"image": base64}} ({error})') from error

    def predict(self, picture: bytes) -> dict[str, object]:
        try:
            picture, tensor, _ = self.explainer.prepare(picture)
        except onnxcam.OnnxcamError as error:
            raise HTTPException(422, str(error)) from error
        (probabilities,) = self.explainer.predict(tensor)
        best = int(probabilities.argmax())
        answer: dict[str, object] = {"class": self.explainer.label(best), "confidence": float(probabilities[best])}
        if probabilities[best] < CONFIDENT:  # only unsure predictions pay for a map
            overlay = image.encode_png(self.explainer.explain(picture.pixels).overlay())
            answer["overlay"] = base64.b64encode(overlay).decode()
        return answer

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        return output


if __name__ == "__main__":
    litserve.LitServer(Cam(), accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False
    )
