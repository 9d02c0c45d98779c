import pytest

from bench import peaks
from bench.peaks import measure_peaks


@pytest.mark.slow
def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    real = peaks.run_isolated

    def watch(target: str, job: dict[str, object], **rest: object) -> object:
        asked.append(job)
        return real(target, job, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(peaks, "run_isolated", watch)
    found = measure_peaks(1, cache_bytes=2**20, memory_bytes=2**30)
    assert found.threads == 1
    assert found.fp32_per_second > 1e8
    assert found.int8_per_second > 1e8
    assert found.bytes_per_second > 1e8
    assert found.fp32_runtime in ("onnxruntime", "openvino")
    # Twice a small cache would still be in one.
    assert asked[0]["copied"] == 64 * 2**20
