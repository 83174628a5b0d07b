"""One process per GPU, each with its device in prediction and explanation; all write into one folder.

Ray, Daft and Spark show each worker its GPU themselves: docs/how-to/fleets.md.

python docs/recipes/one_worker_per_gpu.py FOLDER cuda:0 cuda:1       (cpu cpu: the same without GPUs)
"""

import multiprocessing
import sys

import numpy as np

import onnxcam
from onnxcam import models, runtime

MODEL = models.path(models.MODEL)


def serve(folder: str, device: str) -> None:
    # "cuda:1" becomes ("CUDAExecutionProvider", {"device_id": 1}); a named device that is not in use is an error
    providers = runtime.parse_provider(device)
    explainer = onnxcam.Explainer(MODEL, providers=providers)
    monitor = onnxcam.Monitor(
        MODEL,
        sink=folder,
        when="confidence < 0.6",
        baseline_sample=1.0,
        rate=None,
        duplicates=None,
        providers=providers,
    )
    with monitor:
        for name in ("cat.png", "coffee.png"):
            _, tensor, _ = explainer.prepare(models.path(name))
            batch = np.concatenate([np.roll(tensor, shift, axis=2) for shift in (0, 32, 64)])
            monitor.observe(explainer.predict(batch), tensor=batch)
        monitor.flush(60)
        print(f"{device}: {explainer.providers[0]}, {monitor.stats()['explained']} explained", flush=True)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    workers = [context.Process(target=serve, args=(sys.argv[1], device)) for device in sys.argv[2:]]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(max(worker.exitcode or 0 for worker in workers))
