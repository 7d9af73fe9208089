"""What a device says when it gives up is known by its words, wherever they are found."""

from __future__ import annotations

import pytest

from localdpo.records.deaths import death_in, end_lines, error_hint, training_hint
from localdpo.records.events import Event

METAL = "[METAL] Command buffer execution failed"
CALLBACK = "kIOGPUCommandBufferCallbackError"


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("RuntimeError: [metal::malloc] Resource limit (499000) exceeded.", "no room for more arrays"),
        (
            "RuntimeError: [metal::malloc] Attempting to allocate 48736917632 bytes which is greater than "
            "the maximum allowed buffer size of 30150672384 bytes.",
            "one array is larger",
        ),
        (f"{METAL}: Insufficient Memory (00000008:{CALLBACK}OutOfMemory)", "the GPU ran out of memory"),
        (f"{METAL}: Impacting Interactivity (0000000e:{CALLBACK}ImpactingInteractivity)", "the display"),
        (f"{METAL}: Caused GPU Timeout Error (00000002:{CALLBACK}Timeout)", "ran for too long"),
        (f"{METAL}: Caused GPU Hang Error (00000003:{CALLBACK}Hang)", "ran for too long"),
        (f"{METAL}: Discarded (victim of GPU error/recovery) (00000005:{CALLBACK}InnocentVictim)", "gave up"),
        (f"{METAL}: Ignored (00000004:{CALLBACK}SubmissionsIgnored)", "gave up"),
        ("RuntimeError: cudaMallocAsync(&data, size, stream) failed: out of memory", "the GPU ran out"),
        ("RuntimeError: cudaMallocManaged failed: out of memory.", "the GPU ran out of memory"),
        ("CUDA error 2: CUDA_ERROR_OUT_OF_MEMORY", "the GPU ran out of memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 8.13 GiB", "the GPU ran out"),
        ("cudaStreamSynchronize(stream) failed: an illegal memory access was encountered", "CUDA driver"),
        ("RuntimeError: [malloc_or_wait] Unable to allocate 9 bytes", "memory ran out"),
        ("RuntimeError: [malloc] Unable to allocate 268435456 bytes.", "memory ran out"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "memory ran out"),
        ("MemoryError", "memory ran out"),
        ("RuntimeError: [Compile::eval_cpu] Failed to compile function C: code 1", "not compile for the CPU"),
        ("OSError: [Errno 12] Cannot allocate memory", "memory ran out"),
    ],
)
def test_a_failure_of_the_device_is_known_by_its_words(said: str, cause: str):
    death = death_in(f"Traceback (most recent call last):\n{said}\n")
    assert death is not None
    assert cause in death.cause
    assert death.training != "" != death.elsewhere


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: [matmul] Last dimension of first input with shape (2,3) must match",
        "KeyError: 'cuda'",
        "ZeroDivisionError: in the step",
        "RuntimeError: [load_safetensors] Failed to open file",
    ],
)
def test_a_bug_is_no_failure_of_the_device(said: str):
    assert training_hint(said) is None


def test_a_smaller_batch_is_not_offered_against_the_watchdog():
    hint = training_hint(f"{CALLBACK}ImpactingInteractivity")
    assert hint is not None
    assert "display sleep" in hint
    assert "a smaller batch alone does not help" in hint


def test_only_what_mlx_and_the_interpreter_raise_for_it_counts():
    assert "lower --max-tokens" in str(error_hint(RuntimeError("[metal::malloc] Unable to allocate")))
    assert "memory ran out" in str(error_hint(MemoryError()))
    assert error_hint(ValueError("[metal::malloc] Unable to allocate")) is None
    assert error_hint(RuntimeError("bad shapes")) is None


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ({"lines": ["dead", "resume with: x", "hint: h"]}, ["dead", "hint: h"]),
        ({"lines": ["dead", "go on with: x", "hint: h"]}, ["dead", "hint: h"]),
        ({"error": "KeyError: 'x'"}, ["KeyError: 'x'"]),
        ({"error": "RuntimeError: cudaMalloc failed: out of memory"}, None),
        ({"reason": "SIGINT"}, []),
    ],
)
def test_the_end_in_the_log_has_its_hint(data: dict[str, object], lines: list[str] | None):
    found = end_lines(Event(v=1, time=0.0, type="run.failed", data=data))
    if lines is None:
        assert found[0] == data["error"]
        assert found[1].startswith("hint: the GPU ran out of memory: lower train.micro_batch_size")
    else:
        assert found == lines
