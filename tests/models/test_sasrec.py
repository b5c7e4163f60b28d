import pytest
import torch
from torch.nn import functional as F

from recsys.features.batches import JaggedBatch
from recsys.features.sampling import Sampling
from recsys.models.sasrec import SASRec, SASRecConfig

CONFIG = SASRecConfig(d_model=8, num_layers=2, num_heads=2, d_ff=16, max_len=6, dropout=0.0, positions="absolute")


def test_the_loss_is_the_cross_entropy_of_every_next_item() -> None:
    torch.manual_seed(0)
    model = SASRec(CONFIG, 9).eval()
    sequences = [[1, 2, 3, 4], [5], [6, 7]]
    states, targets = [], []
    for sequence in sequences:
        for end in range(1, len(sequence)):
            states.append(model.encode(JaggedBatch.from_sequences([sequence[:end]]))[0])
            targets.append(sequence[end])
    logits = torch.stack(states) @ model.item_vectors().T
    wanted = F.cross_entropy(logits[:, 1:], torch.tensor(targets) - 1)
    loss = model.loss(JaggedBatch.from_sequences(sequences), torch.Generator())
    torch.testing.assert_close(loss, wanted)


def test_a_later_item_never_changes_an_earlier_state() -> None:
    torch.manual_seed(0)
    model = SASRec(CONFIG, 9).eval()
    first = model._states(torch.tensor([1, 2, 3, 4]), (4,), None)
    second = model._states(torch.tensor([1, 2, 3, 9]), (4,), None)
    torch.testing.assert_close(first[:3], second[:3], rtol=0, atol=0)
    assert (first[3] - second[3]).abs().max() > 1e-4


def test_recency_positions_make_the_age_of_an_item_count_not_its_index() -> None:
    torch.manual_seed(0)
    config = SASRecConfig(d_model=8, num_layers=1, num_heads=1, d_ff=16, max_len=6, dropout=0.0, positions="recency")
    model = SASRec(config, 9).eval()
    x = model.encoder.position.weight
    seen: list[torch.Tensor] = []
    model.encoder.dropout.register_forward_hook(lambda module, args, output: seen.append(output))  # noqa: ARG005  # torch's signature
    model.encode(JaggedBatch.from_sequences([[1, 2, 3], [3]]))
    torch.testing.assert_close(seen[0] - model.item(torch.tensor([1, 2, 3, 3])), x[[2, 1, 0, 0]])


def test_training_reads_the_last_events_alone_or_every_window() -> None:
    assert SASRecConfig().sampling == Sampling()
    assert SASRec(SASRecConfig(max_len=50, window_prop=0.5), 9).sampling == Sampling(window_stride=25)
    assert SASRecConfig(max_len=50, window_prop=1.0).sampling == Sampling(window_stride=50), "of the inputs, not of N"
    with pytest.raises(ValueError, match=r"window_prop=1.5 must be in \[1/max_len, 1\]"):
        SASRecConfig(window_prop=1.5)
