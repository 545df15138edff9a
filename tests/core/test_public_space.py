"""The public space: orthonormal columns that every machine computes alike, and unit rows."""

import pytest
import torch

from fed_a2v.core.public_space import PublicSpace, given_space, head_space, is_orthonormal, random_space

WIDTH = 20


@pytest.fixture
def head():
    """The weight of a head with 30 labels that sees 8 directions of 20."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(30, 8, generator=random) @ torch.randn(8, WIDTH, generator=random) + 5


def clips(number, tokens=1, seed=1):
    return torch.randn(number, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_the_space_of_a_head_has_its_strongest_directions(head):
    space = head_space(head, 5)
    assert space.matrix.shape == (WIDTH, 5)
    assert is_orthonormal(space.matrix)
    centred = head - head.mean(dim=0)
    seen = (centred @ space.matrix).square().sum(dim=0)
    assert torch.equal(seen.argsort(descending=True), torch.arange(5)), "strongest first"
    best = torch.linalg.svdvals(centred)[:5].square()
    torch.testing.assert_close(seen, best, rtol=1e-4, atol=0)


def test_what_a_head_does_not_fill_is_random_and_orthogonal_to_it(head, caplog):
    caplog.set_level("INFO")
    whole = head_space(head, 8)
    assert not caplog.messages
    filled, again, other = (head_space(head, 12, seed) for seed in (0, 0, 1))
    assert (filled.columns, is_orthonormal(filled.matrix)) == (12, True)
    torch.testing.assert_close(filled.matrix[:, :8], whole.matrix)
    assert filled.digest == again.digest != other.digest
    assert all("4 of 12" in message for message in caplog.messages)
    assert len(caplog.messages) == 3, "one line each"


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, WIDTH),
        torch.ones(4, WIDTH) * torch.rand(WIDTH),
        torch.ones(1, WIDTH),
        torch.full((4, 3), torch.nan),
    ],
    ids=["zeros", "equal rows", "one row", "NaN"],
)
def test_a_head_that_tells_no_labels_apart_is_refused(weight):
    with pytest.raises(ValueError, match="head"):
        head_space(weight, 2)


def test_no_space_has_more_columns_than_the_embeddings(head):
    for make in (lambda: head_space(head, 21), lambda: random_space(WIDTH, 21, 0)):
        with pytest.raises(ValueError, match=r"20.*21"):
            make()


def test_a_given_matrix_spans_the_space_that_its_first_columns_span():
    matrix = torch.randn(WIDTH, 7, generator=torch.Generator().manual_seed(0))
    space = given_space(matrix, 5)
    assert space.matrix.shape == (WIDTH, 5)
    assert is_orthonormal(space.matrix)
    torch.testing.assert_close(space.matrix @ (space.matrix.T @ matrix[:, :5]), matrix[:, :5], rtol=0, atol=1e-5)
    matrix[:, 3] = matrix[:, 2]
    with pytest.raises(ValueError, match="4 independent"):
        given_space(matrix, 5)
    with pytest.raises(ValueError, match="8"):
        given_space(matrix, 8)
    with pytest.raises(ValueError, match="NaN"):
        given_space(matrix * torch.nan, 5)


def test_a_random_space_is_that_of_its_seed():
    first, again, other = (random_space(WIDTH, 6, seed) for seed in (3, 3, 4))
    assert is_orthonormal(first.matrix)
    assert first.digest == again.digest != other.digest


def test_rows_have_length_1_and_tokens_are_averaged(head):
    space, audio = head_space(head, 5), clips(7, tokens=3)
    rows = space.rows(audio)
    assert rows.shape == (7, 5)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(rows, space.rows(audio.mean(dim=1, keepdim=True)))
    torch.testing.assert_close(rows, space.rows(3 * audio)), "loudness does not count"


def test_the_centre_is_subtracted_and_the_length_is_1_again(head):
    space, audio = head_space(head, 5), clips(50)
    rows = space.rows(audio)
    centred = space.centred(rows.double().mean(dim=0))
    assert centred.digest == space.digest, "the centre comes from the sites, the digest is of what is public before"
    moved = centred.rows(audio)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(50))
    expected = rows - rows.mean(dim=0)
    torch.testing.assert_close(moved, expected / expected.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)


def test_a_silent_clip_stays_0(head):
    assert torch.equal(head_space(head, 5).rows(torch.zeros(1, 1, WIDTH)), torch.zeros(1, 5))


@pytest.mark.parametrize("wrong", [2.0, float("nan"), 0.0])
def test_a_matrix_of_a_message_is_checked(wrong):
    matrix = random_space(WIDTH, 6, 0).matrix.clone()
    matrix[0, 0] = wrong
    assert not is_orthonormal(matrix)
    assert is_orthonormal(PublicSpace(random_space(WIDTH, 6, 0).matrix).matrix)


def test_a_centre_that_noise_makes_longer_than_1_is_scaled_down():
    space = random_space(20, 4, 0)
    assert float(space.centred(torch.full((4,), 3.0, dtype=torch.float64)).centre.norm()) == pytest.approx(1.0)
    mean = torch.tensor([0.5, 0.1, -0.2, 0.3])
    assert torch.equal(space.centred(mean).centre, mean)
