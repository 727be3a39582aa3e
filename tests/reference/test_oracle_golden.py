"""The oracle against the published code's outputs."""

import pytest
import torch

import reference
from tests.golden import QWEN_CASES, case_names, load_case, load_qwen_case


@pytest.mark.parametrize("name", case_names())
def test_oracle_reproduces_the_published_code(name: str) -> None:
    case = load_case(name)
    pruned = reference.prune(case.tokens, case.attn, case.frame_features, **case.hyperparameters)
    assert [end - start for start, end in pruned.segments] == case.segment_lengths
    assert torch.equal(pruned.indices, case.expected_indices)
    torch.testing.assert_close(pruned.rounded(), case.expected_tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", QWEN_CASES)
def test_oracle_reproduces_the_published_block_for_qwen(name: str) -> None:
    case = load_qwen_case(name)
    pruned = reference.prune(case.tokens, case.attn, None, **case.hyperparameters)
    assert torch.equal(pruned.indices, case.expected_indices)
    torch.testing.assert_close(pruned.rounded(), case.expected_tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", case_names())
def test_newlines_kept_in_the_grid_stream_are_those_of_rows_with_a_kept_token(name: str) -> None:
    """Checks the loader's grid fields, which follow from the indices alone by the newline rule of SPEC section 8."""
    case = load_case(name)
    rows, columns = case.grid
    frames, num_tokens, _ = case.tokens.shape
    assert num_tokens == rows * columns
    kept = set(case.expected_indices.tolist())
    positions = []
    for grid_row in range(frames * rows):
        in_row = [column for column in range(columns) if grid_row * columns + column in kept]
        newline = [columns] if in_row else []
        positions += [grid_row * (columns + 1) + column for column in in_row + newline]
    assert case.grid_positions.tolist() == positions
    is_newline = case.grid_positions % (columns + 1) == columns
    assert torch.equal(case.grid_tokens[~is_newline], case.expected_tokens)
    assert (case.grid_tokens[is_newline] == case.newline).all()
