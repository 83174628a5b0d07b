"""Prometheus: the counters are read when scraped, and `when dropped` becomes an alert.

python docs/recipes/prometheus_scrape.py FOLDER [PORT]

    - alert: ExplanationsDropped
      expr: rate(onnxcam_monitor_rows_dropped_total{reason!="sample"}[15m]) > 0.1
"""

import sys
import time
import urllib.request

import numpy as np
import prometheus_client

import onnxcam
from onnxcam import models
from onnxcam.monitor import metrics

MODEL = models.path(models.MODEL)
monitor = onnxcam.Monitor(MODEL, sink=sys.argv[1], when="confidence < 0.6", baseline_sample=1.0, rate="2/s", queue=4)
metrics.export(monitor)
server, _ = prometheus_client.start_http_server(int(sys.argv[2]) if len(sys.argv) > 2 else 0, addr="127.0.0.1")

explainer = onnxcam.Explainer(MODEL, providers=["CPUExecutionProvider"])
_, tensor, _ = explainer.prepare(models.path("cat.png"))
for shift in range(10):
    batch = np.roll(tensor, 16 * shift, axis=3)
    monitor.observe(explainer.predict(batch), tensor=batch)
monitor.flush(30)

with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as answer:
    for line in answer.read().decode().splitlines():
        if line.startswith("onnxcam_monitor_rows") and not line.endswith(" 0.0") and "_created" not in line:
            print(line)
if len(sys.argv) > 2:  # a port was named: go on serving
    time.sleep(float("inf"))
monitor.close(5)
