"""Windows: every voxel of the box is in exactly one core; halos are as wide as asked for, or reach the border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesr_bids.sr.windows import largest_window, plan_windows

HALO, MULTIPLE = 6, 2


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cores_tile_the_box_and_halos_are_whole(data: st.DataObject) -> None:
    shape = tuple(MULTIPLE * data.draw(st.integers(8, 40)) for _ in range(3))
    box = []
    for n in shape:
        low = data.draw(st.integers(0, n - 2))
        box.append(slice(low, data.draw(st.integers(low + 1, n))))
    largest = data.draw(st.integers(30**3, 90**3))
    windows = plan_windows(shape, (box[0], box[1], box[2]), halo=HALO, largest=largest, multiple=MULTIPLE)
    count = np.zeros(shape, dtype=int)
    for window in windows:
        count[window.core] += 1
        assert window.voxels <= largest
        for outer, core, n in zip(window.outer, window.core, shape, strict=True):
            assert outer.start == max(0, core.start - HALO)
            assert outer.stop == min(n, core.stop + HALO)
            assert outer.start % MULTIPLE == core.start % MULTIPLE == 0
            assert (outer.stop - outer.start) % MULTIPLE == 0
        volume = np.empty(shape)[window.outer]
        assert volume[window.inner].shape == count[window.core].shape
    assert count.max() == 1
    assert (count[tuple(box)] == 1).all()


def test_windows_of_a_gpu_fit_into_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (6 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**30)
    gpu = torch.device("cuda")
    whole, beside = (largest_window(100, gpu, 10, reserved) for reserved in (0, 4 * 2**30))
    assert whole * 100 == pytest.approx(0.7 * 8 * 2**30, rel=1e-6)  # what PyTorch keeps is free for it
    assert beside == pytest.approx(whole / 2, rel=1e-6)
    assert largest_window(100, gpu, 10, 9 * 2**30) == 0
    assert largest_window(100, torch.device("cpu"), 10, 4 * 2**30) == 10


def test_a_window_too_small_for_the_halo_is_refused() -> None:
    with pytest.raises(MemoryError, match="too small"):
        plan_windows((64, 64, 64), (slice(0, 64),) * 3, halo=20, largest=1000, multiple=2)
