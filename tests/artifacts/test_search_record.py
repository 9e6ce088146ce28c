"""What a stopped search had found is found again, and nothing of another search."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.artifacts.search_record import SearchRecord
from kernel_lib.errors import InputError

INPUTS = {"ensemble": ["a", "b"], "single": False}
ENTRIES = st.dictionaries(st.text(max_size=9), st.floats(0, 1) | st.just({"top": 0.5}))


@given(ENTRIES, ENTRIES)
def test_entries_are_read_again_as_they_were_set(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("record") / "search.jsonl"
    SearchRecord(path, INPUTS).update(first)
    again = SearchRecord(path, INPUTS)
    assert dict(again) == first
    assert again.n_found == len(first)
    again.update(second)
    assert dict(SearchRecord(path, INPUTS)) == first | second


@given(ENTRIES.filter(bool), st.data())
def test_a_file_cut_anywhere_gives_the_entries_that_are_complete(tmp_path_factory, entries, data):
    path = tmp_path_factory.mktemp("record") / "search.jsonl"
    SearchRecord(path, INPUTS).update(entries)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    n_whole = max(path.read_bytes().count(b"\n") - 1, 0)
    found = SearchRecord(path, INPUTS)
    assert dict(found) == dict(list(entries.items())[:n_whole])
    found["more"] = 1.0
    assert SearchRecord(path, INPUTS)["more"] == 1.0


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\n", b"[]\n{}\n", b"3\n", b'{"inputs": "other"}\n{"name": "a", "value": 1}\n'],
)
def test_entries_of_another_search_or_a_damaged_file_do_not_count(tmp_path, content):
    path = tmp_path / "search.jsonl"
    path.write_bytes(content)
    assert not SearchRecord(path, INPUTS)
    SearchRecord(path, INPUTS)["a"] = 0.5
    assert not SearchRecord(path, INPUTS | {"single": True})


def test_lines_that_are_no_entries_do_not_count(tmp_path):
    path = tmp_path / "search.jsonl"
    SearchRecord(path, INPUTS)["a"] = 0.5
    with path.open("a") as file:
        file.write(json.dumps({"name": "b"}) + "\n")
    assert dict(SearchRecord(path, INPUTS)) == {"a": 0.5}


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    record = SearchRecord(tmp_path / "search.jsonl", INPUTS)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "open", full)
    with pytest.raises(InputError, match=r"search\.jsonl"):
        record["a"] = 0.5
