"""Hooks of gunicorn: a worker that ends explains what waits, for at most ten seconds."""

import os


def worker_exit(server: object, worker: object) -> None:
    from gunicorn_app import monitor

    if worker.pid == os.getpid():
        monitor.close(10)
