"""What a person does on the page of the server, and sees there."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const event = EVENT === "paste" ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
    : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""
PIXELS = """(at) => {
  const canvas = document.querySelectorAll("#figures canvas")[at], { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let text = "";
  for (let start = 0; start < data.length; start += 8192) {
    text += String.fromCharCode(...data.subarray(start, start + 8192));
  }
  return [height, width, btoa(text)];
}"""


def hand_over(page: Any, data: bytes, name: str = "picture.png", kind: str = "image/png", event: str = "drop") -> None:
    page.wait_for_selector("#settings:not([hidden])")
    page.evaluate(DROP.replace("EVENT", repr(event)), [name, kind, base64.b64encode(data).decode()])


def status(page: Any, text: str) -> None:
    page.get_by_role("status").get_by_text(text).wait_for()


def canvas(page: Any, at: int = 0) -> np.ndarray:
    height, width, data = page.evaluate(PIXELS, at)
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3]


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding."""
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= 1
