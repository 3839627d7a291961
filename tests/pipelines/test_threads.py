"""Work in threads of which each computes alone."""

import threading

import pytest
import torch
from comfyui_aitk.pipelines.lora.kinds import kind
from comfyui_aitk.pipelines.lora.kinds.low_rank import LowRank
from comfyui_aitk.pipelines.lora.kinds.workspace import Workspace
from comfyui_aitk.pipelines.machine.threads import in_threads


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_all_is_done_by_as_many_threads_as_torch_has(threads):
    seen, together = set(), threading.Barrier(threads)

    def work(item):
        together.wait(10)
        seen.add((item, threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))

    in_threads(work, range(threads))
    assert {item for item, *_ in seen} == set(range(threads))
    assert len({thread for _, thread, *_ in seen}) == threads
    assert {tuple(own) for _, _, *own in seen} == {(1, False)}
    # the caller's own, and those of threads that begin later, are what they were
    assert torch.get_num_threads() == threads
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_the_first_error_is_raised_when_all_is_done(threads):
    done = []

    def work(item):
        if item == 1:
            raise ValueError(item)
        done.append(item)

    with pytest.raises(ValueError, match="1"):
        in_threads(work, [0, 1] if threads == 1 else [0, 1, 2])
    assert sorted(done) == ([0] if threads == 1 else [0, 2])


def test_tensors_of_inference_mode_are_written_to(threads):
    with torch.inference_mode():
        value = torch.zeros(4)
        in_threads(lambda item: value[item : item + 1].fill_(item), range(4))
    assert value.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(70, 33), (257, 64), (48, 8, 3, 3)])
def test_a_merge_in_pieces_has_the_bits_of_the_whole(threads, shape, monkeypatch):
    monkeypatch.setattr(kind, "_PIECE", 1024)
    torch.manual_seed(0)
    weight = torch.randn(shape).bfloat16()
    change = LowRank(torch.randn(5, weight[0].numel()), torch.randn(shape[0], 5), 2.5)
    out = torch.empty_like(weight)
    change.merge(weight, 0.7, Workspace("cpu"), out=out)
    whole = weight.float() + (change.up @ change.down).mul(0.7).mul(0.5).view(shape)
    assert torch.equal(out, whole.bfloat16())
