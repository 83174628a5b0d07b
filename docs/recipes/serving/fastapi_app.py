"""FastAPI: the whole server of onnxcam under a path of your own application, in the same process.

uvicorn --app-dir docs/recipes/serving fastapi_app:app
curl -s --data-binary @cat.png http://127.0.0.1:8000/cam/predict_with_gradcam
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from onnxcam import models
from onnxcam.server import create_app

cam = create_app({"lite0": str(models.path(models.MODEL))}, when="confidence < 0.6")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # FastAPI runs its own lifespan alone, not that of what is mounted: worker threads would not end
    async with cam.router.lifespan_context(cam):
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/cam", cam)


@app.get("/")
def index() -> dict[str, str]:
    return {"explanations": "/cam/predict_with_gradcam", "page": "/cam/"}
