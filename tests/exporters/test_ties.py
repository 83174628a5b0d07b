"""Dead channels below a maximum: the export gives the gradient to the element that PyTorch gives it to."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from onnxcam.exporters import pytorch  # noqa: E402
from onnxcam.network import manifest  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]


class Dead(torch.nn.Module):  # type: ignore[misc]
    """Half the channels are 0 everywhere; average and maximum are pooled side by side, as by fastai."""

    def __init__(self, maximum: Any) -> None:
        super().__init__()
        self.conv, self.relu = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()
        self.average, self.largest = torch.nn.AdaptiveAvgPool2d(1), torch.nn.AdaptiveMaxPool2d(1)
        self.maximum, self.head = maximum, torch.nn.Linear(16, 5)
        with torch.no_grad():
            self.conv.bias[:4] -= 99

    def forward(self, x: Any) -> Any:
        y = self.relu(self.conv(x))
        largest = self.largest(y) if self.maximum is None else self.maximum(y)
        return self.head(torch.cat([self.average(y).flatten(1), largest.flatten(1)], 1))


@pytest.mark.parametrize(
    "maximum",
    [None, lambda y: y.amax((2, 3)), lambda y: y.max(2)[0].max(2)[0]],
    ids=["AdaptiveMaxPool2d", "amax", "max of dim"],
)
def test_ties_are_broken_as_by_torch(maximum: Any) -> None:
    torch.manual_seed(0)
    model = pytorch.export(Dead(maximum).eval(), torch.randn(2, 3, 12, 12), None, layers=["relu"])
    record = manifest.read(model)
    assert record is not None and record["parity"]["gradients"] < 1e-5
    assert "set_aside" not in record["parity"]
