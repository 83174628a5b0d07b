"""Promise 31: every accepted request is answered, also by a server that is told to stop."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.server.restarts import end_under_load
from tests.server.running import model_file


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(100, marks=pytest.mark.soak)])
def test_a_server_that_is_ended_loses_no_accepted_request(tmp_path: Path, count: int) -> None:
    model = model_file(tmp_path)
    statuses: Counter[int] = Counter()
    before = 0
    for seed in range(count):
        ended = end_under_load(model, seed, number=signal.SIGINT if seed % 5 == 4 else signal.SIGTERM)
        assert ended.unanswered == {}, (seed, ended.unanswered)
        assert ended.contradicted == {}, (seed, ended.contradicted)
        assert ended.code == 0, (seed, ended.code)
        statuses.update(sent.status for sent in ended.sent.values())
        before += sum(sent.at < ended.signalled for sent in ended.sent.values())
    print(f"{count} ends: {before} requests before the signal, statuses {dict(statuses)}")
    assert statuses.keys() <= {0, 200, 429, 503}
    assert before > 2 * count and statuses[200] > 2 * count, "the servers were under load"
