"""The slots of a compute worker, and the devices of each."""

import os
import subprocess

import pytest

from service.domain.slot import Slot
from worker import slots
from worker.slots import Slots, cuda_devices, dealt, machine_memory

GB = 10**9
FOUR = {"0": 80 * GB, "1": 80 * GB, "2": 40 * GB, "3": 40 * GB}


def test_each_slot_has_devices_that_no_other_has():
    """One each, several each, or one for several where there are fewer; without any they share the machine."""
    assert dealt(FOUR, 1, 4) == [Slot((name,), FOUR[name], on_cuda=True) for name in FOUR]
    both = [Slot(("0", "2"), 40 * GB, on_cuda=True), Slot(("1", "3"), 40 * GB, on_cuda=True)]
    assert dealt(FOUR, 1, 2) == both  # a job that uses one device may get the smallest
    assert dealt(FOUR, 1, 1) == [Slot((), 40 * GB, on_cuda=True)]  # a policy may name one by its number
    assert [slot.devices for slot in dealt({"0": GB}, 1, 3)] == [("0",)] * 3
    assert dealt({}, 5, 2) == [Slot((), 5)] * 2


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"GPU-a": 81559 * 2**20, "GPU-b": 40960 * 2**20}),
        ({"CUDA_VISIBLE_DEVICES": "1"}, {"GPU-b": 40960 * 2**20}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b, 0"}, {"GPU-b": 40960 * 2**20, "GPU-a": 81559 * 2**20}),
        ({"CUDA_VISIBLE_DEVICES": ""}, {}),
        ({"CUDA_VISIBLE_DEVICES": "MIG-a"}, {}),
    ],
)
def test_the_drivers_tool_counts_and_the_environment_chooses(monkeypatch, environment, expected):
    """Each has its UUID, because CUDA may count in another order. A device in parts is nobody's own."""
    listed = "0, GPU-a, 81559\n1, GPU-b, 40960\n2, GPU-c, [N/A]\nwarning: something else\n"
    answer = subprocess.CompletedProcess(slots.QUERY, 0, stdout=listed)
    monkeypatch.setattr(slots.subprocess, "run", lambda *_, **__: answer)
    assert cuda_devices(environment) == expected


def test_a_machine_without_the_tool_has_no_such_device(monkeypatch, tmp_path):
    """Its slots share what the container may use."""
    monkeypatch.setattr(slots, "QUERY", (str(tmp_path / "absent"),))
    assert cuda_devices(os.environ) == {}
    (tmp_path / "max").write_text("123\n")
    monkeypatch.setattr(slots, "CGROUP", tmp_path / "max")
    assert machine_memory() == 123
    two_slots = Slots()
    two_slots.deal(2)
    with two_slots.free() as one, two_slots.free() as two, two_slots.free() as none:
        assert (one, two, none) == (Slot((), 123), Slot((), 123), None)
    with two_slots.free() as again:
        assert again == Slot((), 123)
