"""Promise 2: the sequences of a run are a function of (seed, number) alone, and an epoch visits each once."""

import time

import pytest
import torch

from niels_gpt.data.batches import (
    Batch,
    ChatStream,
    Mixture,
    Source,
    TokenStream,
    pack_sequences,
    require_valid_ids,
)
from niels_gpt.data.cache.token_files import TokenFiles
from niels_gpt.errors import DataError
from niels_gpt.loss import IGNORE

T = 8


def documents(tokens: int, start: int = 0) -> TokenFiles:
    ids = torch.arange(start, start + tokens).to(torch.uint16)
    return TokenFiles(ids, torch.empty(0, dtype=torch.uint8), torch.tensor([0, tokens]))


def dialogues(lengths: list[int]) -> TokenFiles:
    """Dialogue n is of the id n + 1; its second half is the target."""
    ids = torch.cat([torch.full((length,), n + 1) for n, length in enumerate(lengths)]).to(torch.uint16)
    target_mask = torch.cat([(torch.arange(length) >= length // 2).to(torch.uint8) for length in lengths])
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    return TokenFiles(ids, target_mask, offsets)


def equal(first: Batch, second: Batch) -> bool:
    same = torch.equal(first.x, second.x) and torch.equal(first.y, second.y)
    if first.segments is None or second.segments is None:
        return same and first.segments is second.segments
    return same and torch.equal(first.segments, second.segments)


def take_sequences(batch: Batch, first: int, count: int) -> Batch:
    x, y, segments = (None if column is None else column[first : first + count] for column in batch)
    assert x is not None and y is not None
    return Batch(x, y, segments)


LENGTHS = [3, 9, 4, 5, 2, 7, 6]
TEXT, CHAT = documents(100), dialogues(LENGTHS)
NOTES = TEXT._replace(offsets=torch.tensor([0, 1, 4, 10, 11, 30, 58, 100]))  # documents of 1, 3, 6, ... tokens
SOURCES: dict[str, Source] = {
    "text": TokenStream(TEXT, T, 1),
    "chat": ChatStream(CHAT, T, 1),
    "mixture": Mixture([TokenStream(TEXT, T, 1), TokenStream(documents(90, 500), T, 1)], [3, 1], 1),
    "isolated text": TokenStream(NOTES, T, 1, isolate=True),
    "isolated mixture": Mixture([ChatStream(CHAT, T, seed, isolate=True) for seed in (1, 2)], [1, 1], 1),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_a_sequence_is_a_function_of_its_number_alone(source: Source) -> None:
    whole = source.draw(0, 40)
    for first, count in ((0, 1), (5, 3), (11, 13), (39, 1)):
        part = source.draw(first, count)
        assert part.x.shape == part.y.shape == (count, T)
        assert equal(part, take_sequences(whole, first, count))


@pytest.mark.parametrize(("stream", "files"), [(TokenStream, TEXT), (ChatStream, CHAT)], ids=["text", "chat"])
def test_each_epoch_visits_every_sequence_once_in_another_order_as_another_seed_does(
    stream: type[TokenStream | ChatStream], files: TokenFiles
) -> None:
    source, other = stream(files, T, 1), stream(files, T, 2)
    epochs = [source.draw(epoch * len(source), len(source)).x.tolist() for epoch in range(3)]
    epochs.append(other.draw(0, len(source)).x.tolist())
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(map(tuple, epoch)) for epoch in epochs}) == 4


def test_every_next_token_of_a_text_is_a_target_and_a_shorter_text_is_refused_with_its_numbers() -> None:
    x, y, _ = TokenStream(TEXT, T, 1).draw(0, 12)
    assert torch.equal(y, x + 1)
    with pytest.raises(DataError, match=r"8 tokens, .* T\+1=9"):
        TokenStream(documents(8), T, 1)


def test_dialogues_are_packed_whole_and_only_what_is_learned_is_a_target() -> None:
    source = SOURCES["chat"]
    x, y, _ = source.draw(0, len(source))
    targets = y[y != IGNORE].tolist()
    assert sorted(targets) == sorted(
        n + 1 for n, length in enumerate(LENGTHS) for _ in range(length - length // 2)
    )
    assert ((y != IGNORE).sum(1) > 0).all(), "a sequence without a target"
    assert (y[x == 0] == IGNORE).all(), "a target on padding"


def test_each_dialogue_of_a_sequence_is_a_segment_and_so_is_the_padding() -> None:
    x, _, segments = ChatStream(dialogues([3, 2, 9]), T, 1, isolate=True).draw(0, 2)
    assert segments is not None and any(row.unique().tolist() == [0, 1, 2] for row in x)
    same = (segments[:, :, None] == segments[:, None]) == (x[:, :, None] == x[:, None])
    assert same.all(), "here each dialogue is of one id, and the padding of another"


def test_each_document_is_a_segment_from_the_end_of_text_before_it_to_its_last_word() -> None:
    """So is a text that is completed: END_OF_TEXT, which ends a document in the files, comes before its words."""
    x, y, segments = TokenStream(NOTES, T, 1, isolate=True).draw(0, 12)
    assert segments is not None
    last = [offset - 1 for offset in NOTES.offsets[1:].tolist()]  # ids are places here
    begins = segments[:, 1:] != segments[:, :-1]
    assert torch.equal(begins, torch.isin(x[:, 1:].int(), torch.tensor(last, dtype=torch.int32)))
    assert torch.equal(segments, torch.searchsorted(torch.tensor(last), y)), "a target is of another document"


@pytest.mark.parametrize("name", SOURCES)
def test_microbatches_are_sequences_of_a_step_segments_included(name: str) -> None:
    step = SOURCES[name].draw(0, 7)
    assert (step.segments is not None) is name.startswith("isolated")
    parts = step.split(3)
    assert len(parts) == 3
    assert all(equal(part, take_sequences(step, 3 * n, 3)) for n, part in enumerate(parts))


def test_packing_puts_every_item_in_one_sequence_and_none_over_its_room() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 10, 500):
        lengths = torch.randint(1, 66, (count,), generator=generator)
        items, begins = pack_sequences(lengths, 65)
        assert sorted(items.tolist()) == list(range(count))
        assert begins[0] == 0 and begins[-1] == count
        sums = [int(lengths[part].sum()) for part in items.tensor_split(begins[1:-1])]
        assert 1 <= min(sums) <= max(sums) <= 65
    assert len(sums) * 65 < 1.03 * sum(sums), "more than 3 % of padding"
    assert pack_sequences(torch.full((11,), 7), 65)[1].tolist() == [0, 9, 11]


def test_two_million_dialogues_are_packed_in_less_than_three_seconds() -> None:
    spread = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
    lengths = (600 * (0.8 * spread - 0.32).exp()).long().clamp(4, 513)
    started = time.process_time()
    _, begins = pack_sequences(lengths, 513)
    assert time.process_time() - started < 3
    assert (len(begins) - 1) * 513 < 1.02 * int(lengths.sum()), "more than 2 % of padding"


def test_a_mixture_honours_its_weights() -> None:
    x = SOURCES["mixture"].draw(0, 1024).x
    assert int((x[:, 0] < 500).sum()) == 768
    x = SOURCES["mixture"].draw(0, 64).x
    assert 30 < int((x[:, 0] < 500).sum()) < 64, "the sources are not mixed within a period"


def test_ids_out_of_range_are_refused_on_the_cpu() -> None:
    batch = TokenStream(TEXT, T, 1).draw(0, 12)
    require_valid_ids(batch, 100)
    with pytest.raises(DataError, match=r"ids 0 \.\. 96 in a batch, but model.V=96"):
        require_valid_ids(batch, 96)
