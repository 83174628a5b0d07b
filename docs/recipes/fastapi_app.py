"""FastAPI (or Starlette): the endpoint names its request, the monitor lives as long as the application.

CAM=/var/log/cam uvicorn --app-dir docs/recipes fastapi_app:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

import onnxcam
from onnxcam import models
from onnxcam.monitor.hook import request as named

MODEL = models.path(models.MODEL)
monitor = onnxcam.Monitor(MODEL, sink=os.environ["CAM"], when="confidence < 0.6", baseline_sample=0.5)
explainer = onnxcam.Explainer(MODEL, providers=["CPUExecutionProvider"])  # here only to prepare and to predict


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await run_in_threadpool(monitor.close, 10)


app = FastAPI(lifespan=lifespan)


@monitor.watch(image="data")
def predict(data: list[bytes]):
    _, tensor, _ = explainer.prepare(data[0])
    return explainer.predict(tensor)


@app.post("/predict")
async def endpoint(request: Request) -> dict[str, object]:
    data = await request.body()
    # run_in_threadpool carries the context along, and with it the name
    with named(request.headers.get("x-request-id"), request.headers.get("traceparent")):
        (probabilities,) = await run_in_threadpool(predict, [data])
    best = int(probabilities.argmax())
    return {"class": explainer.labels[best], "probability": round(float(probabilities[best]), 4)}


@app.get("/stats")
def stats() -> dict[str, object]:
    return monitor.stats()
