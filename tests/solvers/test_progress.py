import torch

from unconv.solvers.progress import BatchProgress, statuses


def test_inputs_end_one_by_one_and_repeat_their_last_residual():
    progress = BatchProgress(torch.tensor([1.0, 1.0, 1.0]))
    progress.spend(2)
    progress.record(torch.tensor([0.5, 0.1, 0.7]))
    met, stuck = torch.tensor([False, True, False]), torch.tensor([False, False, True])
    progress.end(met, "converged")
    progress.end(stuck, "stalled")
    assert progress.keep(~(met | stuck)).tolist() == [0]
    assert progress.running.tolist() == [0]
    progress.spend(torch.tensor([1.5]))
    progress.record(torch.tensor([0.4]))
    assert progress.residual.tolist() == torch.tensor([0.4]).tolist()
    solution = progress.solution("value")
    assert solution.value == "value"
    assert solution.status == ("max_steps", "converged", "stalled")
    assert solution.passes == (4, 2, 2)
    torch.testing.assert_close(solution.history[-1], torch.tensor([0.4, 0.1, 0.7]))
    assert progress
    progress.keep(torch.tensor([False]))
    assert not progress


def test_statuses():
    assert statuses(torch.tensor([True, False])) == ("converged", "max_steps")
    assert statuses(torch.tensor([True, False]), torch.tensor([True, True])) == ("converged", "stalled")
