"""Labels and scores from files: encodings, columns, and every way a table can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data.tables import encode_labels, read_labelled_scores

LABELS, SCORES = [0, 1, 0, 1], [0.1, 0.9, 0.25, 0.75]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rows(separator: str, *, turned: bool = False, label: tuple[str, str] = ("0", "1")) -> str:
    pairs = [(label[y], str(s)) for y, s in zip(LABELS, SCORES)]
    return "\n".join(separator.join(reversed(pair) if turned else pair) for pair in pairs) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        rows(","),
        rows(";"),
        rows("\t"),
        rows(" "),
        rows(", "),
        "label,score\n" + rows(","),
        "\ufeffy_true,y_score\r\n" + rows(",").replace("\n", "\r\n"),
        "score,label\n" + rows(",", turned=True),
        "Class,whatever\n" + rows(","),
        rows(",", turned=True),
        rows(",", label=("False", "True")),
        rows(",", label=("-1", "1")),
        rows(",", label=("0.0", "1.0")) + "\n\n",
    ],
)
def test_tables_that_are_understood(tmp_path: Path, text: str) -> None:
    found = read_labelled_scores(write(tmp_path / "t.csv", text))
    assert found.labels.tolist() == [False, True, False, True]
    assert found.scores.tolist() == SCORES
    said = " ".join(found.notes)
    assert ("-1 and 1" in said) == ("-1" in text)


def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,fraud,model a,model b\n1,0,0.1,9\n2,1,0.9,8\n")
    with pytest.raises(InputError, match="--label-column and --score-column"):
        read_labelled_scores(path)
    found = read_labelled_scores(path, label_column="fraud", score_column="model b")
    assert found.scores.tolist() == [9, 8]
    with pytest.raises(InputError, match="did you mean 'model b'"):
        read_labelled_scores(path, label_column="fraud", score_column="model_b")


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "both.npy", np.array([LABELS, SCORES]).T)
    np.save(tmp_path / "labels.npy", np.array(LABELS))
    np.save(tmp_path / "scores.npy", np.array(SCORES, np.float32))
    np.savez(tmp_path / "both.npz", y_true=np.array(LABELS, bool), y_score=np.array(SCORES))
    write(tmp_path / "scores.csv", "score\n" + "\n".join(map(str, SCORES)))
    write(tmp_path / "words.csv", "legit\nfraud\nlegit\nfraud\n")
    write(tmp_path / "titled.csv", "what it was\nlegit\nfraud\nlegit\nfraud\n")

    def positive(name: str) -> str | None:
        return "fraud" if name in ("words.csv", "titled.csv") else None

    for paths in (
        ["both.npy"],
        ["both.npz"],
        ["labels.npy", "scores.npy"],
        ["labels.npy", "scores.csv"],
        ["both.npz", "both.npz"],
        ["words.csv", "scores.npy"],
        ["titled.csv", "scores.npy"],
    ):
        found = read_labelled_scores(*(tmp_path / path for path in paths), positive=positive(paths[0]))
        assert found.labels.tolist() == [False, True, False, True]
        assert found.scores.tolist() == pytest.approx(SCORES)


def test_the_positive_label_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", rows(",", label=("legit", "fraud")))
    with pytest.raises(InputError, match=r"fraud and legit.*--positive"):
        read_labelled_scores(path)
    assert read_labelled_scores(path, positive="fraud").labels.tolist() == [False, True, False, True]
    with pytest.raises(InputError, match="did you mean 'fraud'"):
        read_labelled_scores(path, positive="fruad")
    digits, notes = encode_labels([3, 8, 1, 8], positive="8")
    assert digits.tolist() == [False, True, False, True]
    assert "every other label" in notes[0]
    assert encode_labels(np.array([1.0, 2.0]), positive="2")[0].tolist() == [False, True]


@pytest.mark.parametrize(
    "values, words",
    [
        ([1, 2], "0/1, false/true and -1/1"),
        ([-1, 0], "0/1, false/true and -1/1"),
        ([-1, 0, 1], "3 different values"),
        ([0, 0], "both classes"),
        ([-1, -1], "both classes"),
        (["1", ""], "row 2 has none"),
        ([1.0, float("nan")], "row 2 has none"),
    ],
)
def test_labels_that_are_refused(values: list, words: str) -> None:
    with pytest.raises(InputError, match=words):
        encode_labels(values)


@pytest.mark.parametrize(
    "name, content, error, words",
    [
        ("t.csv", "", ArtefactError, "is empty"),
        ("t.csv", "label,score\n", ArtefactError, "no rows"),
        ("t.csv", "0,0.1\n1\n", ArtefactError, "row 2 has 1 columns"),
        ("t.csv", "0,0.1\n1,x\n", InputError, "row 2 .* is no number"),
        ("t.csv", "0,0.1\n1,nan\n", InputError, "row 2 .* is no number"),
        ("t.csv", "0\n1\n", InputError, "two; give a second file"),
        ("t.json", "{}", InputError, "read from .csv"),
        ("t.npy", "nonsense", ArtefactError, "cannot be read"),
        ("t.npz", "nonsense", ArtefactError, "cannot be read"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_labelled_scores(write(tmp_path / name, content))


def test_further_refusals(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such file"):
        read_labelled_scores(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ArtefactError, match="table of text"):
        read_labelled_scores(tmp_path / "binary.csv")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_labelled_scores(tmp_path / "objects.npy")
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    with pytest.raises(InputError, match="one-dimensional"):
        read_labelled_scores(tmp_path / "cube.npy")
    np.savez(tmp_path / "uneven.npz", label=np.array([0, 1]), score=np.array([0.1]))
    with pytest.raises(InputError, match="one length"):
        read_labelled_scores(tmp_path / "uneven.npz")
    np.save(tmp_path / "two.npy", np.array([0, 1]))
    np.save(tmp_path / "three.npy", np.array([0.1, 1.0, 2.0]))
    with pytest.raises(InputError, match=r"2 rows .* 3"):
        read_labelled_scores(tmp_path / "two.npy", tmp_path / "three.npy")
